#include "cpu/conv_plan.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <utility>

#include "cpu/block_pattern.h"
#include "cpu/ceil_div.h"
#include "cpu/column_pattern.h"

namespace jaxsparse::cpu {
namespace {

int64_t FloorDiv(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// One axis of the window, seen from the result.
struct Axis {
  struct Phase {
    int64_t phase;
    int64_t min_shift, span;  // which of its places a result reads: [place + min_shift, .. + span]
  };
  int64_t source_step, result_step, classes;
  int64_t origin;  // of the source's places
  int64_t places;  // of a result plane
  std::vector<Phase> source_phases;
  std::vector<int64_t> result_phases;  // ascending, those that taps meet
  bool leaves_gaps;                    // taps do not meet all
  // By tap: which of the phases, and the shift. No result phase: no result sees a source through
  // it.
  std::vector<int64_t> tap_source, tap_result, tap_shift;
};

// Whether some output sees an input through a tap of an axis.
bool SeesInput(const SparseConv& p, int a, int64_t tap) {
  const int64_t move = tap * p.dilation[a] - p.low[a];
  const int64_t first = std::max<int64_t>(0, -FloorDiv(move, p.strides[a]));  // at or behind 0
  return first < p.y_space[a] && first * p.strides[a] + move < p.x_space[a];
}

Axis MakeAxis(const SparseConv& p, bool gather, int a) {
  const int64_t stride = p.strides[a], taps = p.kernel[a];
  const int64_t space = (gather ? p.y_space : p.x_space)[a];
  Axis axis = {};
  std::vector<int64_t> tap_phase(taps, 0);
  axis.tap_shift.resize(taps);
  if (stride == 1) {
    const int64_t step = taps > 1 ? p.dilation[a] : 1;
    axis.source_step = axis.result_step = step;
    axis.classes = std::min(step, std::max<int64_t>(1, space));
    axis.origin = gather ? -p.low[a] : p.low[a];
    for (int64_t t = 0; t < taps; ++t) axis.tap_shift[t] = gather ? t : -t;
  } else {
    axis.classes = 1;
    axis.source_step = gather ? stride : 1;
    axis.result_step = gather ? 1 : stride;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t move = t * p.dilation[a] - p.low[a], whole = FloorDiv(move, stride);
      tap_phase[t] = move - whole * stride;
      axis.tap_shift[t] = gather ? whole : -whole;
    }
  }
  axis.places = CeilDiv(space, axis.result_step);

  // Without taps that see nothing, which would make the packed source of a small image large, and
  // without phases that no tap meets, which would make the lists of a large stride long.
  std::vector<int64_t> taps_seen;
  std::set<int64_t> phases;
  const auto result_phase = [&](int64_t t) { return gather ? 0 : tap_phase[t]; };
  for (int64_t t = 0; t < taps; ++t) {
    if (!SeesInput(p, a, t)) continue;
    taps_seen.push_back(t);
    phases.insert(result_phase(t));
  }
  if (phases.empty()) phases.insert(0);
  axis.result_phases.assign(phases.begin(), phases.end());
  axis.leaves_gaps = static_cast<int64_t>(phases.size()) < std::min(gather ? 1 : stride, space);

  axis.tap_result.assign(taps, -1);
  axis.tap_source.assign(taps, 0);
  for (const int64_t t : taps_seen) {
    axis.tap_result[t] = std::distance(phases.begin(), phases.find(result_phase(t)));
    const int64_t source_phase = gather ? tap_phase[t] : 0;
    size_t i = 0;
    while (i < axis.source_phases.size() && axis.source_phases[i].phase != source_phase) ++i;
    if (i == axis.source_phases.size()) {
      axis.source_phases.push_back({source_phase, axis.tap_shift[t], 0});
    }
    axis.tap_source[t] = i;
    Axis::Phase& phase = axis.source_phases[i];
    const int64_t last = std::max(phase.min_shift + phase.span, axis.tap_shift[t]);
    phase.min_shift = std::min(phase.min_shift, axis.tap_shift[t]);
    phase.span = last - phase.min_shift;
  }
  if (axis.source_phases.empty()) axis.source_phases.push_back({0, 0, 0});
  return axis;
}

// Calls visit(index) for every index of a box, the last axis first.
template <class Visit>
void ForBox(const Space& box, Visit visit) {
  for (int64_t i = 0; i < box[0]; ++i)
    for (int64_t j = 0; j < box[1]; ++j)
      for (int64_t k = 0; k < box[2]; ++k) visit(Space{i, j, k});
}

class PlanBuilder {
 public:
  PlanBuilder(const SparseConv& problem, int64_t pattern_group, ConvRole role,
              const LaneTiles& tiles, int64_t num_threads)
      : p_(problem),
        tiles_(tiles),
        role_(role),
        num_threads_(num_threads),
        gather_(role == ConvRole::kForward || (role == ConvRole::kWeightGrad && !problem.mirrored)),
        columns_are_results_(role == ConvRole::kWeightGrad ||
                             (role == ConvRole::kInputGrad) == problem.mirrored),
        places_(problem.places + pattern_group * problem.capacity),
        order_(problem.order == nullptr ? nullptr
                                        : problem.order + pattern_group * problem.order_size()) {}

