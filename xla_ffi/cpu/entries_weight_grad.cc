#include "cpu/entries_weight_grad.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

// A strip of what a tile meets: in L1, or nearly so. Longer lists make up for what falls out of it:
// between 26 and 64 KiB the time was the same to 10 %, with 64 and 128 channels and 5 to 30 %
// nonzeros.
constexpr int64_t kStripBytes = 40 << 10;
// Where a dilated window does not let a tile be so small, up to this much.
constexpr int64_t kLargestStripBytes = 128 << 10;
// Of a piece: its sums stay in L2, beside its strips.
constexpr int64_t kPieceSumBytes = 640 << 10, kPieceRowBytes = 512;
constexpr int64_t kPieceChannels = 128, kFewestChannels = 16;
constexpr int64_t kLineBytes = 64;
// More targets than a panel takes, and few enough that products of sizes do not overflow.
constexpr int64_t kTooFar = 1 << 20;
// With larger strides of x, each phase has few places, and lists are short.
constexpr int64_t kLargestStride = 8;

int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// An axis as the source sees it: through each tap of its class, a place meets the target
// base(place) - steps[tap]. With strides, places of x have a class for each phase, those of y one.
struct Axis {
  int64_t size, targets, classes, scale, low;
  std::vector<std::vector<int64_t>> taps;  // of each class
  std::vector<int64_t> steps;
  int64_t least_step, greatest_step;

  Axis(const PlacesConv& p, bool from_x, int axis)
      : size((from_x ? p.x_space : p.y_space)[axis]),
        targets((from_x ? p.y_space : p.x_space)[axis]),
        classes(from_x ? p.strides[axis] : 1),
        scale(from_x ? 1 : p.strides[axis]),
        low(from_x ? p.low[axis] : 0),
        taps(classes),
        steps(p.kernel[axis]) {
    for (int64_t tap = 0; tap < p.kernel[axis]; ++tap) {
      const int64_t distance = tap * p.dilation[axis];
      taps[distance % classes].push_back(tap);
      steps[tap] = from_x ? distance / classes : p.low[axis] - distance;
    }
    least_step = *std::min_element(steps.begin(), steps.end());
    greatest_step = *std::max_element(steps.begin(), steps.end());
  }

  int64_t base(int64_t place) const { return FloorDiv((place + low) * scale, classes); }
  // The first place of a class from `place` on; the next are `classes` apart.
  int64_t First(int64_t place, int64_t its_class) const {
    const int64_t phase = place + low - FloorDiv(place + low, classes) * classes;
    return place + (its_class - phase + classes) % classes;
  }
  // Targets from the first to the last that so many neighbours may meet.
  int64_t Extent(int64_t places) const {
    const int64_t bases = scale > 1 ? (places - 1) * scale : CeilDiv(places - 1, classes);
    return std::min(kTooFar, bases + 1 + greatest_step - least_step);
  }
};

// How the source is cut: into tiles of planes of rows of places. It depends on nothing but sizes,
// as the order of the sums does.
struct Cut {
  int64_t vectors;  // of a strip
  int64_t planes, rows, width;
  int64_t panel_rows, panel_width;  // of targets, for each plane

  int64_t places() const { return planes * rows * width; }
  int64_t panel_places() const { return planes * panel_rows * panel_width; }
};

