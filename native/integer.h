// Weights for products with integer activations: 8-bit integers on one grid for each column, so that a sum over all k is
// exact in int32 whatever its order, and floats come in once, at the end:
//
//   y[row][column] = (sum of a * w) * scale[row] * unit[column]
//
// Activations are integers of one or two bytes (planes) on one grid for each row: 255 * high + low, both in [-127, 127].
//
// A strip is 16 columns over all k, 64 a tile: tiles, then float unit[16], then int32 sum[16] of each column's integers.
//   kBytes:   [16 fours of k][16 columns][4], the order of AMX and VPDPBUSD (1 KB)
//   kNibbles: 4-bit quants q (-8..7) and an 8-bit scale S for each 32 k of a column: w = (q * S + 4) >> 3. 512 bytes of
//     quants, then S [2][16 columns]. Quants are 16-bit words [16 pairs of fours of k][4 lanes][8]: word i of lane l has,
//     from its top down, for columns 4 l + i / 4 and 4 l + 2 + i / 4: k % 4 = i % 4 of the pair's first four, then of
//     its second. So rows of bytes come of words that are multiplied, rounded and packed within their lanes.
//   kNibblesPlus: the same, then a middle M [2][16 columns]: w = saturated to 8 bits ((q * S + 4) >> 3) + M
//
// A operand: groups of 16 rows: float scale[16], then for each plane [k/64][16 rows][64 k] bytes.
#pragma once
#include <stdint.h>

#include "kernels.h"

namespace hr {

constexpr int kByteK = 64;             // k of a tile
constexpr long kByteTile = 1024;       // bytes of a kBytes tile
constexpr long kStripEnd = 128;        // bytes after the last tile
constexpr int kLowSteps = 255;         // of the low plane for one of the high plane
constexpr long kMostIntegerK = 65536;  // 255 * 127 * k stays below 2^31

enum IntegerFormat { kBytes, kNibbles, kNibblesPlus };

static constexpr long integer_tile_bytes(int format) { return format == kBytes ? kByteTile : format == kNibbles ? 544 : 576; }
static constexpr long integer_strip_bytes(int format, long tiles) {
  return (tiles * integer_tile_bytes(format) + 63) / 64 * 64 + kStripEnd;
}
// Where a strip's units and sums are.
static constexpr long integer_end(int format, long tiles) { return integer_strip_bytes(format, tiles) - kStripEnd; }
static constexpr long integer_group_bytes(long tiles, int planes) { return 64 + planes * tiles * kByteTile; }

// The format that tensors of a quantised storage type (strips.h) are kept in.
int integer_format(int storage);

// Packs 16 rows of `columns` weights; a null row is zeros. False if a value is not finite.
bool pack_integer(int storage, const uint8_t* const rows[kTileN], long columns, int tiles, void* strip);

// The first `k` weights of column `n` of a strip, times scale.
void integer_column(const Strip& strip, int tiles, int n, int k, float scale, float* out);

}  // namespace hr
