// Where the tiles of a chunk lie in the arrays.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/conv_plan.h"
#include "cpu/parallel_for.h"

namespace jaxsparse::cpu {
namespace {

constexpr int64_t kMaxLanes = 16;

// The tiles of a chunk's lanes, as places of one array, in steps of `step`.
class LanePlaces {
 public:
  LanePlaces(const ConvPlan& plan, int64_t chunk, const Space& step, const Space& space,
             int64_t row_bytes)
      : lanes_(plan.lanes), space_(space), row_bytes_(row_bytes) {
    const int64_t first = chunk * lanes_;
    num_tiles_ = std::min(lanes_, plan.num_tiles() - first);
    for (int64_t l = 0; l < num_tiles_; ++l) {
      int64_t index = first + l;
      Space tile, residue;
      for (int a = 2; a >= 0; --a) tile[a] = index % plan.tiles[a], index /= plan.tiles[a];
      for (int a = 2; a >= 0; --a) residue[a] = index % plan.classes[a], index /= plan.classes[a];
      for (int a = 0; a < 3; ++a) {
        const int64_t at = residue[a] + tile[a] * plan.geometry.tile[a] * step[a];
        places_[l][a] = at;
        index = index * space[a] + at;
        least_[a] = l == 0 ? at : std::min(least_[a], at);
        most_[a] = l == 0 ? at : std::max(most_[a], at);
      }
      bytes_[l] = index * row_bytes;
    }
  }

  // The address of each lane's channels at its place plus `offset`, or null where there is none.
  void FindRows(const Space& offset, const char* array, const char** rows) const {
    bool all_exist = true;
    for (int a = 0; a < 3; ++a) {
      all_exist &= least_[a] + offset[a] >= 0 && most_[a] + offset[a] < space_[a];
    }
    const int64_t move = (offset[0] * space_[1] + offset[1]) * space_[2] + offset[2];
    for (int64_t l = 0; l < num_tiles_; ++l) {
      bool exists = all_exist;
      if (!all_exist) {
        exists = true;
        for (int a = 0; a < 3; ++a) {
          const int64_t at = places_[l][a] + offset[a];
          exists &= at >= 0 && at < space_[a];
        }
      }
      rows[l] = exists ? array + (bytes_[l] + move * row_bytes_) : nullptr;
    }
    for (int64_t l = num_tiles_; l < lanes_; ++l) rows[l] = nullptr;
  }

