// AVX2 + FMA (x86-64-v3).
#include "integer.h"
#include "kernels.h"
#include "strips.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace hr {
namespace {

#define VBYTES 32
enum { RMAX = 4 };
typedef float VF __attribute__((vector_size(VBYTES)));

static inline VF vfma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
static inline VF vmax(VF a, VF b) { return _mm256_max_ps(a, b); }
static inline VF vmin(VF a, VF b) { return _mm256_min_ps(a, b); }
static inline float hsum(VF v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float hmax(VF v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static inline bool all_below(VF v, float limit) {  // false where there is a NaN
  return _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_set1_ps(limit), _CMP_LT_OQ)) == 0xff;
}

#include "simd.inl"
#include "gemm.inl"
#include "rows.inl"
#include "attention.inl"
#include "kernels_rows.inl"
#include "gemm_strips.inl"

constexpr Kernels kFloat = rows_kernels<false, false>("avx2"), kBf16 = with_strips(rows_kernels<true, false>("avx2"));

}  // namespace

const Kernels* kernels_avx2(bool bf16) { return bf16 ? &kBf16 : &kFloat; }

}  // namespace hr

#else
namespace hr {
const Kernels* kernels_avx2(bool) { return nullptr; }
}  // namespace hr
#endif
