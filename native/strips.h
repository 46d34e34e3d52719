// Quantised weights in memory. They stay in the precision of their file and become tiles (kernels.h) just before they are
// multiplied; every value is then what hr_dequantize gives, rounded to the precision of the tiles: the same bits as if the
// matrix had been expanded when it was loaded.
//
// A strip is 16 columns of a packed matrix over all k (32 a tile): [tiles] quants, then [tiles] scales, then, for the K
// formats, the float16 scales that 8 tiles share.
//   quants: dwords [512 / quants in a dword][16 lanes]. Lane j has columns j / 2 and 8 + j / 2 of k = j % 2. The quants of
//     a dword are, in order, those of (pair of k, half of the columns) = (0, 0) (0, 1) (1, 0) (1, 1) ...: so each lane
//     vector of quants becomes half a row of a bf16 tile. Where in the dword they are: see QuantPlace.
//   scales: [16 columns] of each of: d, minimum; float16, or for the K formats bytes
#pragma once
#include <stdint.h>

#include "kernels.h"

namespace hr {

struct StripFormat {
  int bits;      // of a quant
  int bias;      // value = scale * (quant - bias) + minimum
  int scales;    // a column of a tile has 1, or 2 (one for each 16 k)
  bool minimum;  // else 0
  bool shared;   // K formats: scales and minimums are integers, multiplied by a float16 that 256 k of a column share

  constexpr int quant_bytes() const { return kTileK * kTileN * bits / 8; }
  constexpr int scale_bytes() const { return kTileN * (shared ? scales + minimum : 2 * (scales + minimum)); }
  constexpr int shared_bytes() const { return shared ? kTileN * 2 * (1 + minimum) : 0; }
};

constexpr int kSharing = 8;  // tiles

constexpr StripFormat kStripFormats[] = {
    {8, 128, 1, false, false},  // 0: Q8_0, Q5_0
    {4, 8, 1, false, false},    // 1: Q4_0
    {4, 0, 1, true, false},     // 2: Q4_1
    {8, 0, 1, true, false},     // 3: Q5_1
    {4, 0, 1, true, true},      // 4: Q4_K
    {8, 0, 1, true, true},      // 5: Q5_K
    {8, 32, 2, false, true},    // 6: Q6_K
};
constexpr int kDense = -1;  // not a strip: tiles

// Where the quants of a dword are: in order from bit `first` on, around the end. Turned right by a multiple of `turn` bits,
// it has `per` of them from bit `first` on: low in the mantissa of a float32 whose exponent is then set to 2^23, and high
// enough that the scale times what that float has too much is exact in float32.
namespace {  // kernels.h: nothing that the linker could share
template <int BITS>
struct QuantPlace {
  static constexpr int first = BITS == 8 ? 4 : 8, per = BITS == 8 ? 2 : 3, turn = per * BITS, in_dword = 32 / BITS;
};
}  // namespace

inline long strip_bytes(const StripFormat& f, long k_tiles) {
  const long bytes = k_tiles * (f.quant_bytes() + f.scale_bytes()) + (k_tiles + kSharing - 1) / kSharing * f.shared_bytes();
  return (bytes + 63) / 64 * 64;
}

// Of a storage type, an index in headrace.weights.DType's order: whether there is one, and the format that its tensors
// are kept in (kDense for floats).
bool is_storage(int storage);
int strip_format(int storage);

// Packs 16 rows of `k_tiles` * 32 quantised weights into a strip; a null row is zeros. False if a scale is not finite.
bool pack_strip(int storage, const uint8_t* const rows[kTileN], int k_tiles, void* strip);

}  // namespace hr
