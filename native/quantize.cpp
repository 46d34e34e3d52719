// Quantisation by blocks of 32. HR_ROUND equals the `gguf` package's float32 arithmetic bit for bit, as dequant.cpp does
// in the other direction: one rounding per operation, in the same order.
//
// Reductions keep eight partial results, one a lane, because compilers may not reorder float sums by themselves.
#include "quantize.h"

#include <algorithm>
#include <cstddef>

#include "dequant.h"
#include "half.h"

namespace {

using hr::float_to_bits;
using hr::float_to_half;
using hr::half_to_float;
using hr::store_u16;

constexpr int kBlock = 32, kLanes = 8;

template <class Pick>
INLINE float reduce(const float* x, Pick pick) {
  float lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = x[l];
  for (int i = kLanes; i < kBlock; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lane[l] = pick(lane[l], x[i + l]);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int l = 0; l < step; ++l) lane[l] = pick(lane[l], lane[l + step]);
  return lane[0];
}

INLINE float smallest(const float* x) {
  return reduce(x, [](float a, float b) { return b < a ? b : a; });
}
INLINE float largest(const float* x) {
  return reduce(x, [](float a, float b) { return b > a ? b : a; });
}
INLINE float sum(const float* x) {
  return reduce(x, [](float a, float b) { return a + b; });
}

INLINE bool all_finite(const float* x) {
  uint32_t bad = 0;
  for (int j = 0; j < kBlock; ++j) bad |= (float_to_bits(x[j]) & 0x7f800000u) == 0x7f800000u;
  return !bad;
}

// 1/d, or 0 where it would not be finite: such a block is all zeros once d is a float16.
INLINE float inverse(float d) {
  const float magnitude = d < 0 ? -d : d;
  return magnitude > 0x1p-126f ? 1.0f / d : 0.0f;
}

INLINE bool store_scale(uint8_t* p, float value) {
  const uint16_t half = float_to_half(value);
  store_u16(p, half);
  return (half & 0x7c00u) != 0x7c00u;
}

INLINE void store_nibbles(uint8_t* p, const int32_t* q) {
  for (int j = 0; j < kBlock / 2; ++j) p[j] = static_cast<uint8_t>(q[j] | (q[j + kBlock / 2] << 4));
}

// [d f16][32 × int8], rounded half away from zero
INLINE bool round_q8_0(const float* x, uint8_t* out) {
  float magnitude[kBlock];
  for (int j = 0; j < kBlock; ++j) magnitude[j] = hr::bits_to_float(float_to_bits(x[j]) & 0x7fffffffu);
  const float d = largest(magnitude) / 127.0f, scale = inverse(d);
  for (int j = 0; j < kBlock; ++j) {
    const float a = magnitude[j] * scale;
    int32_t q = static_cast<int32_t>(a);
    q += a - static_cast<float>(q) >= 0.5f;
    out[2 + j] = static_cast<uint8_t>(x[j] < 0 ? -q : q);
  }
  return store_scale(out, d);
}

// [d f16][16 × nibble pair]; the value of largest magnitude (the first of several) becomes -8
INLINE bool round_q4_0(const float* x, uint8_t* out) {
  float magnitude[kBlock];
  for (int j = 0; j < kBlock; ++j) magnitude[j] = hr::bits_to_float(float_to_bits(x[j]) & 0x7fffffffu);
  const float peak = largest(magnitude);
  int at = 0;
  while (magnitude[at] != peak) ++at;
  const float d = x[at] / -8.0f, scale = inverse(d);
  int32_t q[kBlock];
  for (int j = 0; j < kBlock; ++j) q[j] = std::min(static_cast<int32_t>(x[j] * scale + 8.5f), 15);
  store_nibbles(out + 2, q);
  return store_scale(out, d);
}

// [d f16][m f16][16 × nibble pair]
INLINE bool round_q4_1(const float* x, uint8_t* out) {
  const float low = smallest(x), d = (largest(x) - low) / 15.0f, scale = inverse(d);
  int32_t q[kBlock];
  for (int j = 0; j < kBlock; ++j) q[j] = std::min(static_cast<int32_t>((x[j] - low) * scale + 0.5f), 15);
  store_nibbles(out + 4, q);
  const bool fits = store_scale(out, d);
  return store_scale(out + 2, low) && fits;
}

// Each candidate maps the block's range to a few more or fewer steps than 15, which decides how far the extreme values
// are clipped. For the integers that result, the best scale and minimum are the regression line of the values on them,
// and its error has a closed form; the best candidate's line, rounded to float16, then decides the integers again.
constexpr int kCandidates = 8;
constexpr float kFewestSteps = 13.0f, kStepsApart = 0.4f;

INLINE bool fit_q4_1(const float* x, uint8_t* out) {
  const float low = smallest(x), range = largest(x) - low, per_step = inverse(range);
  if (range > 3e38f) return false;
  float above[kBlock];  // sums of values around zero would cancel
  for (int j = 0; j < kBlock; ++j) above[j] = x[j] - low;
  const float total = sum(above);
  float best = -1.0f, d = range / 15.0f, offset = 0.0f;
  for (int c = 0; c < kCandidates; ++c) {
    const float scale = (kFewestSteps + kStepsApart * static_cast<float>(c)) * per_step;
    int32_t q_sum = 0, q_squares = 0;
    float product[kBlock];
    for (int j = 0; j < kBlock; ++j) {
      const int32_t q = std::min(static_cast<int32_t>(above[j] * scale + 0.5f), 15);
      q_sum += q;
      q_squares += q * q;
      product[j] = above[j] * static_cast<float>(q);
    }
    const int32_t spread = kBlock * q_squares - q_sum * q_sum;
    if (spread == 0) continue;  // a constant block
    const float products = sum(product);
    const float slope =
        (static_cast<float>(kBlock) * products - total * static_cast<float>(q_sum)) / static_cast<float>(spread);
    const float intercept = (total - slope * static_cast<float>(q_sum)) / static_cast<float>(kBlock);
    const float explained = slope * products + intercept * total;
    if (explained > best) {
      best = explained;
      d = slope;
      offset = intercept;
    }
  }
  const bool fits = store_scale(out, d) && store_scale(out + 2, low + offset);
  const float step = half_to_float(hr::load_u16(out)), first = half_to_float(hr::load_u16(out + 2)), scale = inverse(step);
  int32_t q[kBlock];
  for (int j = 0; j < kBlock; ++j)
    q[j] = static_cast<int32_t>(std::min(std::max((x[j] - first) * scale + 0.5f, 0.0f), 15.0f));
  store_nibbles(out + 4, q);
  return fits;
}

template <int bytes, bool (*block)(const float*, uint8_t*)>
WIDE bool blocks(const float* src, uint8_t* dst, long n) {
  bool fine = true;
  for (long i = 0; i < n / kBlock && fine; ++i)
    fine = all_finite(src + i * kBlock) && block(src + i * kBlock, dst + i * bytes);
  return fine;
}

struct Format {
  int dtype, bytes;
  bool (*quantize[2])(const float*, uint8_t*, long);  // by method
};

// In headrace.weights.spec.DType's numbering.
constexpr Format kFormats[] = {
    {3, 34, {blocks<34, round_q8_0>, blocks<34, round_q8_0>}},
    {4, 18, {blocks<18, round_q4_0>, blocks<18, round_q4_0>}},
    {5, 20, {blocks<20, round_q4_1>, blocks<20, fit_q4_1>}},
};

const Format* find(int dtype, int method, long n) {
  if ((method != HR_ROUND && method != HR_FIT) || n < 0 || n % kBlock != 0) return nullptr;
  for (const Format& format : kFormats)
    if (format.dtype == dtype) return &format;
  return nullptr;
}

}  // namespace

