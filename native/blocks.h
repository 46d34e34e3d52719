// How the quants and scales of GGUF's blocks are packed: what dequant.cpp and strips.cpp both read.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

namespace hr {

// 32 quants in 16 bytes: the low nibbles are elements 0..15, the high ones 16..31.
INLINE void nibbles(const uint8_t* q, uint8_t* out) {
  for (int j = 0; j < 16; ++j) out[j] = q[j] & 15;
  for (int j = 0; j < 16; ++j) out[16 + j] = q[j] >> 4;
}

// Bit j of `high` is the fifth bit of element j.
INLINE void five_bits(const uint8_t* high_bytes, const uint8_t* q, uint8_t* out) {
  uint32_t high;
  std::memcpy(&high, high_bytes, sizeof high);
  uint8_t low[32];
  nibbles(q, low);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<uint8_t>(low[j] | (((high >> j) & 1u) << 4));
}

// Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minimums in 12 bytes. Entries 0..3 are whole in bytes 0..3 and 4..7;
// entries 4..7 have their low nibbles in bytes 8..11 and their top two bits above entries 0..3.
INLINE void six_bit_scales(const uint8_t* p, uint8_t* scale, uint8_t* minimum) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = p[j] & 63;
    minimum[j] = p[4 + j] & 63;
    scale[4 + j] = static_cast<uint8_t>((p[8 + j] & 15) | ((p[j] >> 2) & 0x30));
    minimum[4 + j] = static_cast<uint8_t>((p[8 + j] >> 4) | ((p[4 + j] >> 2) & 0x30));
  }
}

}  // namespace hr
