// Quantised blocks to the 8-bit grids of integer.h, and one column back.
#include "integer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dequant.h"
#include "pieces.h"
#include "strips.h"

namespace hr {
namespace {

constexpr float kMost = 127.0f;

struct End {
  float unit[kTileN];
  int32_t sum[kTileN];
};

// The largest magnitude; NaN or infinite where a value is.
WIDE float largest(const float* x, long n) {
  uint32_t most = 0;  // of magnitudes, bits are in the order of values, and NaNs the largest
  for (long i = 0; i < n; ++i) most = std::max(most, float_to_bits(x[i]) & 0x7fffffffu);
  return bits_to_float(most);
}

WIDE void round_row(const float* x, long n, float scale, int8_t* out) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's lowest bits are the nearest integer
  for (long i = 0; i < n; ++i) out[i] = static_cast<int8_t>(float_to_bits(x[i] * scale + magic));
}

// [16][64 tiles] integers to tiles of fours.
void place_bytes(const int8_t* rows, int tiles, uint8_t* strip) {
  const long k = static_cast<long>(tiles) * kByteK;
  for (long four = 0; four < k / 4; ++four)
    for (int n = 0; n < kTileN; ++n) memcpy(strip + (four * kTileN + n) * 4, rows + n * k + four * 4, 4);
}

bool pack_bytes(int storage, const uint8_t* const* rows, long columns, int tiles, uint8_t* strip) {
  const long k = static_cast<long>(tiles) * kByteK;
  std::vector<float> floats(columns);
  std::vector<int8_t> bytes(kTileN * k);
  End end = {};
  for (int n = 0; n < kTileN; ++n) {
    if (!rows[n]) continue;
    hr_dequantize(storage, rows[n], floats.data(), columns);
    const float most = largest(floats.data(), columns);
    if (!(most < INFINITY)) return false;
    end.unit[n] = most / kMost;
    round_row(floats.data(), columns, most > 1e-30f ? kMost / most : 0.0f, bytes.data() + n * k);
    for (long i = 0; i < k; ++i) end.sum[n] += bytes[n * k + i];
  }
  place_bytes(bytes.data(), tiles, strip);
  memcpy(strip + integer_end(kBytes, tiles), &end, sizeof end);
  return true;
}

// 32 weights of a column: unit * (q - 8) + middle, at most `most` in magnitude.
struct Group {
  uint8_t quants[32];
  float scale, middle, most;
};

template <int BLOCK, int BYTES, void (*read)(const uint8_t*, int, Piece&), int STORAGE>
INLINE bool read_group(const uint8_t* row, long index, Group& g) {
  constexpr StripFormat f = kStripFormats[STORAGE];
  Piece p = {};
  read(row + index / (BLOCK / 32) * BYTES, static_cast<int>(index % (BLOCK / 32)), p);
  const float d = half_to_float(p.halves[0]), m = half_to_float(p.halves[1]);
  g.scale = f.shared ? d * static_cast<float>(p.bytes[0]) : d;
  const float least = f.shared ? -(m * static_cast<float>(p.bytes[1])) : m;
  g.middle = f.minimum ? least + 8.0f * g.scale : 0.0f;
  memcpy(g.quants, p.quants, 32);
  uint8_t low = 15, high = 0;
  for (int j = 0; j < 32; ++j) {
    low = std::min(low, g.quants[j]);
    high = std::max(high, g.quants[j]);
  }
  const auto value = [&](int q) { return std::fabs(static_cast<float>(q - 8) * g.scale + g.middle); };
  // Scale and middle have to fit their bytes, too.
  g.most = std::max({value(low), value(high), 8.0f * std::fabs(g.scale), std::fabs(g.middle)});
  return std::isfinite(d) && (!f.minimum || std::isfinite(m));
}

// Where a weight is in a tile's nibbles (integer.h).
INLINE int nibble_shift(int four, int n) { return 12 - 8 * (four % 2) - 4 * (n % 4 / 2); }
INLINE int nibble_word(int four, int n, int k) { return four / 2 * 32 + n / 4 * 8 + n % 2 * 4 + k % 4; }

// The low halves of words: bytes 0 to 3, then zeros between them.
INLINE uint64_t spread(uint64_t x) {
  x = (x | x << 16) & 0x0000ffff0000ffff;
  return (x | x << 8) & 0x00ff00ff00ff00ff;
}

// 64 k of 16 columns, 4 bits in a byte, to a tile.
INLINE void place_nibbles(const uint8_t* quants, long stride, uint8_t* tile) {
  for (int pair = 0; pair < 8; ++pair)
    for (int n = 0; n < kTileN; n = n % 4 == 1 ? n + 3 : n + 1) {
      uint64_t a, b;
      memcpy(&a, quants + n * stride + pair * 8, sizeof a);
      memcpy(&b, quants + (n + 2) * stride + pair * 8, sizeof b);
      const uint64_t both = a << 4 | b, words = spread(both & 0xffffffff) << 8 | spread(both >> 32);
      memcpy(tile + 2 * nibble_word(2 * pair, n, 0), &words, sizeof words);
    }
}

INLINE int32_t sum_of(const uint8_t* quants, int scale, int middle) {
  int32_t sum = 0;
  for (int j = 0; j < 32; ++j) sum += std::clamp((((quants[j] - 8) * scale + 4) >> 3) + middle, -128, 127);
  return sum;
}

template <bool (*read)(const uint8_t*, long, Group&)>
WIDE bool pack_nibbles(int format, const uint8_t* const* rows, long columns, int tiles, uint8_t* strip) {
  const long groups = columns / 32, tile_bytes = integer_tile_bytes(format), k = static_cast<long>(tiles) * kByteK;
  std::vector<Group> column(groups);
  std::vector<uint8_t> quants(kTileN * k);
  memset(strip, 0, integer_strip_bytes(format, tiles));
  End end = {};
  for (int n = 0; n < kTileN; ++n) {
    if (!rows[n]) continue;
    float most = 0.0f;
    for (long g = 0; g < groups; ++g) {
      if (!read(rows[n], g, column[g])) return false;
      most = std::max(most, column[g].most);
    }
    end.unit[n] = most / kMost;
    const float inverse = most > 1e-30f ? kMost / most : 0.0f;
    for (long g = 0; g < groups; ++g) {
      uint8_t* tile = strip + g / 2 * tile_bytes + g % 2 * kTileN + n;
      const int scale = static_cast<int>(std::lrint(8.0f * column[g].scale * inverse));
      const int middle = static_cast<int>(std::lrint(column[g].middle * inverse));
      tile[512] = static_cast<uint8_t>(scale);
      if (format == kNibblesPlus) tile[544] = static_cast<uint8_t>(middle);
      end.sum[n] += sum_of(column[g].quants, scale, middle);
      for (int j = 0; j < 32; ++j) quants[n * k + g * 32 + j] = column[g].quants[j] ^ 8;  // two's complement
    }
  }
  for (int t = 0; t < tiles; ++t) place_nibbles(quants.data() + t * kByteK, k, strip + t * tile_bytes);
  memcpy(strip + integer_end(format, tiles), &end, sizeof end);
  return true;
}

// Storage types in headrace.weights.spec.DType's order.
constexpr int kQ4_0 = 4, kQ4_1 = 5, kQ4_K = 8;

}  // namespace

