// Float bit patterns and float16 (IEEE 754 binary16), written so that loops of them vectorise.
#pragma once

#include <cstdint>
#include <cstring>

// On Linux x86-64 GCC compiles functions marked WIDE twice and picks at load; the arithmetic is the same (the build
// sets -ffp-contract=off), so the results are too.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define WIDE
#endif
#define INLINE __attribute__((always_inline)) inline

namespace hr {

INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Masks, not branches, so that a row of these vectorises. Subnormals go through an integer product and not through
// a subnormal float32, which threads that flush denormals would lose.
INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t is_special = 0u - static_cast<uint32_t>(magnitude >= 0x7c00u);
  const uint32_t is_subnormal = 0u - static_cast<uint32_t>(magnitude < 0x400u);
  const uint32_t normal = (magnitude << 13) + (112u << 23) + (is_special & (112u << 23));
  const uint32_t subnormal = float_to_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return bits_to_float(sign | (is_subnormal & subnormal) | (~is_subnormal & normal));
}

// Nearest, ties to even; too large becomes infinite. Not for NaN.
INLINE uint16_t float_to_half(float value) {
  const uint32_t sign = (float_to_bits(value) >> 16) & 0x8000u;
  const uint32_t magnitude = float_to_bits(value) & 0x7fffffffu;
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u)  // subnormal: adding 0.5 rounds at bit 2^-24, float32's own rounding
    return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f)));
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

INLINE uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

INLINE void store_u16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, sizeof value); }

INLINE float load_half(const uint8_t* p) { return half_to_float(load_u16(p)); }

}  // namespace hr