  Status Build(ConvPlan* plan) {
    plan_ = plan;
    Status status = p_.format == WeightFormat::kBlocks ? CheckBlocks() : CheckColumns();
    if (!status.ok()) return status;
    DescribeArrays();
    ChooseColumns();
    status = ChooseTiles();
    if (!status.ok()) return status;
    ListPositions();
    ListEntries();
    return {};
  }

 private:
  Status CheckBlocks() {
    if (p_.block_in <= 0 || p_.block_out <= 0) {
      return Status::InvalidArgument("blocks must not be empty, got blocks of " +
                                     std::to_string(p_.block_in) + " x " +
                                     std::to_string(p_.block_out));
    }
    BlockMatmul matrix;
    matrix.in = p_.num_taps() * p_.depth();
    matrix.out = p_.channels();
    matrix.capacity = p_.capacity;
    matrix.block_in = p_.block_in;
    matrix.block_out = p_.block_out;
    matrix.rows = places_;
    matrix.cols = order_;
    BlockPattern pattern;
    Status status = pattern.Check(matrix, 0);
    if (status.ok()) used_ = pattern.by_column().num_blocks();
    return status;
  }

  Status CheckColumns() {
    Status status =
        CheckPlaces(places_, p_.capacity, p_.num_columns, p_.depth() * p_.num_taps(), &used_);
    if (status.ok() && order_ != nullptr) {
      status = CheckOrder(order_, p_.order_size(), p_.channels());
    }
    return status;
  }

  void DescribeArrays() {
    for (int a = 0; a < 3; ++a) axes_[a] = MakeAxis(p_, gather_, a);
    ConvPlan& plan = *plan_;
    plan.images = p_.batch;
    plan.source_channels = gather_ ? p_.in : p_.out;
    plan.result_channels = gather_ ? p_.out : p_.in;
    plan.source_space = gather_ ? p_.x_space : p_.y_space;
    plan.result_space = gather_ ? p_.y_space : p_.x_space;
    Space phases;
    for (int a = 0; a < 3; ++a) {
      plan.source_step[a] = axes_[a].source_step;
      plan.result_step[a] = axes_[a].result_step;
      plan.classes[a] = axes_[a].classes;
      phases[a] = axes_[a].result_phases.size();
      plan.leaves_gaps |= axes_[a].leaves_gaps;
    }
    ForBox(phases, [&](const Space& index) {
      Space phase;
      for (int a = 0; a < 3; ++a) phase[a] = axes_[a].result_phases[index[a]];
      plan.result_phases.push_back(phase);
    });
  }