Cut CutFor(const Axis& y, const Axis& x, int64_t planes, int64_t target_channels,
           const EntryGradTiles& entries) {
  Cut cut = {};
  size_t taps = 0;
  for (const auto& of_y : y.taps)
    for (const auto& of_x : x.taps) taps = std::max(taps, of_y.size() * of_x.size());
  // About eight sums hide their latency.
  cut.vectors = taps > 4 ? 1 : taps > 2 ? 2 : 4;
  const int64_t vectors = CeilDiv(target_channels, entries.lanes);
  while (vectors % cut.vectors != 0) cut.vectors /= 2;
  const int64_t fitting = kStripBytes / (cut.vectors * entries.lanes * entries.sum_bytes);
  double best = 0;
  for (int64_t width = std::min(x.size, fitting); width > 0; width = width * 3 / 4) {
    const int64_t even = CeilDiv(x.size, CeilDiv(x.size, width));
    const int64_t panel_width = x.Extent(even);
    int64_t rows = 1;
    while (rows < y.size && y.Extent(rows + 1) * panel_width <= fitting) ++rows;
    rows = CeilDiv(y.size, CeilDiv(y.size, rows));
    // What is packed that belongs to no place of the tile is packed for its neighbours, too. But
    // tiles of whole rows lie in memory one after the other.
    const double share = static_cast<double>(rows * even) / (y.Extent(rows) * panel_width);
    if (share <= 1.25 * best) continue;
    best = share;
    cut.width = even;
    cut.rows = rows;
    cut.panel_width = panel_width;
    cut.panel_rows = y.Extent(rows);
  }
  cut.planes = 1;
  if (cut.rows == y.size && cut.width == x.size)
    cut.planes = std::clamp<int64_t>(fitting / (cut.panel_rows * cut.panel_width), 1, planes);
  return cut;
}

class Gradient {
 public:
  // To ask whether it pays, neither target nor result.
  Gradient(const CountedSource& source, const EntryGradTiles& entries, const char* target = nullptr,
           char* result = nullptr)
      : source_(source),
        target_(target),
        result_(result),
        p_(source.problem),
        entries_(entries),
        source_space_(source.space()),
        target_space_(source.target_space()),
        source_stride_(source.channels()),
        target_stride_(source.target_channels()),
        channels_(source_stride_ / p_.feature_groups),
        results_(target_stride_ / p_.feature_groups),
        planes_(p_.batch * source_space_[0]),
        y_(p_, source.from_x, 1),
        x_(p_, source.from_x, 2),
        cut_(CutFor(y_, x_, planes_, results_, entries)),
        width_(cut_.vectors * entries.lanes),
        strips_(CeilDiv(results_, width_)),
        row_bytes_(width_ * entries.sum_bytes),
        strip_bytes_(cut_.panel_places() * row_bytes_),
        taps_(p_.kernel[1] * p_.kernel[2]) {
    if (strip_bytes_ > kLargestStripBytes) return;
    int64_t slot = 0;
    for (int64_t y = 0; y < y_.classes; ++y)
      for (int64_t x = 0; x < x_.classes; ++x) {
        Class its = {y, x, slot, {}, {}};
        for (const int64_t y_tap : y_.taps[y])
          for (const int64_t x_tap : x_.taps[x]) {
            its.taps.push_back({0, y_tap, x_tap});
            its.tap_bytes.push_back(((y_.greatest_step - y_.steps[y_tap]) * cut_.panel_width +
                                     x_.greatest_step - x_.steps[x_tap]) *
                                    row_bytes_);
          }
        slot += its.taps.size();
        if (!its.taps.empty()) classes_.push_back(std::move(its));
      }
  }

  bool Pays() const {
    if (strip_bytes_ > kLargestStripBytes) return false;
    const double tiles = 1.0 * CeilDiv(planes_, cut_.planes) * CeilDiv(y_.size, cut_.rows) *
                         CeilDiv(x_.size, cut_.width);
    double passes = 0;
    for (const Class& its : classes_) passes += CeilDiv(its.taps.size(), TapsAtOnce(its));
    // In vectors multiplied at peak. A list is begun and ended, its sums are read and written; a
    // vector of the source is listed, one of the target packed, both from beyond L2.
    const double vectors = CeilDiv(results_, entries_.lanes);
    const double taps = 1.0 * p_.num_taps() / (y_.classes * x_.classes);
    const double sums = 2.0 * taps_ * cut_.vectors;
    const double lists = tiles * p_.kernel[0] * source_stride_ * strips_;
    const double share = 1.0 * classes_.size() / (y_.classes * x_.classes);
    const double listed = share * source_.active * source_stride_ / entries_.lanes;
    const double packed = tiles * p_.kernel[0] * cut_.panel_places() * vectors * p_.feature_groups *
                          CeilDiv(channels_, kPieceChannels);
    const double cost = 1.3 * source_.nonzeros * taps * vectors + lists * (30 * passes + sums) +
                        20.0 * listed + 6.0 * packed;
    // Rows of channels run at some 75 % of peak.
    return cost < source_.active * channels_ * p_.feature_groups * taps * vectors / 0.75;
  }