extern "C" bool hr_quantize(int dtype, int method, const float* src, void* dst, long n) {
  const Format* format = find(dtype, method, n);
  return format && format->quantize[method](src, static_cast<uint8_t*>(dst), n);
}

extern "C" bool hr_requantize(int from, const void* src, int to, int method, void* dst, long n) {
  constexpr long kChunk = 4096;  // a whole number of every format's blocks
  constexpr struct { int elements, bytes; } kLayout[] = {{1, 4},   {1, 2},   {1, 2},     {32, 34},   {32, 18},  {32, 20},
                                                         {32, 22}, {32, 24}, {256, 144}, {256, 176}, {256, 210}};
  const Format* format = find(to, method, n);
  if (!format || from < 0 || from >= static_cast<int>(sizeof kLayout / sizeof kLayout[0])) return false;
  if (n % kLayout[from].elements != 0) return false;
  float values[kChunk];
  for (long done = 0; done < n; done += kChunk) {
    const long count = std::min(kChunk, n - done);
    const uint8_t* in = static_cast<const uint8_t*>(src) + done / kLayout[from].elements * kLayout[from].bytes;
    uint8_t* out = static_cast<uint8_t*>(dst) + done / kBlock * format->bytes;
    if (!hr_dequantize(from, in, values, count) || !format->quantize[method](values, out, count)) return false;
  }
  return true;
}