  // How many results share their entries, and whether rows of sums are channels in order.
  void ChooseColumns() {
    const int64_t group_channels = std::max<int64_t>(1, p_.channels() / p_.feature_groups);
    const auto divides = [&](int64_t values) {
      if (p_.format == WeightFormat::kBlocks) {
        if (columns_are_results_) {
          return p_.block_out % values == 0 &&
                 (p_.feature_groups == 1 || group_channels % values == 0);
        }
        return p_.block_in % values == 0 && p_.depth() % values == 0;
      }
      if (!columns_are_results_) return values == 1;
      if (p_.width % values != 0) return false;
      if (p_.feature_groups == 1) return true;
      for (int64_t slot = 0; slot < p_.num_columns * p_.width; slot += values) {
        int64_t group = -1;
        for (int64_t v = 0; v < values; ++v) {
          const int64_t channel = SlotChannel(slot + v);
          if (channel >= p_.channels()) continue;
          if (group >= 0 && channel / group_channels != group) return false;
          group = channel / group_channels;
        }
      }
      return true;
    };
    const bool dots = role_ == ConvRole::kWeightGrad;
    shapes_ = dots ? tiles_.dot_shapes : tiles_.shapes;
    num_shapes_ = dots ? tiles_.num_dot_shapes : tiles_.num_shapes;
    values_ = 1;
    for (int64_t i = 0; i < num_shapes_; ++i) {
      if (shapes_[i].values > values_ && divides(shapes_[i].values)) values_ = shapes_[i].values;
    }

    if (dots) {  // columns are channels, in any format
      num_columns_ = p_.channels();
      return;
    }
    const bool has_order = p_.format == WeightFormat::kColumns && order_ != nullptr;
    if (columns_are_results_ && has_order) {
      for (int64_t i = 0; i < p_.order_size(); ++i) {
        in_order_ &= order_[i] == std::min(i, p_.channels());
      }
      in_order_ &= p_.order_size() >= p_.channels();
    }
    const int64_t rows = columns_are_results_ && p_.format == WeightFormat::kColumns
                             ? std::max(p_.num_columns * p_.width, in_order_ ? p_.channels() : 0)
                             : plan_->result_channels;
    num_columns_ = CeilDiv(rows, values_);
    if (!in_order_) {
      plan_->channel_rows.assign(p_.channels(), num_columns_ * values_);
      for (int64_t i = 0; i < p_.order_size(); ++i) {
        if (order_[i] < p_.channels()) plan_->channel_rows[order_[i]] = i;
      }
      ++num_columns_;  // one that is zero, for channels without weights
    }
  }

  Status ChooseTiles() {
    ConvPlan& plan = *plan_;
    const int64_t stored = p_.format == WeightFormat::kBlocks
                               ? p_.capacity * p_.block_in * p_.block_out
                               : p_.capacity * p_.width;
    GeometrySizes sizes;
    sizes.images = plan.images * NumPlaces(plan.classes);
    for (int a = 0; a < 3; ++a) sizes.space[a] = axes_[a].places;
    ForBox(SourcePlanes(), [&](const Space& plane) {
      Space span;
      for (int a = 0; a < 3; ++a) span[a] = axes_[a].source_phases[plane[a]].span;
      sizes.spans.push_back(span);
    });
    sizes.source_channels = plan.source_channels;
    sizes.group_channels = std::max<int64_t>(1, plan.source_channels / p_.feature_groups);
    sizes.columns = num_columns_ * static_cast<int64_t>(plan.result_phases.size());
    sizes.entries = CeilDiv(stored, values_);
    sizes.values = values_;
    sizes.lanes = tiles_.lanes;
    sizes.sum_bytes = tiles_.sum_bytes;
    sizes.num_threads = num_threads_;
    sizes.dots = role_ == ConvRole::kWeightGrad;
    plan.geometry = ChooseGeometry(sizes, shapes_, num_shapes_);
    if (plan.geometry.shape == nullptr || stored > INT32_MAX) {
      return Status::InvalidArgument(
          "the weight and its input are too large for the kernels; use "
          "implementation=\"xla\"");
    }
    if (!in_order_) plan.geometry.part_columns = num_columns_;
    plan.lanes = tiles_.lanes;
    for (int a = 0; a < 3; ++a) plan.tiles[a] = CeilDiv(axes_[a].places, plan.geometry.tile[a]);
    return {};
  }

  Space SourcePlanes() const {
    Space planes;
    for (int a = 0; a < 3; ++a) planes[a] = axes_[a].source_phases.size();
    return planes;
  }

  // Where place `at` of plane `plane` lies in a packed channel.
  int64_t Packed(const Space& plane, const Space& at) const {
    const Space planes = SourcePlanes();
    const int64_t index = (plane[0] * planes[1] + plane[1]) * planes[2] + plane[2];
    return ((index * box_[0] + at[0]) * box_[1] + at[1]) * box_[2] + at[2];
  }

