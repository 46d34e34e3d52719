// Few rows times quantised weights, for AVX2 and AVX512: weights go from their quants straight into the sums, by way of no
// tile in memory. bf16 weights. Included after kernels_rows.inl.
#pragma once

#ifdef __AVX512BF16__
// R rows of c[.][16 columns] = a[R][k] * strip. Sums go over k in the order of dot_block, so that they have its bits.
template <int FORMAT, int R>
static void multiply_strip(const void* a, const Strip* s, int k_tiles, float* c) {
  __m512 acc[R] = {};
  const auto take = [&](char* x_tile, int pair, int, VF x, VF y) __attribute__((always_inline)) {
    const __m512bh w = _mm512_cvtne2ps_pbh(y, x);
    const uint16_t* from = (const uint16_t*)x_tile + pair * 2;
    for (int r = 0; r < R; r++, from += 32) {
      int32_t two;
      __builtin_memcpy(&two, from, 4);
      acc[r] = _mm512_dpbf16_ps(acc[r], (__m512bh)_mm512_set1_epi32(two), w);
    }
  };
  read_tiles<FORMAT>(s->data, k_tiles, 0, k_tiles, s->ahead, (char*)a, 1024, take);
  for (int r = 0; r < R; r++) save(c + r * kPanelN, acc[r]);
}
#else
// As if it had been a bf16 of a tile.
static inline VF rounded(VF v) {
  const VU u = (VU)v;
#ifdef __AVX512F__  // 6 % off a step of one row
  const __mmask16 is_odd = _mm512_test_epi32_mask((__m512i)u, _mm512_set1_epi32(0x10000));
  const VU half = (VU)_mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fff), is_odd, _mm512_set1_epi32(0x8000));
#else
  const VU half = 0x7fffu + ((u >> 16) & 1u);
#endif
  return (VF)((u + half) & 0xffff0000u);
}

// Of lanes as in a dword of quants, those of the first and of the second k; columns in the order of column_of.
static inline VF of_even(VF a, VF b) {
#ifdef __AVX512F__
  return _mm512_shuffle_ps(a, b, 0x88);
#else
  return _mm256_shuffle_ps(a, b, 0x88);
#endif
}
static inline VF of_odd(VF a, VF b) {
#ifdef __AVX512F__
  return _mm512_shuffle_ps(a, b, 0xdd);
#else
  return _mm256_shuffle_ps(a, b, 0xdd);
#endif
}
static inline int column_of(int part, int lane) { return lane % 4 / 2 * 8 + part * W / 2 + lane / 4 * 2 + lane % 2; }

// R rows of c[.][16 columns] = a[R][k] * strip. Sums go over k in the order of block() in gemm.inl, so that they have its bits.
template <int FORMAT, int R>
static void multiply_strip(const void* a, const Strip* s, int k_tiles, float* c) {
  const long lda = (long)k_tiles * kTileK;
  VF acc[R][V16] = {};
  const auto take = [&](char* x_tile, int pair, int part, VF x, VF y) __attribute__((always_inline)) {
    x = rounded(x), y = rounded(y);
    const VF even = of_even(x, y), odd = of_odd(x, y);
    const float* from = (const float*)x_tile + 2 * pair;
    for (int r = 0; r < R; r++, from += lda) acc[r][part] = vfma(splat(from[1]), odd, vfma(splat(from[0]), even, acc[r][part]));
  };
  read_tiles<FORMAT>(s->data, k_tiles, 0, k_tiles, s->ahead, (char*)a, kTileK * 4, take);
  for (int r = 0; r < R; r++)
    for (int part = 0; part < V16; part++)
      for (int lane = 0; lane < W; lane++) c[r * kPanelN + column_of(part, lane)] = acc[r][part][lane];
}
#endif

template <int R>
static void multiply_rows(const void* a, const Strip* s, int k_tiles, float* c) {
  switch (s->format) {
    case 0: return multiply_strip<0, R>(a, s, k_tiles, c);
    case 1: return multiply_strip<1, R>(a, s, k_tiles, c);
    case 2: return multiply_strip<2, R>(a, s, k_tiles, c);
    case 3: return multiply_strip<3, R>(a, s, k_tiles, c);
    case 4: return multiply_strip<4, R>(a, s, k_tiles, c);
    case 5: return multiply_strip<5, R>(a, s, k_tiles, c);
    default: return multiply_strip<6, R>(a, s, k_tiles, c);
  }
}

enum { kStripRows = 8 };

template <int R = 1>
static void multiply_some(const void* a, int rows, const Strip* s, int k_tiles, float* c) {
  if (rows == R) return multiply_rows<R>(a, s, k_tiles, c);
  if constexpr (R < kStripRows) multiply_some<R + 1>(a, rows, s, k_tiles, c);
}

static void gemm_strips(const void* a, int rows, const Strip* strips, int k_tiles, float* c) {
  for (int half = 0; half < 2; half++) multiply_some(a, rows, strips + half, k_tiles, c + half * kTileN);
}

static constexpr Kernels with_strips(Kernels t) {
  t.gemm_strips = gemm_strips;
  t.strip_rows = kStripRows;
  return t;
}
