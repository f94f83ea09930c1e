#include "cpu/lane_geometry.h"

#include <doctest/doctest.h>

#include <cstdint>

namespace jaxsparse::testing {
namespace {

constexpr cpu::LaneShape kShapes[] = {{1, 1, 1, nullptr, nullptr}, {1, 2, 4, nullptr, nullptr}};

TEST_CASE("offsets in a block of channels have 32 bits, however many channels there are") {
  for (const int64_t channels : {1, 1000, 17'000'000, 2'000'000'000}) {
    for (const int64_t span : {0, 2, 40'000}) {
      for (const int64_t num_threads : {1, 2}) {
        CAPTURE(channels);
        CAPTURE(span);
        cpu::GeometrySizes sizes;
        sizes.space = {1, 1, 4};
        sizes.spans = {{0, 0, span}};
        sizes.source_channels = sizes.group_channels = channels;
        sizes.columns = 5'000'000;  // more than there are entries
        sizes.entries = 1000;
        sizes.lanes = 16;
        sizes.num_threads = num_threads;
        const cpu::LaneGeometry geometry = cpu::ChooseGeometry(sizes, kShapes, 2);
        REQUIRE(geometry.shape != nullptr);
        const int64_t channel_bytes = ((geometry.tile[2] + span) | 1) * 16 * sizes.sum_bytes;
        CHECK(geometry.block_channels >= 1);
        CHECK(geometry.block_channels <= channels);
        CHECK(geometry.block_channels * channel_bytes <= INT32_MAX);
      }
    }
  }
}

}  // namespace
}  // namespace jaxsparse::testing