  void ListPositions() {
    ConvPlan& plan = *plan_;
    const Space planes = SourcePlanes();
    for (int a = 0; a < 3; ++a) {
      box_[a] = plan.geometry.tile[a];
      for (const Axis::Phase& phase : axes_[a].source_phases) {
        box_[a] = std::max(box_[a], plan.geometry.tile[a] + phase.span);
      }
    }
    ForBox(planes, [&](const Space& plane) {
      Space size;
      for (int a = 0; a < 3; ++a) {
        size[a] = plan.geometry.tile[a] + axes_[a].source_phases[plane[a]].span;
      }
      ForBox(size, [&](const Space& at) {
        Space place;
        for (int a = 0; a < 3; ++a) {
          const Axis::Phase& phase = axes_[a].source_phases[plane[a]];
          place[a] =
              axes_[a].origin + (phase.min_shift + at[a]) * axes_[a].source_step + phase.phase;
        }
        plan.positions.push_back({Packed(plane, at), place});
      });
    });
    const int64_t vector_bytes = tiles_.lanes * tiles_.sum_bytes;
    // An odd number of lines: channels would else meet in few sets of the cache.
    plan.channel_stride = (NumPlaces(planes) * NumPlaces(box_)) | 1;
    plan.row_bytes = box_[2] * vector_bytes;
    const LaneShape& shape = *plan.geometry.shape;
    ForBox({plan.geometry.tile[0], plan.geometry.tile[1] / shape.rows,
            plan.geometry.tile[2] / shape.cols},
           [&](const Space& at) {
             const Space place = {at[0], at[1] * shape.rows, at[2] * shape.cols};
             plan.register_tiles.push_back({Packed({0, 0, 0}, place) * vector_bytes, place});
           });
  }

  int64_t SlotChannel(int64_t slot) const {
    return order_ != nullptr ? order_[slot] : std::min(slot, p_.channels());
  }

  // Calls emit(column, tap, source channel, index of the first value) for every entry, in stored
  // order.
  template <class Emit>
  void ForEachEntry(Emit emit) const {
    if (p_.format == WeightFormat::kBlocks) {
      ForEachBlockEntry(emit);
    } else {
      ForEachColumnEntry(emit);
    }
  }

  template <class Emit>
  void ForEachColumnEntry(Emit emit) const {
    const int64_t taps = p_.num_taps(), depth = p_.depth(), line = depth * taps;
    const int64_t group_channels = std::max<int64_t>(1, p_.channels() / p_.feature_groups);
    // What is at a place of a column.
    std::vector<int32_t> channel_at(line), tap_at(line);
    for (int64_t c = 0, i = 0; c < depth; ++c) {
      for (int64_t t = 0; t < taps; ++t, ++i) channel_at[i] = c, tap_at[i] = t;
    }
    for (int64_t k = 0, column = 0; k < used_; ++k) {
      while (places_[k] >= (column + 1) * line) ++column;
      const int64_t at = places_[k] - column * line;
      const int64_t c = channel_at[at], t = tap_at[at];
      if (columns_are_results_ && role_ != ConvRole::kWeightGrad) {
        for (int64_t s = 0; s < p_.width; s += values_) {
          const int64_t slot = column * p_.width + s;
          int64_t first = 0;  // of the source channels that the slots read
          if (p_.feature_groups > 1) {
            int64_t channel = p_.channels();
            for (int64_t v = 0; v < values_; ++v) {
              channel = std::min(channel, SlotChannel(slot + v));
            }
            if (channel == p_.channels()) channel = 0;
            first = channel / group_channels * depth;
          }
          emit(slot / values_, t, first + c, k * p_.width + s);
        }
      } else {
        for (int64_t s = 0; s < p_.width; ++s) {
          const int64_t channel = SlotChannel(column * p_.width + s);
          if (channel == p_.channels()) continue;
          const int64_t across = channel / group_channels * depth + c;
          const int64_t value = k * p_.width + s;
          if (columns_are_results_) {
            emit(channel, t, across, value);
          } else {
            emit(across, t, channel, value);
          }
        }
      }
    }
  }

  template <class Emit>
  void ForEachBlockEntry(Emit emit) const {
    const int64_t depth = p_.depth(), lines = p_.num_taps() * depth;
    const int64_t group_channels = std::max<int64_t>(1, p_.channels() / p_.feature_groups);
    const int64_t row_step = columns_are_results_ ? 1 : values_;
    const int64_t col_step = columns_are_results_ ? values_ : 1;
    for (int64_t k = 0; k < used_; ++k) {
      const int64_t first_line = places_[k] * p_.block_in, first = order_[k] * p_.block_out;
      for (int64_t i = 0; i < p_.block_in && first_line + i < lines; i += row_step) {
        const int64_t t = (first_line + i) / depth, c = (first_line + i) % depth;
        for (int64_t j = 0; j < p_.block_out && first + j < p_.channels(); j += col_step) {
          const int64_t channel = first + j;
          const int64_t across = channel / group_channels * depth + c;
          const int64_t value = (k * p_.block_in + i) * p_.block_out + j;
          if (columns_are_results_) {
            emit(channel / values_, t, across, value);
          } else {
            emit(across / values_, t, channel, value);
          }
        }
      }
    }
  }

