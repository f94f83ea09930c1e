// Which places of the two sides of a convolution meet through which tap, and which take part.
#pragma once
#include <cstdint>
#include <vector>

#include "core/places_conv.h"
#include "cpu/place_tiles.h"

namespace jaxsparse::cpu {

// One side of the problem, of one group.
struct PlaceSide {
  Space space;
  const int32_t* counts;  // [batch, *space]; null: all places take part

  int64_t rows(int64_t batch) const { return batch * space[0] * space[1]; }
};

// Places that take part, by rows (all axes but the last).
struct ActivePlaces {
  const int64_t* begin;  // [rows + 1]
  const int32_t* last;   // coordinates along the last axis

  int64_t size(int64_t row) const { return begin[row + 1] - begin[row]; }
};

// The pairs of places of a source and a target that meet.
class PlaceMap {
 public:
  // `from_x`: whether x is the source and y the target.
  PlaceMap(const PlacesConv& problem, bool from_x);

  // Writes the pairs through `tap` whose target is in rows [begin, end), with targets counted from
  // the first of these rows; returns how many. Of source and target one at least has counts; what
  // counts as zero is in no pair. One pair more than there are targets may be written. `active` are
  // the places of `by_source ? source : target`.
  int64_t ListPairs(int64_t tap, int64_t begin, int64_t end, const PlaceSide& source,
                    const PlaceSide& target, const ActivePlaces& active, bool by_source,
                    PlacePair* pairs) const;

  // The source that `target` meets through a tap along an axis, or -1.
  int64_t SourceOf(int axis, int64_t tap, int64_t target) const {
    return source_of_[axis][tap * target_space_[axis] + target];
  }
  // And the target that a source meets.
  int64_t TargetOf(int axis, int64_t tap, int64_t source) const {
    return target_of_[axis][tap * source_space_[axis] + source];
  }
  // [tap along the last axis][target along it]: the source that it meets, or -1.
  const int32_t* SourcesOfRow() const { return source_of_[2].data(); }
  // [tap along the last axis][source along it]: the target that it meets, or -1.
  const int32_t* TargetsOfRow() const { return target_of_[2].data(); }
  // The row of the source that a row of the target meets through `tap`, or -1. Rows are counted
  // over all images.
  int64_t SourceRow(const Space& tap, int64_t row) const {
    const int64_t image_rows = target_space_[0] * target_space_[1];
    const int64_t image = row / image_rows, within = row % image_rows;
    const int64_t z = SourceOf(0, tap[0], within / target_space_[1]);
    const int64_t y = SourceOf(1, tap[1], within % target_space_[1]);
    return z < 0 || y < 0 ? -1 : (image * source_space_[0] + z) * source_space_[1] + y;
  }
  // The coordinates of a tap.
  Space Tap(int64_t tap) const {
    return {tap / (kernel_[1] * kernel_[2]), tap / kernel_[2] % kernel_[1], tap % kernel_[2]};
  }

 private:
  Space kernel_, source_space_, target_space_;
  std::vector<int32_t> source_of_[3], target_of_[3];  // [tap][place]
};

}  // namespace jaxsparse::cpu
