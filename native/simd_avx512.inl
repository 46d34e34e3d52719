// The vectors of AVX512 (F, BW, VL, DQ), for the three files that build on them.
#pragma once

#define VBYTES 64
enum { RMAX = 8 };
typedef float VF __attribute__((vector_size(VBYTES)));

static inline VF vfma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
static inline VF vmax(VF a, VF b) { return _mm512_max_ps(a, b); }
static inline VF vmin(VF a, VF b) { return _mm512_min_ps(a, b); }
static inline float hsum(VF v) { return _mm512_reduce_add_ps(v); }
static inline float hmax(VF v) { return _mm512_reduce_max_ps(v); }
static inline bool all_below(VF v, float limit) {  // false where there is a NaN
  return _mm512_cmp_ps_mask(v, _mm512_set1_ps(limit), _CMP_LT_OQ) == 0xffff;
}

#include "simd.inl"
#include "gemm.inl"
#include "rows.inl"
#include "attention.inl"
#include "kernels_rows.inl"