  Status Run(const PlaceMap& map, const Tiles& tiles, TaskPool& pool) const {
    // Of a piece. More channels pack less, more strips list less.
    int64_t channels = std::min(kPieceChannels, channels_);
    int64_t strips = std::min(strips_, std::max<int64_t>(1, kPieceRowBytes / row_bytes_));
    while (channels > kFewestChannels && channels * strips * taps_ * row_bytes_ > kPieceSumBytes)
      channels = CeilDiv(channels, int64_t{2});
    const auto pieces = [&] {
      return p_.feature_groups * p_.kernel[0] * CeilDiv(channels_, channels) *
             CeilDiv(strips_, strips);
    };
    const int64_t wanted = pool.num_threads() > 1 ? 2 * pool.num_threads() : 1;
    while (pieces() < wanted && (channels > kFewestChannels || strips > 1)) {
      int64_t& longer = channels > kFewestChannels && channels >= 8 * strips ? channels : strips;
      longer = CeilDiv(longer, int64_t{2});
    }
    const int64_t channel_parts = CeilDiv(channels_, channels);
    const int64_t strip_parts = CeilDiv(strips_, strips);
    return ParallelFor(pool, pieces(), [&](int64_t index) {
      Piece piece = {};
      piece.strip = index % strip_parts * strips;
      piece.strips = std::min(strips, strips_ - piece.strip);
      piece.channel = index / strip_parts % channel_parts * channels;
      piece.channels = std::min(channels, channels_ - piece.channel);
      index /= strip_parts * channel_parts;
      piece.tap = index % p_.kernel[0];
      piece.feature_group = index / p_.kernel[0];
      RunPiece(piece, map, tiles);
    });
  }

 private:
  // Places that meet targets through the same taps. Their sums follow each other from `slot` on.
  struct Class {
    int64_t y, x, slot;
    std::vector<Space> taps;
    std::vector<int64_t> tap_bytes;  // in the panel
  };

  // Some channels by some strips of results, through a plane of taps.
  struct Piece {
    int64_t channel, channels, strip, strips, tap, feature_group;
  };
  struct Tile {
    int64_t plane, planes, row, rows, col, cols;
    int64_t first_row, first_col;  // of the targets in the panel
  };

  // What a piece holds.
  //   panel  [strip][plane][panel row][panel place][width]
  //   sums   [strip][channel][slot][width]
  struct Memory {
    char *panel, *sums;
    ChannelLists lists;
    void* more_values;  // room for as much as the lists have
    int32_t* more_offsets;
    int64_t* places;
    int32_t* offsets;
    int32_t* more_sizes;
  };

  // What the next tile needs, to fetch while this one is multiplied.
  struct Ahead {
    const char* memory;
    int64_t lines;
  };

  int64_t TapsAtOnce(const Class& its) const {
    const int64_t taps = its.taps.size();
    return CeilDiv(taps, CeilDiv(taps, EntryGradTiles::MaxTaps(cut_.vectors)));
  }

