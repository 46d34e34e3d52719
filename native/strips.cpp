// Packs blocks as they are in files into strips. Nothing is rounded: quants and scales only change places.
#include "strips.h"

#include <string.h>

#include "pieces.h"

namespace hr {
namespace {

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
