// One group of a convolution whose source, x or y, has counts of nonzeros; the target has none.
#pragma once
#include <cstdint>

#include "core/places_conv.h"

namespace jaxsparse::cpu {

struct CountedSource {
  const PlacesConv& problem;
  bool from_x;  // whether x is the source, and y the target
  int64_t group;
  const char* data;       // [batch, *space, channels]
  const int32_t* counts;  // [batch, *space]
  int64_t nonzeros;       // the sum of the counts
  int64_t active;         // places with a nonzero

  const Space& space() const { return from_x ? problem.x_space : problem.y_space; }
  const Space& target_space() const { return from_x ? problem.y_space : problem.x_space; }
  // Of all feature groups.
  int64_t channels() const { return from_x ? problem.in : problem.out; }
  int64_t target_channels() const { return from_x ? problem.out : problem.in; }
  int64_t places() const { return problem.batch * NumPlaces(space()); }
};

}  // namespace jaxsparse::cpu
