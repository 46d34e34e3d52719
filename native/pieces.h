// GGUF's block formats, 32 weights at a time: quants and scales as they are stored. What strips.cpp and integer.cpp read.
#pragma once

#include <cstdint>

#include "blocks.h"
#include "kernels.h"

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

}  // namespace
}  // namespace hr
