// Vectors of VBYTES bytes for one instruction set, on the compilers' vector extensions (gcc, clang).
// The including file defines VBYTES, the type VF and, over it, vfma(a, b, c) = a * b + c, vmax(a, b) = a > b ? a : b (so
// a NaN in b stays), vmin alike, hsum and hmax over the lanes; the rest is generic.
//
// No function here may be non-static: see kernels.h on symbols.
#pragma once

typedef int32_t VI __attribute__((vector_size(VBYTES)));
typedef uint32_t VU __attribute__((vector_size(VBYTES)));
typedef uint16_t VH __attribute__((vector_size(VBYTES / 2)));
typedef float VFu __attribute__((vector_size(VBYTES), aligned(4), may_alias));
typedef uint32_t VUu __attribute__((vector_size(VBYTES), aligned(4), may_alias));
typedef uint16_t VHu __attribute__((vector_size(VBYTES / 2), aligned(2), may_alias));

enum { W = VBYTES / 4, V16 = 16 / W };  // lanes; vectors per 16 columns

static inline VF load(const float* p) { return *(const VFu*)p; }
static inline void save(float* p, VF v) { *(VFu*)p = v; }
// By its bits: a sum with zero would be an addition indeed, for it makes 0 of -0.
static inline VF splat(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return (VF)(VU{} + u);
}
static inline VF pick(VI mask, VF a, VF b) { return (VF)((mask & (VI)a) | (~mask & (VI)b)); }
static inline VI lanes(int first) {
  VI v;
  for (int i = 0; i < W; i++) v[i] = first + i;
  return v;
}

// bf16, round to nearest even. Hardware NaNs stay NaNs (their payload is in the upper bits).
static inline void save_bf16(uint16_t* p, VF v) {
#ifdef __AVX512BF16__
  *(__m256bh*)p = _mm512_cvtneps_pbh(v);  // denormals become 0
#else
  VU u = (VU)v;
  *(VHu*)p = __builtin_convertvector((u + 0x7fffu + ((u >> 16) & 1u)) >> 16, VH);
#endif
}
static inline uint16_t bf16(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float widen(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

// e^x to about 2 ulp: x = n ln2 + r, a polynomial in r (Cephes expf), n into the exponent. vexp(0) is exactly 1; a NaN
// stays one; below -87 the result is about 1e-38 instead of a denormal.
static inline VF vexp(VF x) {
  const VF low = splat(-87.0f), high = splat(88.0f), magic = splat(12582912.0f);
  x = vmin(high, vmax(low, x));
  VF t = vfma(x, splat(1.44269504088896341f), magic);
  VF n = t - magic;
  VF r = vfma(n, splat(-0.693359375f), x);
  r = vfma(n, splat(2.12194440e-4f), r);
  VF p = splat(1.9875691500e-4f);
  p = vfma(p, r, splat(1.3981999507e-3f));
  p = vfma(p, r, splat(8.3334519073e-3f));
  p = vfma(p, r, splat(4.1665795894e-2f));
  p = vfma(p, r, splat(1.6666665459e-1f));
  p = vfma(p, r, splat(5.0000001201e-1f));
  p = vfma(p, r * r, r) + 1.0f;
  return (VF)((VU)p + ((VU)t << 23));
}

// 2^x for x <= 0, to about 2 ulp (Cephes exp2f): what attention needs, for less. vexp2(0) is exactly 1.
static inline VF vexp2(VF x) {
  const VF magic = splat(12582912.0f);
  x = vmax(splat(-125.0f), x);
  VF t = x + magic;
  VF r = x - (t - magic);
  VF p = splat(1.535336188319500e-4f);
  p = vfma(p, r, splat(1.339887440266574e-3f));
  p = vfma(p, r, splat(9.618437357674640e-3f));
  p = vfma(p, r, splat(5.550332471162809e-2f));
  p = vfma(p, r, splat(2.402264791363012e-1f));
  p = vfma(p, r, splat(6.931472028550421e-1f));
  p = vfma(p, r, splat(1.0f));
  return (VF)((VU)p + ((VU)t << 23));
}

static inline VF vtanh(VF x) {
  VF y = vmin(splat(20.0f), vmax(splat(-20.0f), x));
  return 1.0f - 2.0f / (vexp(y + y) + 1.0f);
}
static inline VF vsilu(VF x) { return x / (1.0f + vexp(-x)); }
// The same to 18 bits, for results that become bf16. Where e^-x overflows, x / inf is the limit: -0.
static inline VF vsilu_rough(VF x) {
#ifdef __AVX512F__
  const VF t = x * splat(-1.44269504088896341f);
  const VF r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // [0, 1)
  VF p = splat(1.3534162e-2f);
  p = vfma(p, r, splat(5.2011471e-2f));
  p = vfma(p, r, splat(2.4144275e-1f));
  p = vfma(p, r, splat(6.9300383e-1f));
  p = vfma(p, r, splat(1.0000026f));
  return x / (1.0f + (VF)_mm512_scalef_ps(p, t));
#else
  return vsilu(x);
#endif
}
static inline VF vgelu(VF x) {
  VF inner = 0.7978845608028654f * vfma(splat(0.044715f) * x * x, x, x);
  return 0.5f * x * (1.0f + vtanh(inner));
}
