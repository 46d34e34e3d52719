// AVX512 with VDPBF16PS and VPDPBUSD: two bf16 or four 8-bit products per lane and instruction, for the linear layers.
#include "integer.h"
#include "kernels.h"
#include "strips.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#include <immintrin.h>

namespace hr {
namespace {

#define HR_VNNI
#include "simd_avx512.inl"
#include "gemm_strips.inl"

// R rows of a 32-column panel. `a` is the first row inside its 16-row group of bf16 tiles.
template <int R>
static inline void dot_block(const uint16_t* a, const char* b, int k_tiles, float* c, bool more) {
  __m512 acc[R][2];
  for (int r = 0; r < R; r++)
    for (int half = 0; half < 2; half++)
      acc[r][half] = more ? _mm512_loadu_ps(c + r * kPanelN + half * 16) : _mm512_setzero_ps();
  for (int t = 0; t < k_tiles; t++, a += 512, b += 2048)
    for (int pair = 0; pair < 16; pair++) {
      __builtin_prefetch(b + pair * 64 + kFetchAhead, 0, 2);
      __builtin_prefetch(b + 1024 + pair * 64 + kFetchAhead, 0, 2);
      const __m512i left = _mm512_loadu_si512(b + pair * 64), right = _mm512_loadu_si512(b + 1024 + pair * 64);
      for (int r = 0; r < R; r++) {
        int32_t two;
        __builtin_memcpy(&two, a + r * 32 + pair * 2, 4);
        const __m512i x = _mm512_set1_epi32(two);
        acc[r][0] = _mm512_dpbf16_ps(acc[r][0], (__m512bh)x, (__m512bh)left);
        acc[r][1] = _mm512_dpbf16_ps(acc[r][1], (__m512bh)x, (__m512bh)right);
      }
    }
  for (int r = 0; r < R; r++) {
    _mm512_storeu_ps(c + r * kPanelN, acc[r][0]);
    _mm512_storeu_ps(c + r * kPanelN + 16, acc[r][1]);
  }
}

static void gemm_dot(const GemmCall* call) {
  const char* b = (const char*)call->panel;
  const int rows = call->rows, k_tiles = call->k_tiles;
  for (int group = 0; group < rows; group += 16) {
    const uint16_t* x = (const uint16_t*)((const char*)call->a + group / 16 * call->group);
    const int n = rows - group < 16 ? rows - group : 16;
    float* out = call->c + group * kPanelN;
    int r = 0;
    for (; r + 8 <= n; r += 8) dot_block<8>(x + r * 32, b, k_tiles, out + r * kPanelN, call->more);
    for (; r + 4 <= n; r += 4) dot_block<4>(x + r * 32, b, k_tiles, out + r * kPanelN, call->more);
    for (; r < n; r++) dot_block<1>(x + r * 32, b, k_tiles, out + r * kPanelN, call->more);
  }
}

static constexpr Kernels with_dot() {
  Kernels t = rows_kernels<true, true>("avx512bf16");
  t.gemm = gemm_dot;
  return t;
}

constexpr Kernels kFloat = rows_kernels<false, false>("avx512bf16"), kBf16 = with_strips(with_dot());

}  // namespace

const Kernels* kernels_avx512bf16(bool bf16) { return bf16 ? &kBf16 : &kFloat; }

}  // namespace hr

#else
namespace hr {
const Kernels* kernels_avx512bf16(bool) { return nullptr; }
}  // namespace hr
#endif
