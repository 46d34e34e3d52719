// Packs blocks as they are in files into strips. Nothing is rounded: quants and scales only change places.
#include "strips.h"

#include <string.h>

#include "blocks.h"

namespace hr {
namespace {

// 32 consecutive k of one column.
struct Piece {
  uint8_t quants[kTileK];
  uint16_t halves[2];  // d and minimum
  uint8_t bytes[2];    // K formats: the scale and minimum, or both scales, that multiply them
};

// One reader for each storage type: piece `i` of a block.
INLINE void q8_0(const uint8_t* b, int, Piece& p) {
  p.halves[0] = load_u16(b);
  for (int j = 0; j < 32; ++j) p.quants[j] = b[2 + j] ^ 128;
}

INLINE void q4_0(const uint8_t* b, int, Piece& p) {
  p.halves[0] = load_u16(b);
  nibbles(b + 2, p.quants);
}

INLINE void q4_1(const uint8_t* b, int, Piece& p) {
  p.halves[0] = load_u16(b), p.halves[1] = load_u16(b + 2);
  nibbles(b + 4, p.quants);
}

INLINE void q5_0(const uint8_t* b, int, Piece& p) {
  p.halves[0] = load_u16(b);
  five_bits(b + 2, b + 6, p.quants);
  for (int j = 0; j < 32; ++j) p.quants[j] = static_cast<uint8_t>(p.quants[j] + (128 - 16));
}

INLINE void q5_1(const uint8_t* b, int, Piece& p) {
  p.halves[0] = load_u16(b), p.halves[1] = load_u16(b + 2);
  five_bits(b + 4, b + 8, p.quants);
}

INLINE void k_scales(const uint8_t* b, int i, Piece& p) {
  uint8_t scale[8], minimum[8];
  six_bit_scales(b + 4, scale, minimum);
  p.halves[0] = load_u16(b), p.halves[1] = load_u16(b + 2);
  p.bytes[0] = scale[i], p.bytes[1] = minimum[i];
}

INLINE void q4_k(const uint8_t* b, int i, Piece& p) {
  k_scales(b, i, p);
  for (int j = 0; j < 32; ++j) p.quants[j] = (b[16 + 32 * (i / 2) + j] >> 4 * (i % 2)) & 15;
}

INLINE void q5_k(const uint8_t* b, int i, Piece& p) {
  k_scales(b, i, p);
  for (int j = 0; j < 32; ++j)
    p.quants[j] = static_cast<uint8_t>(((b[48 + 32 * (i / 2) + j] >> 4 * (i % 2)) & 15) | ((b[16 + j] >> i & 1) << 4));
}

INLINE void q6_k(const uint8_t* b, int i, Piece& p) {
  const int half = i / 4, run = i % 4;
  const uint8_t *low = b + 64 * half + 32 * (run % 2), *high = b + 128 + 32 * half;
  p.halves[0] = load_u16(b + 208);
  p.bytes[0] = b[192 + 2 * i], p.bytes[1] = b[193 + 2 * i];
  for (int j = 0; j < 32; ++j)
    p.quants[j] = static_cast<uint8_t>(((low[j] >> 4 * (run / 2)) & 15) | ((high[j] >> (2 * run) & 3) << 4));
}

// The quants of a tile into its dwords: a lane takes every other of 4 (8 bits) or 8 (4 bits) consecutive k, from two
// columns in turn.
template <int BITS>
INLINE void place(const uint8_t (*quants)[kTileK], uint32_t* out) {
  constexpr int at = QuantPlace<BITS>::first, run = QuantPlace<BITS>::in_dword;
  constexpr uint64_t every_other = 0x00ff00ff00ff00ff;
  const auto lane = [](uint64_t a, uint64_t b) {
    uint64_t x = (a & every_other) | (b & every_other) << BITS;
    if (BITS == 4) {  // the low bytes of four 16-bit words, side by side
      x = (x | x >> 8) & 0x0000ffff0000ffff;
      x |= x >> 16;
    }
    const uint32_t dword = static_cast<uint32_t>(x);
    return dword << at | dword >> (32 - at);
  };
  for (int n = 0; n < kTileN / 2; ++n)
    for (int v = 0; v < kTileK / run; ++v) {
      uint64_t a = 0, b = 0;
      memcpy(&a, quants[n] + v * run, run);
      memcpy(&b, quants[n + 8] + v * run, run);
      out[v * 16 + 2 * n] = lane(a, b);
      out[v * 16 + 2 * n + 1] = lane(a >> 8, b >> 8);
    }
}

template <int FORMAT, int BLOCK, int BYTES, void (*read)(const uint8_t*, int, Piece&)>
WIDE bool pack(const uint8_t* const* rows, int k_tiles, uint8_t* strip) {
  constexpr StripFormat f = kStripFormats[FORMAT];
  constexpr int pieces = BLOCK / kTileK;  // of a block
  uint8_t* scales = strip + (long)k_tiles * f.quant_bytes();
  uint8_t* shared = scales + (long)k_tiles * f.scale_bytes();
  uint32_t bad = 0;
  for (int t = 0; t < k_tiles; ++t) {
    uint8_t quants[kTileN][kTileK];
    for (int n = 0; n < kTileN; ++n) {
      Piece p = {};
      if (rows[n]) read(rows[n] + (long)(t / pieces) * BYTES, t % pieces, p);
      memcpy(quants[n], p.quants, kTileK);
      uint8_t* halves = f.shared ? shared + (long)(t / kSharing) * f.shared_bytes() : scales + (long)t * f.scale_bytes();
      for (int i = 0; i < 1 + f.minimum; ++i) {
        bad |= (p.halves[i] & 0x7c00u) == 0x7c00u;
        store_u16(halves + 2 * (i * kTileN + n), p.halves[i]);
      }
      if (f.shared)
        for (int i = 0; i < f.scales + f.minimum; ++i) scales[(long)t * f.scale_bytes() + i * kTileN + n] = p.bytes[i];
    }
    place<f.bits>(quants, reinterpret_cast<uint32_t*>(strip + (long)t * f.quant_bytes()));
  }
  return !bad;
}

struct Storage {
  int format;
  bool (*pack)(const uint8_t* const* rows, int k_tiles, uint8_t* strip);
};

// In the order of headrace.weights.spec.DType.
constexpr Storage kStorages[] = {
    {kDense, nullptr},
    {kDense, nullptr},
    {kDense, nullptr},
    {0, pack<0, 32, 34, q8_0>},
    {1, pack<1, 32, 18, q4_0>},
    {2, pack<2, 32, 20, q4_1>},
    {0, pack<0, 32, 22, q5_0>},
    {3, pack<3, 32, 24, q5_1>},
    {4, pack<4, 256, 144, q4_k>},
    {5, pack<5, 256, 176, q5_k>},
    {6, pack<6, 256, 210, q6_k>},
};

}  // namespace

bool is_storage(int storage) { return storage >= 0 && storage < (int)(sizeof kStorages / sizeof kStorages[0]); }

int strip_format(int storage) { return kStorages[storage].format; }

bool pack_strip(int storage, const uint8_t* const rows[kTileN], int k_tiles, void* strip) {
  return kStorages[storage].pack(rows, k_tiles, static_cast<uint8_t*>(strip));
}

}  // namespace hr
