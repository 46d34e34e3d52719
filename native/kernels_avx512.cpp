// AVX512 F, BW, VL, DQ (x86-64-v4).
#include "integer.h"
#include "kernels.h"
#include "strips.h"

#if defined(__AVX512BW__)
#include <immintrin.h>

namespace hr {
namespace {

#include "simd_avx512.inl"
#include "gemm_strips.inl"

constexpr Kernels kFloat = rows_kernels<false, false>("avx512"), kBf16 = with_strips(rows_kernels<true, false>("avx512"));

}  // namespace

const Kernels* kernels_avx512(bool bf16) { return bf16 ? &kBf16 : &kFloat; }

}  // namespace hr

#else
namespace hr {
const Kernels* kernels_avx512(bool) { return nullptr; }
}  // namespace hr
#endif