  void ListEntries() {
    ConvPlan& plan = *plan_;
    const int64_t vector_bytes = tiles_.lanes * tiles_.sum_bytes;
    const int64_t phases = plan.result_phases.size();
    const int64_t part_columns = plan.geometry.part_columns;
    const int64_t parts = CeilDiv(num_columns_, part_columns);
    const int64_t blocks =
        std::max<int64_t>(1, CeilDiv(plan.source_channels, plan.geometry.block_channels));

    // By stored tap: its phase of the result, and bytes of its place in a packed channel.
    const int64_t taps = p_.num_taps();
    std::vector<int32_t> tap_phase(taps), tap_bytes(taps);
    ForBox(p_.kernel, [&](const Space& tap) {
      const int64_t conv_tap = (tap[0] * p_.kernel[1] + tap[1]) * p_.kernel[2] + tap[2];
      const int64_t t = p_.stored_tap(conv_tap);
      Space plane, at;
      int64_t phase = 0;
      for (int a = 0; a < 3; ++a) {
        const int64_t axis_phase = axes_[a].tap_result[tap[a]];
        if (axis_phase < 0) {
          tap_phase[t] = -1;
          return;
        }
        plane[a] = axes_[a].tap_source[tap[a]];
        at[a] = axes_[a].tap_shift[tap[a]] - axes_[a].source_phases[plane[a]].min_shift;
        phase = phase * static_cast<int64_t>(axes_[a].result_phases.size()) + axis_phase;
      }
      tap_phase[t] = phase;
      tap_bytes[t] = Packed(plane, at) * vector_bytes;
    });

    // Segments in the order in which they are computed: by phase, part, block, column.
    std::vector<int64_t> column_base(num_columns_), column_step(num_columns_);
    for (int64_t column = 0; column < num_columns_; ++column) {
      const int64_t first = column / part_columns * part_columns;
      column_base[column] = first * blocks + column - first;
      column_step[column] = std::min(part_columns, num_columns_ - first);
    }
    const int64_t block_channels = plan.geometry.block_channels;
    const int64_t channel_bytes = plan.channel_stride * vector_bytes;
    plan.block_bytes = block_channels * channel_bytes;
    std::vector<int32_t> block_of(plan.source_channels), bytes_in_block(plan.source_channels);
    for (int64_t c = 0; c < plan.source_channels; ++c) {
      block_of[c] = c / block_channels;
      bytes_in_block[c] = c % block_channels * channel_bytes;
    }
    const auto segment_of = [&](int64_t column, int64_t phase, int64_t source) {
      return phase * num_columns_ * blocks + column_base[column] +
             block_of[source] * column_step[column];
    };

    const bool stored_order =
        p_.format == WeightFormat::kColumns && columns_are_results_ && values_ == p_.width &&
        phases == 1 && std::find(tap_phase.begin(), tap_phase.end(), -1) == tap_phase.end() &&
        (role_ != ConvRole::kWeightGrad || (blocks == 1 && order_ == nullptr));
    std::vector<int32_t> counts(phases * num_columns_ * blocks + 1, 0);
    ForEachEntry([&](int64_t column, int64_t t, int64_t source, int64_t) {
      if (tap_phase[t] >= 0) ++counts[segment_of(column, tap_phase[t], source)];
    });
    std::vector<int32_t> begins(counts.size());
    int32_t begin = 0;
    for (size_t i = 0; i < counts.size(); ++i) begins[i] = begin, begin += counts[i];
    plan.num_entries = begin;

    // Offsets in the order in which they are read. Weights in that order too, except where they
    // can stay as they are stored: there the segments of a column follow each other.
    std::vector<int32_t> weight_begins = begins;
    if (stored_order) {
      int32_t first = 0;
      for (int64_t column = 0; column < num_columns_; ++column) {
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t segment = column_base[column] + block * column_step[column];
          weight_begins[segment] = first;
          first += counts[segment];
        }
      }
    } else {
      plan.value_indices.resize(plan.num_entries);
      plan.value_stride =
          p_.format == WeightFormat::kBlocks && !columns_are_results_ ? p_.block_out : 1;
    }
    plan.offsets.resize(plan.num_entries + kOffsetsAhead);
    std::vector<int32_t> next = begins;
    ForEachEntry([&](int64_t column, int64_t t, int64_t source, int64_t value) {
      if (tap_phase[t] < 0) return;
      const int32_t at = next[segment_of(column, tap_phase[t], source)]++;
      plan.offsets[at] = bytes_in_block[source] + tap_bytes[t];
      if (!stored_order) plan.value_indices[at] = value;
    });

