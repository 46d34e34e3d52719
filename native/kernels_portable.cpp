// Any processor: 16-byte vectors of the compiler's own, which it maps on SSE2 or NEON.
#include "integer.h"
#include "kernels.h"
#include "strips.h"

namespace hr {
namespace {

#define VBYTES 16
enum { RMAX = 2 };
typedef float VF __attribute__((vector_size(VBYTES)));
typedef int32_t VM __attribute__((vector_size(VBYTES)));

static inline VF vfma(VF a, VF b, VF c) { return a * b + c; }
static inline VF vmax(VF a, VF b) {
  VM m = a > b;
  return (VF)((m & (VM)a) | (~m & (VM)b));
}
static inline VF vmin(VF a, VF b) {
  VM m = a < b;
  return (VF)((m & (VM)a) | (~m & (VM)b));
}
static inline float hsum(VF v) { return (v[0] + v[2]) + (v[1] + v[3]); }
static inline float hmax(VF v) {
  float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
static inline bool all_below(VF v, float limit) {  // false where there is a NaN
  return v[0] < limit && v[1] < limit && v[2] < limit && v[3] < limit;
}

#include "simd.inl"
#include "gemm.inl"
#include "rows.inl"
#include "attention.inl"
#include "kernels_rows.inl"

constexpr Kernels kFloat = rows_kernels<false, false>("portable"), kBf16 = rows_kernels<true, false>("portable");

}  // namespace

const Kernels* kernels_portable(bool bf16) { return bf16 ? &kBf16 : &kFloat; }

}  // namespace hr