  Memory Allocate(const Piece& piece) const {
    Memory memory = {};
    ChannelLists& lists = memory.lists;
    // Not a multiple of 32: lists that begin in the same sets of the cache would push out each
    // other.
    lists.room = CeilDiv(cut_.places() + entries_.lanes, int64_t{32}) * 32 + 16;
    lists.channels = piece.channels;
    const int64_t entries = piece.channels * lists.room, places = cut_.places() + 1;
    const int64_t bytes = piece.strips * strip_bytes_ + 2 * entries * (entries_.sum_bytes + 4) +
                          8 * piece.channels + places * 12;
    memory.panel = static_cast<char*>(Scratch(ScratchUse::kPieceWeights, bytes));
    lists.values = memory.panel + piece.strips * strip_bytes_;
    memory.more_values = static_cast<char*>(lists.values) + entries * entries_.sum_bytes;
    memory.places = reinterpret_cast<int64_t*>(static_cast<char*>(memory.more_values) +
                                               entries * entries_.sum_bytes);
    lists.its_offsets = reinterpret_cast<int32_t*>(memory.places + places);
    memory.more_offsets = lists.its_offsets + entries;
    lists.sizes = memory.more_offsets + entries;
    memory.more_sizes = lists.sizes + piece.channels;
    memory.offsets = memory.more_sizes + piece.channels;
    lists.places = memory.places;
    lists.offsets = memory.offsets;
    const int64_t sums = piece.strips * piece.channels * taps_ * row_bytes_;
    memory.sums = static_cast<char*>(Scratch(ScratchUse::kPieceSums, sums + kLineBytes));
    std::memset(memory.sums, 0, sums);
    return memory;
  }

  void RunPiece(const Piece& piece, const PlaceMap& map, const Tiles& tiles) const {
    const Memory memory = Allocate(piece);
    Tile tile = {};
    for (tile.plane = 0; tile.plane < planes_; tile.plane += cut_.planes) {
      tile.planes = std::min(cut_.planes, planes_ - tile.plane);
      for (tile.row = 0; tile.row < y_.size; tile.row += cut_.rows) {
        tile.rows = std::min(cut_.rows, y_.size - tile.row);
        tile.first_row = y_.base(tile.row) - y_.greatest_step;
        for (tile.col = 0; tile.col < x_.size; tile.col += cut_.width) {
          tile.cols = std::min(cut_.width, x_.size - tile.col);
          tile.first_col = x_.base(tile.col) - x_.greatest_step;
          RunTile(piece, tile, map, tiles, memory);
        }
      }
    }
    Store(piece, tiles, memory);
  }

  void RunTile(const Piece& piece, const Tile& tile, const PlaceMap& map, const Tiles& tiles,
               const Memory& memory) const {
    Pack(piece, tile, map, tiles, memory);
    ChannelLists lists = memory.lists;
    lists.source_stride = source_stride_;
    lists.source = source_.data + (tile.plane * y_.size * x_.size * source_stride_ +
                                   piece.feature_group * channels_ + piece.channel) *
                                      tiles.item_bytes;
    Ahead ahead[2] = {SourceAhead(piece, tile, tiles), TargetAhead(piece, tile, map, tiles)};
    for (const Class& its : classes_) {
      lists.num_places = ListPlaces(piece, tile, its, map, memory);
      if (lists.num_places == 0) continue;
      const bool has_nonfinite = entries_.list(lists);
      Multiply(piece, memory, lists, its.tap_bytes.data(), its.taps.size(), its.slot, ahead);
      if (has_nonfinite) AddNonfinite(piece, tile, its, lists, memory);
    }
  }

  // The target's plane that a plane of the source meets, or -1.
  int64_t TargetPlane(const Piece& piece, int64_t plane, const PlaceMap& map) const {
    const int64_t z = map.TargetOf(0, piece.tap, plane % source_space_[0]);
    return z < 0 ? -1 : plane / source_space_[0] * target_space_[0] + z;
  }

