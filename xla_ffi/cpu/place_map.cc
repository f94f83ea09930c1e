#include "cpu/place_map.h"

namespace jaxsparse::cpu {
namespace {

// The place of y that meets place `p` of x through a tap, or -1.
int64_t OutputOf(int64_t p, int64_t tap, const PlacesConv& problem, int axis) {
  const int64_t steps = p + problem.low[axis] - tap * problem.dilation[axis];
  const int64_t q = steps / problem.strides[axis];
  const bool meets = steps >= 0 && steps % problem.strides[axis] == 0;
  return meets && q < problem.y_space[axis] ? q : -1;
}

}  // namespace

PlaceMap::PlaceMap(const PlacesConv& problem, bool from_x)
    : kernel_(problem.kernel),
      source_space_(from_x ? problem.x_space : problem.y_space),
      target_space_(from_x ? problem.y_space : problem.x_space) {
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t x_size = problem.x_space[axis], y_size = problem.y_space[axis];
    std::vector<int32_t> y_of_x(kernel_[axis] * x_size, -1), x_of_y(kernel_[axis] * y_size, -1);
    for (int64_t tap = 0; tap < kernel_[axis]; ++tap)
      for (int64_t p = 0; p < x_size; ++p) {
        const int64_t q = OutputOf(p, tap, problem, axis);
        if (q < 0) continue;
        y_of_x[tap * x_size + p] = static_cast<int32_t>(q);
        x_of_y[tap * y_size + q] = static_cast<int32_t>(p);
      }
    source_of_[axis] = from_x ? x_of_y : y_of_x;
    target_of_[axis] = from_x ? y_of_x : x_of_y;
  }
}

int64_t PlaceMap::ListPairs(int64_t tap, int64_t begin, int64_t end, const PlaceSide& source,
                            const PlaceSide& target, const ActivePlaces& active, bool by_source,
                            PlacePair* pairs) const {
  const Space at = Tap(tap);
  const int32_t* of_active = by_source ? target_of_[2].data() + at[2] * source_space_[2]
                                       : source_of_[2].data() + at[2] * target_space_[2];
  const int64_t source_width = source_space_[2], target_width = target_space_[2];
  if (source_width == 0 || target_width == 0) return 0;  // counts may have no number to read
  int64_t count = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t source_row = SourceRow(at, row);
    if (source_row < 0) continue;
    const int64_t known = by_source ? source_row : row;
    const int64_t first_source = source_row * source_width;
    const int64_t first_target = (row - begin) * target_width;
    // The counts of the other side, where it has any.
    const int32_t* counts = by_source ? target.counts : source.counts;
    if (counts != nullptr) counts += by_source ? row * target_width : first_source;
    for (int64_t i = active.begin[known]; i < active.begin[known + 1]; ++i) {
      const int64_t place = active.last[i], other = of_active[place];
      const int64_t safe = other < 0 ? 0 : other;
      pairs[count].source = first_source + (by_source ? place : other);
      pairs[count].target = first_target + (by_source ? other : place);
      // Without a branch, which would be missed at every other place.
      count += (other >= 0) & (counts == nullptr || counts[safe] > 0);
    }
  }
  return count;
}

}  // namespace jaxsparse::cpu