int integer_format(int storage) {
  return storage == kQ4_0 ? kNibbles : storage == kQ4_1 || storage == kQ4_K ? kNibblesPlus : kBytes;
}

bool pack_integer(int storage, const uint8_t* const rows[kTileN], long columns, int tiles, void* strip) {
  uint8_t* out = static_cast<uint8_t*>(strip);
  switch (storage) {
    case kQ4_0: return pack_nibbles<read_group<32, 18, q4_0, 1>>(kNibbles, rows, columns, tiles, out);
    case kQ4_1: return pack_nibbles<read_group<32, 20, q4_1, 2>>(kNibblesPlus, rows, columns, tiles, out);
    case kQ4_K: return pack_nibbles<read_group<256, 144, q4_k, 4>>(kNibblesPlus, rows, columns, tiles, out);
    default: return pack_bytes(storage, rows, columns, tiles, out);
  }
}

void integer_column(const Strip& strip, int tiles, int n, int rows, float scale, float* out) {
  const uint8_t* data = reinterpret_cast<const uint8_t*>(strip.data);
  float unit;
  memcpy(&unit, data + integer_end(strip.format, tiles) + n * sizeof unit, sizeof unit);
  for (int k = 0; k < rows; ++k) {
    const uint8_t* tile = data + k / kByteK * integer_tile_bytes(strip.format);
    const int four = k % kByteK / 4, group = k % kByteK / 32;
    int w = static_cast<int8_t>(tile[(four * kTileN + n) * 4 + k % 4]);
    if (strip.format != kBytes) {
      const int q = static_cast<int16_t>(load_u16(tile + 2 * nibble_word(four, n, k)) << (12 - nibble_shift(four, n))) >> 12;
      w = (q * static_cast<int8_t>(tile[512 + group * kTileN + n]) + 4) >> 3;
      if (strip.format == kNibblesPlus) w = std::clamp(w + static_cast<int8_t>(tile[544 + group * kTileN + n]), -128, 127);
    }
    out[k] = scale * (unit * static_cast<float>(w));
  }
}

}  // namespace hr