  // What the tile may meet, and zeros where there is nothing.
  void Pack(const Piece& piece, const Tile& tile, const PlaceMap& map, const Tiles& tiles,
            const Memory& memory) const {
    const int64_t left = std::clamp<int64_t>(-tile.first_col, 0, cut_.panel_width);
    const int64_t right = std::clamp<int64_t>(x_.targets - tile.first_col, left, cut_.panel_width);
    ColumnPanel from = {};
    from.source_stride = target_stride_;
    from.depth = right - left;
    from.cols = results_ - piece.strip * width_;
    from.width = width_;
    from.parts = piece.strips;
    from.part_stride = strip_bytes_ / entries_.sum_bytes;
    const int64_t channel = piece.feature_group * results_ + piece.strip * width_;
    const int64_t panel_row_bytes = cut_.panel_width * row_bytes_;
    for (int64_t row = 0; row < tile.planes * cut_.panel_rows; ++row) {
      const int64_t plane = TargetPlane(piece, tile.plane + row / cut_.panel_rows, map);
      const int64_t y = tile.first_row + row % cut_.panel_rows;
      const bool exists = plane >= 0 && y >= 0 && y < y_.targets && left < right;
      char* to = memory.panel + row * panel_row_bytes;
      for (int64_t strip = 0; strip < piece.strips; ++strip) {
        char* of_strip = to + strip * strip_bytes_;
        std::memset(of_strip, 0, exists ? left * row_bytes_ : panel_row_bytes);
        if (exists)
          std::memset(of_strip + right * row_bytes_, 0, panel_row_bytes - right * row_bytes_);
      }
      if (!exists) continue;
      const int64_t place = (plane * y_.targets + y) * x_.targets + tile.first_col + left;
      from.source = target_ + (place * target_stride_ + channel) * tiles.item_bytes;
      from.panel = to + left * row_bytes_;
      entries_.pack(from);
    }
  }

  // The active places of a class, and where what they meet begins; returns how many.
  int64_t ListPlaces(const Piece& piece, const Tile& tile, const Class& its, const PlaceMap& map,
                     const Memory& memory) const {
    const int32_t* counts = source_.counts + tile.plane * y_.size * x_.size;
    int64_t count = 0;
    for (int64_t plane = 0; plane < tile.planes; ++plane) {
      if (TargetPlane(piece, tile.plane + plane, map) < 0) continue;
      for (int64_t y = y_.First(tile.row, its.y); y < tile.row + tile.rows; y += y_.classes) {
        const int64_t row = plane * cut_.panel_rows + y_.base(y) - y_.base(tile.row);
        const int64_t first = (plane * y_.size + y) * x_.size;
        for (int64_t x = x_.First(tile.col, its.x); x < tile.col + tile.cols; x += x_.classes) {
          const int64_t place = row * cut_.panel_width + x_.base(x) - x_.base(tile.col);
          memory.places[count] = first + x;
          memory.offsets[count] = static_cast<int32_t>(place * row_bytes_);
          count += counts[first + x] > 0;
        }
      }
    }
    return count;
  }

  // Adds the lists' products through taps whose sums follow each other from `slot` on.
  void Multiply(const Piece& piece, const Memory& memory, const ChannelLists& lists,
                const int64_t* tap_bytes, int64_t num_taps, int64_t slot, Ahead (&ahead)[2]) const {
    ChannelSums product = {};
    product.values = lists.values;
    product.offsets = lists.its_offsets;
    product.room = lists.room;
    product.sizes = lists.sizes;
    product.channels = piece.channels;
    product.vectors = cut_.vectors;
    product.sums_bytes = taps_ * row_bytes_;
    const int64_t passes = CeilDiv(num_taps, EntryGradTiles::MaxTaps(cut_.vectors));
    const int64_t at_once = CeilDiv(num_taps, passes);
    // All that is ahead, over the products with all strips.
    const int64_t lines = CeilDiv(ahead[0].lines + ahead[1].lines, piece.strips * passes);
    for (int64_t strip = 0; strip < piece.strips; ++strip)
      for (int64_t tap = 0; tap < num_taps; tap += at_once) {
        Ahead& next = ahead[0].lines > 0 ? ahead[0] : ahead[1];
        product.ahead = next.memory;
        product.lines_ahead = CeilDiv(std::min(lines, next.lines), piece.channels);
        next.memory += product.lines_ahead * piece.channels * kLineBytes;
        next.lines -= product.lines_ahead * piece.channels;
        next.lines = std::max<int64_t>(0, next.lines);
        product.panel = memory.panel + strip * strip_bytes_;
        product.tap_bytes = tap_bytes + tap;
        product.num_taps = std::min(at_once, num_taps - tap);
        product.sums = memory.sums + (strip * piece.channels * taps_ + slot + tap) * row_bytes_;
        entries_.sum(product);
      }
  }