    std::vector<bool> started;
    for (int64_t phase = 0; phase < phases; ++phase) {
      for (int64_t index = 0; index < parts; ++index) {
        const int64_t first = index * part_columns;
        const int64_t columns = std::min(part_columns, num_columns_ - first);
        Part part;
        part.phase = phase;
        part.first_row = first * values_;
        part.num_rows = columns * values_;
        started.assign(columns, false);
        const int64_t base = (phase * num_columns_ + first) * blocks;
        for (int64_t block = 0; block < blocks; ++block) {
          part.segments.push_back(plan.segments.size());
          for (int64_t column = 0; column < columns; ++column) {
            const int64_t at = base + block * columns + column;
            const bool last_chance = block == blocks - 1 && !started[column];
            if (counts[at] == 0 && !last_chance) continue;
            plan.segments.push_back({begins[at], counts[at], weight_begins[at],
                                     static_cast<int32_t>(column * values_),
                                     started[column] ? 0 : 1});
            started[column] = true;
          }
        }
        part.segments.push_back(plan.segments.size());
        plan.max_part_rows = std::max(plan.max_part_rows, part.num_rows);
        plan.parts.push_back(std::move(part));
      }
    }
  }

  const SparseConv& p_;
  const LaneTiles& tiles_;
  const ConvRole role_;
  const int64_t num_threads_;
  const bool gather_;               // the result is y
  const bool columns_are_results_;  // else the stored channels are the source's
  const int32_t* const places_;
  const int32_t* const order_;

  ConvPlan* plan_ = nullptr;
  int64_t used_ = 0;  // places
  Axis axes_[3];
  const LaneShape* shapes_ = nullptr;
  int64_t num_shapes_ = 0;
  int64_t values_ = 1;
  bool in_order_ = true;
  int64_t num_columns_ = 0;  // of a phase
  Space box_ = {1, 1, 1};    // of a packed plane
};

}  // namespace

bool ConvPlan::covers_exactly() const {
  bool exactly = true;
  for (int a = 0; a < 3; ++a) {
    const int64_t last = classes[a] - 1 + (tiles[a] * geometry.tile[a] - 1) * result_step[a] +
                         result_phases.back()[a];
    exactly &= last < result_space[a];
  }
  return exactly;
}

int64_t ConvPlan::bytes() const {
  int64_t total = sizeof(ConvPlan);
  for (const auto* list : {&offsets, &value_indices, &channel_rows}) {
    total += list->capacity() * sizeof(int32_t);
  }
  total += segments.capacity() * sizeof(Segment);
  total += positions.capacity() * sizeof(PackedPosition);
  total += register_tiles.capacity() * sizeof(RegisterTile);
  for (const Part& part : parts) {
    total += sizeof(Part) + part.segments.capacity() * sizeof(int64_t);
  }
  return total;
}

Status MakeConvPlan(const SparseConv& problem, int64_t pattern_group, ConvRole role,
                    const LaneTiles& tiles, int64_t num_threads, ConvPlan* plan) {
  return PlanBuilder(problem, pattern_group, role, tiles, num_threads).Build(plan);
}

SparseConv Canonical(const SparseConv& problem) {
  const bool one_place = problem.num_taps() == 1 && problem.strides == Space{1, 1, 1} &&
                         problem.low == Space{0, 0, 0} && problem.x_space == problem.y_space;
  SparseConv canonical = problem;
  if (one_place) {
    canonical.x_space = canonical.y_space = {1, 1, problem.batch * NumPlaces(problem.x_space)};
    canonical.batch = 1;
    canonical.dilation = {1, 1, 1};
  }
  return canonical;
}

}  // namespace jaxsparse::cpu
