// Formulas of the GGUF block formats (ggml's documentation of its block structures), one function per format.
//
// Results equal the `gguf` package's float32 arithmetic bit for bit: one rounding per operation and no fused
// multiply-add (the build sets -ffp-contract=off). The loops are written so that compilers vectorise them; nothing
// here is specific to an instruction set. Files are little-endian, and so are all machines that headrace builds on.
#include "dequant.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "blocks.h"

namespace {

using hr::bits_to_float;
using hr::five_bits;
using hr::half_to_float;
using hr::load_half;
using hr::load_u16;
using hr::nibbles;
using hr::six_bit_scales;

// ------------------------------------------------------------------------------------------------- plain types

void f32(const uint8_t* src, float* dst, long n) { std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float)); }

WIDE void f16(const uint8_t* src, float* dst, long n) {
  for (long i = 0; i < n; ++i) dst[i] = half_to_float(load_u16(src + 2 * i));
}

void bf16(const uint8_t* src, float* dst, long n) {
  for (long i = 0; i < n; ++i) dst[i] = bits_to_float(static_cast<uint32_t>(load_u16(src + 2 * i)) << 16);
}

// ------------------------------------------------------------------------- 32 elements a block: one scale (and minimum)

// [d f16][32 × int8]
INLINE void q8_0(const uint8_t* b, float* dst) {
  const float d = load_half(b);
  const int8_t* q = reinterpret_cast<const int8_t*>(b + 2);
  for (int j = 0; j < 32; ++j) dst[j] = static_cast<float>(q[j]) * d;
}

// [d f16][16 × nibble pair]
INLINE void q4_0(const uint8_t* b, float* dst) {
  const float d = load_half(b);
  uint8_t q[32];
  nibbles(b + 2, q);
  for (int j = 0; j < 32; ++j) dst[j] = d * static_cast<float>(static_cast<int>(q[j]) - 8);
}

// [d f16][m f16][16 × nibble pair]
INLINE void q4_1(const uint8_t* b, float* dst) {
  const float d = load_half(b), m = load_half(b + 2);
  uint8_t q[32];
  nibbles(b + 4, q);
  for (int j = 0; j < 32; ++j) dst[j] = d * static_cast<float>(static_cast<int>(q[j])) + m;
}

// [d f16][high u32][16 × nibble pair]
INLINE void q5_0(const uint8_t* b, float* dst) {
  const float d = load_half(b);
  uint8_t q[32];
  five_bits(b + 2, b + 6, q);
  for (int j = 0; j < 32; ++j) dst[j] = d * static_cast<float>(static_cast<int>(q[j]) - 16);
}

// [d f16][m f16][high u32][16 × nibble pair]
INLINE void q5_1(const uint8_t* b, float* dst) {
  const float d = load_half(b), m = load_half(b + 2);
  uint8_t q[32];
  five_bits(b + 4, b + 8, q);
  for (int j = 0; j < 32; ++j) dst[j] = d * static_cast<float>(q[j]) + m;
}

// ------------------------------------------------------------- 256 elements a block: scales of sub-blocks, themselves quantised

// [d f16][dmin f16][12 scale bytes][128 × nibble pair]: 32 bytes hold two sub-blocks, low nibbles then high.
INLINE void q4_k(const uint8_t* b, float* dst) {
  const float d = load_half(b), dmin = load_half(b + 2);
  uint8_t scale[8], minimum[8];
  six_bit_scales(b + 4, scale, minimum);
  for (int s = 0; s < 8; ++s) {
    const uint8_t* q = b + 16 + 32 * (s / 2);
    const int shift = 4 * (s % 2);
    const float ds = d * static_cast<float>(scale[s]), ms = dmin * static_cast<float>(minimum[s]);
    for (int j = 0; j < 32; ++j) dst[32 * s + j] = ds * static_cast<float>((q[j] >> shift) & 15) - ms;
  }
}

// [d f16][dmin f16][12 scale bytes][32 high bytes][128 × nibble pair]: bit s of high byte j belongs to element j of sub-block s.
INLINE void q5_k(const uint8_t* b, float* dst) {
  const float d = load_half(b), dmin = load_half(b + 2);
  uint8_t scale[8], minimum[8];
  six_bit_scales(b + 4, scale, minimum);
  const uint8_t* high = b + 16;
  for (int s = 0; s < 8; ++s) {
    const uint8_t* q = b + 48 + 32 * (s / 2);
    const int shift = 4 * (s % 2);
    const float ds = d * static_cast<float>(scale[s]), ms = dmin * static_cast<float>(minimum[s]);
    for (int j = 0; j < 32; ++j) {
      const int value = ((q[j] >> shift) & 15) | (((high[j] >> s) & 1) << 4);
      dst[32 * s + j] = ds * static_cast<float>(value) - ms;
    }
  }
}

// [128 low-nibble pairs][64 × four high bit pairs][16 × int8 scale][d f16]: two halves of 128 elements, each four runs of 32;
// run r takes nibbles from low bytes 32 * (r % 2).. and two bits at 2 * r from the high bytes. A scale serves 16 elements.
INLINE void q6_k(const uint8_t* b, float* dst) {
  const float d = load_half(b + 208);
  const int8_t* scale = reinterpret_cast<const int8_t*>(b + 192);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = b + 64 * half;
    const uint8_t* high = b + 128 + 32 * half;
    for (int run = 0; run < 4; ++run) {
      const uint8_t* q = low + 32 * (run % 2);
      const int shift = 4 * (run / 2);
      float* out = dst + 128 * half + 32 * run;
      for (int part = 0; part < 2; ++part) {
        const float ds = d * static_cast<float>(scale[8 * half + 2 * run + part]);
        for (int j = 16 * part; j < 16 * part + 16; ++j) {
          const int value = ((q[j] >> shift) & 15) | (((high[j] >> (2 * run)) & 3) << 4);
          out[j] = ds * static_cast<float>(value - 32);
        }
      }
    }
  }
}

template <int elements, int bytes, void (*block)(const uint8_t*, float*)>
WIDE void blocks(const uint8_t* src, float* dst, long n) {
  for (long i = 0; i < n / elements; ++i) block(src + i * bytes, dst + i * elements);
}

struct Format {
  int elements;
  void (*expand)(const uint8_t*, float*, long);
};

// In the order of headrace.weights.spec.DType.
constexpr Format kFormats[] = {
    {1, f32},
    {1, f16},
    {1, bf16},
    {32, blocks<32, 34, q8_0>},
    {32, blocks<32, 18, q4_0>},
    {32, blocks<32, 20, q4_1>},
    {32, blocks<32, 22, q5_0>},
    {32, blocks<32, 24, q5_1>},
    {256, blocks<256, 144, q4_k>},
    {256, blocks<256, 176, q5_k>},
    {256, blocks<256, 210, q6_k>},
};
constexpr int kFormatCount = sizeof kFormats / sizeof kFormats[0];

}  // namespace

extern "C" bool hr_dequantize(int dtype, const void* src, float* dst, long n) {
  if (dtype < 0 || dtype >= kFormatCount || n < 0 || n % kFormats[dtype].elements != 0) return false;
  kFormats[dtype].expand(static_cast<const uint8_t*>(src), dst, n);
  return true;
}