  // Where tiles are whole rows and pieces most channels, the next tile's source follows this one's.
  Ahead SourceAhead(const Piece& piece, const Tile& tile, const Tiles& tiles) const {
    if (tile.cols < x_.size || 2 * piece.channels < source_stride_) return {};
    const int64_t place_bytes = source_stride_ * tiles.item_bytes;
    const int64_t row = tile.plane * y_.size + tile.row + tile.planes * tile.rows;
    const int64_t rows = std::min(cut_.planes * cut_.rows, planes_ * y_.size - row);
    return {source_.data + row * x_.size * place_bytes, rows * x_.size * place_bytes / kLineBytes};
  }

  // And so do the targets.
  Ahead TargetAhead(const Piece& piece, const Tile& tile, const PlaceMap& map,
                    const Tiles& tiles) const {
    const int64_t plane = TargetPlane(piece, tile.plane + tile.planes - 1, map);
    if (tile.cols < x_.size || 2 * piece.strips * width_ < target_stride_ || plane < 0) return {};
    const int64_t place_bytes = target_stride_ * tiles.item_bytes;
    const int64_t past = std::clamp<int64_t>(tile.first_row + cut_.panel_rows, 0, y_.targets);
    const int64_t row = plane * y_.targets + past;
    const int64_t step = cut_.panel_rows - (y_.greatest_step - y_.least_step);
    const int64_t rows =
        std::min(cut_.planes * step, p_.batch * target_space_[0] * y_.targets - row);
    return {target_ + row * x_.targets * place_bytes, rows * x_.targets * place_bytes / kLineBytes};
  }

  // Infinities and NaN, which must not meet the zeros around a panel: tap by tap, those that have a
  // target. `finite` are the lists without them, whose memory is used again.
  void AddNonfinite(const Piece& piece, const Tile& tile, const Class& its,
                    const ChannelLists& finite, const Memory& memory) const {
    ChannelLists lists = finite;
    std::vector<int32_t> indices(lists.num_places);
    for (int64_t i = 0; i < lists.num_places; ++i) indices[i] = static_cast<int32_t>(i);
    lists.offsets = indices.data();
    lists.of_nonfinite = true;
    entries_.list(lists);
    ChannelLists met = lists;
    met.values = memory.more_values;
    met.its_offsets = memory.more_offsets;
    met.sizes = memory.more_sizes;
    const int64_t sum_bytes = entries_.sum_bytes;
    for (size_t tap = 0; tap < its.taps.size(); ++tap) {
      for (int64_t c = 0; c < piece.channels; ++c) {
        int32_t count = 0;
        for (int64_t i = 0; i < lists.sizes[c]; ++i) {
          const int64_t from = c * lists.room + i, to = c * met.room + count;
          const int32_t index = lists.its_offsets[from];
          const int64_t place = tile.plane * y_.size * x_.size + lists.places[index];
          const int64_t y = y_.base(place / x_.size % y_.size) - y_.steps[its.taps[tap][1]];
          const int64_t x = x_.base(place % x_.size) - x_.steps[its.taps[tap][2]];
          met.its_offsets[to] = memory.offsets[index];
          std::memcpy(static_cast<char*>(met.values) + to * sum_bytes,
                      static_cast<char*>(lists.values) + from * sum_bytes, sum_bytes);
          count += y >= 0 && y < y_.targets && x >= 0 && x < x_.targets;
        }
        met.sizes[c] = count;
      }
      Ahead nothing[2] = {};
      Multiply(piece, memory, met, &its.tap_bytes[tap], 1, its.slot + tap, nothing);
    }
  }