 private:
  const int64_t lanes_;
  const Space space_;
  const int64_t row_bytes_;
  int64_t num_tiles_;
  Space places_[kMaxLanes];
  int64_t bytes_[kMaxLanes];
  Space least_ = {}, most_ = {};  // of the places
};

// Calls visit(rows, rows of the next place, index of the place) for each place of a register tile.
// Rows hold the channels of the part.
template <class Visit>
void ForResultPlaces(const ConvPlan& plan, const LaneTiles& tiles, const char* result,
                     int64_t chunk, const RegisterTile& tile, const Part& part, Visit visit) {
  const LanePlaces lanes(plan, chunk, plan.result_step, plan.result_space,
                         plan.result_channels * tiles.item_bytes);
  const Space& phase = plan.result_phases[part.phase];
  const char* first = result + part.first_row * tiles.item_bytes;
  const int64_t cols = plan.geometry.shape->cols, last = plan.register_places() - 1;
  const char* rows[2][kMaxLanes];
  const auto find = [&](int64_t place) {
    const int64_t known = std::min(place, last);
    Space offset = tile.place;
    offset[1] += known / cols;
    offset[2] += known % cols;
    for (int a = 0; a < 3; ++a) offset[a] = offset[a] * plan.result_step[a] + phase[a];
    lanes.FindRows(offset, first, rows[place % 2]);
  };
  find(0);
  for (int64_t place = 0; place <= last; ++place) {
    find(place + 1);
    visit(rows[place % 2], rows[(place + 1) % 2], place);
  }
}

int64_t PartChannels(const ConvPlan& plan, const Part& part) {
  return std::clamp<int64_t>(plan.result_channels - part.first_row, 0,
                             plan.channel_rows.empty() ? part.num_rows : plan.result_channels);
}

const int32_t* Order(const ConvPlan& plan) {
  return plan.channel_rows.empty() ? nullptr : plan.channel_rows.data();
}

}  // namespace

void PackSource(const ConvPlan& plan, const LaneTiles& tiles, const void* source, int64_t chunk,
                int64_t first, int64_t last, void* packed) {
  const LanePlaces lanes(plan, chunk, plan.source_step, plan.source_space,
                         plan.source_channels * tiles.item_bytes);
  const int64_t vector_bytes = plan.lanes * tiles.sum_bytes;
  const char* rows[2][kMaxLanes];  // of this position and the next
  const auto find = [&](int64_t i) {
    lanes.FindRows(plan.positions[std::min(i, last - 1)].place, static_cast<const char*>(source),
                   rows[i % 2]);
  };
  find(first);
  for (int64_t i = first; i < last; ++i) {
    // The rows lie apart, in short pieces, which no hardware prefetcher follows.
    find(i + 1);
    tiles.pack({reinterpret_cast<const void* const*>(rows[i % 2]),
                reinterpret_cast<const void* const*>(rows[(i + 1) % 2]), plan.source_channels,
                static_cast<char*>(packed) + plan.positions[i].index * vector_bytes,
                plan.channel_stride * plan.lanes, nullptr});
  }
}

int64_t PackedBytes(const ConvPlan& plan, const LaneTiles& tiles) {
  return plan.source_channels * plan.channel_stride * plan.lanes * tiles.sum_bytes;
}

Status PackSource(const ConvPlan& plan, const LaneTiles& tiles, const void* source, int64_t chunk,
                  TaskPool& pool, void* packed) {
  const int64_t positions = plan.positions.size();
  const int64_t pieces = std::min<int64_t>(positions, 8 * pool.num_threads());
  return ParallelFor(pool, pieces, [&](int64_t piece) {
    PackSource(plan, tiles, source, chunk, piece * positions / pieces,
               (piece + 1) * positions / pieces, packed);
  });
}

void PackResult(const ConvPlan& plan, const LaneTiles& tiles, const void* result, int64_t chunk,
                const RegisterTile& register_tile, const Part& part, void* sums, void* exists) {
  const int64_t vector_bytes = plan.lanes * tiles.sum_bytes;
  ForResultPlaces(
      plan, tiles, static_cast<const char*>(result), chunk, register_tile, part,
      [&](const char* const* rows, const char* const* next, int64_t place) {
        tiles.pack({reinterpret_cast<const void* const*>(rows),
                    reinterpret_cast<const void* const*>(next), PartChannels(plan, part),
                    static_cast<char*>(sums) + place * vector_bytes,
                    plan.register_places() * plan.lanes, Order(plan)});
        if (exists == nullptr) return;
        char* bits = static_cast<char*>(exists) + place * vector_bytes;
        for (int64_t l = 0; l < plan.lanes; ++l, bits += tiles.sum_bytes) {
          std::memset(bits, rows[l] == nullptr ? 0 : 0xff, tiles.sum_bytes);
        }
      });
}

void UnpackResult(const ConvPlan& plan, const LaneTiles& tiles, const void* sums, int64_t chunk,
                  const RegisterTile& register_tile, const Part& part, void* result) {
  const int64_t vector_bytes = plan.lanes * tiles.sum_bytes;
  ForResultPlaces(
      plan, tiles, static_cast<const char*>(result), chunk, register_tile, part,
      [&](const char* const* rows, const char* const* next, int64_t place) {
        // The rows are those of the result, which is not const.
        tiles.unpack({static_cast<const char*>(sums) + place * vector_bytes,
                      plan.register_places() * plan.lanes, Order(plan), PartChannels(plan, part),
                      reinterpret_cast<void* const*>(const_cast<char* const*>(rows)),
                      reinterpret_cast<const void* const*>(next)});
      });
}

}  // namespace jaxsparse::cpu