  void Store(const Piece& piece, const Tiles& tiles, const Memory& memory) const {
    // Rows of the stored weight are the depth: x's channels, or y's where it is mirrored.
    const bool rows_are_sources = source_.from_x != p_.mirrored;
    const int64_t depth = p_.depth(), stride = p_.channels(), sum_bytes = entries_.sum_bytes;
    const int64_t before = piece.feature_group * (stride / p_.feature_groups);
    for (const Class& its : classes_)
      for (size_t i = 0; i < its.taps.size(); ++i) {
        const int64_t tap =
            (piece.tap * p_.kernel[1] + its.taps[i][1]) * p_.kernel[2] + its.taps[i][2];
        const int64_t stored_tap = p_.stored_tap(tap);
        for (int64_t strip = 0; strip < piece.strips; ++strip) {
          const int64_t first = (piece.strip + strip) * width_;
          const int64_t cols = std::min(width_, results_ - first);
          const char* sums =
              memory.sums + (strip * piece.channels * taps_ + its.slot + i) * row_bytes_;
          const int64_t row = rows_are_sources ? piece.channel : first;
          const int64_t col = before + (rows_are_sources ? first : piece.channel);
          char* result = result_ + ((stored_tap * depth + row) * stride + col) * tiles.item_bytes;
          if (rows_are_sources) {
            tiles.store({sums, taps_ * width_, piece.channels, cols, result, stride});
            continue;
          }
          // The lists are done with. They and the room beside them have 96 numbers for each channel
          // or more, a strip has 64.
          char* turned = static_cast<char*>(memory.lists.values);
          for (int64_t c = 0; c < piece.channels; ++c)
            for (int64_t t = 0; t < cols; ++t)
              std::memcpy(turned + (t * piece.channels + c) * sum_bytes,
                          sums + (c * taps_ * width_ + t) * sum_bytes, sum_bytes);
          tiles.store({turned, piece.channels, cols, piece.channels, result, stride});
        }
      }
  }

  const CountedSource& source_;
  const char* const target_;
  char* const result_;
  const PlacesConv& p_;
  const EntryGradTiles& entries_;
  const Space source_space_, target_space_;
  const int64_t source_stride_, target_stride_;  // items from one place to the next
  const int64_t channels_, results_;             // of a feature group
  const int64_t planes_;                         // of the source
  const Axis y_, x_;
  const Cut cut_;
  const int64_t width_, strips_;
  const int64_t row_bytes_, strip_bytes_;  // of a strip of a place, and of a tile
  const int64_t taps_;                     // of a plane of the kernel
  std::vector<Class> classes_;
};

}  // namespace

bool EntriesGradPays(const CountedSource& source, const EntryGradTiles& entries) {
  const PlacesConv& p = source.problem;
  const int64_t targets = NumPlaces(source.target_space()) * source.target_channels();
  if (source.nonzeros == 0 || targets == 0 || p.num_taps() == 0) return false;
  if (source.from_x && std::max(p.strides[1], p.strides[2]) > kLargestStride) return false;
  return Gradient(source, entries).Pays();
}

Status EntriesWeightGrad(const CountedSource& source, const char* target, char* result,
                         const PlaceMap& map, const Tiles& tiles, const EntryGradTiles& entries,
                         TaskPool& pool) {
  return Gradient(source, entries, target, result).Run(map, tiles, pool);
}

}  // namespace jaxsparse::cpu
