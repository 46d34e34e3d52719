// Matrix products on 16-column panels for the instruction sets without matrix tiles: the weights' layer and both
// products of attention (scores: 16 tokens are the columns; values: 16 dims are) are one routine.
#pragma once

// c[R][16 NV] (+)= a[R][k] * b. k runs over `runs` stretches of `run` rows of b, `step` bytes apart; NV tiles side by
// side are one tile size apart. Every output accumulates over k in order, whatever R and NV are. STREAM: b goes on for
// longer in memory, so it is fetched ahead.
template <bool BF16, int R, int NV, bool STREAM>
static inline __attribute__((always_inline)) void block(const float* a, long lda, const char* b, int runs, int run,
                                                        long step, float* c, long ldc, bool add) {
  const long tile = BF16 ? 1024 : 2048;
  VF acc[R][NV * V16];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NV * V16; v++) acc[r][v] = add ? load(c + r * ldc + v * W) : VF{};
  for (int i = 0; i < runs; i++) {
    const char* t = b + i * step;
    const float* x = a + i * run;
    for (int k = 0; k < run; k += 2) {
      VF even[NV * V16], odd[NV * V16];
      for (int v = 0; v < NV * V16; v++) {
        const char* p = t + (v / V16) * tile + (v % V16) * VBYTES;
        if (STREAM && v % (64 / VBYTES) == 0)
          for (int line = 0; line < (BF16 ? 1 : 2); line++)
            __builtin_prefetch(p + (BF16 ? k * 32 : k * 64 + line * 64) + kFetchAhead, 0, 2);
        if (BF16) {
          VU w = *(const VUu*)(p + k * 32);
          even[v] = (VF)(w << 16);
          odd[v] = (VF)(w & 0xffff0000u);
        } else {
          even[v] = load((const float*)(p + k * 64));
          odd[v] = load((const float*)(p + k * 64 + 64));
        }
      }
      for (int r = 0; r < R; r++) {
        VF x0 = splat(x[r * lda + k]), x1 = splat(x[r * lda + k + 1]);
        for (int v = 0; v < NV * V16; v++) acc[r][v] = vfma(x1, odd[v], vfma(x0, even[v], acc[r][v]));
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NV * V16; v++) save(c + r * ldc + v * W, acc[r][v]);
}

// All rows, in blocks of R, then R / 2, ... : RMAX is what the registers hold.
template <bool BF16, int R, int NV, bool STREAM = false>
static inline void rows_of(const float* a, long lda, int rows, const char* b, int runs, int run, long step, float* c,
                           long ldc, bool add) {
  int r = 0;
  for (; r + R <= rows; r += R) block<BF16, R, NV, STREAM>(a + r * lda, lda, b, runs, run, step, c + r * ldc, ldc, add);
  if constexpr (R > 1) rows_of<BF16, R / 2, NV, STREAM>(a + r * lda, lda, rows - r, b, runs, run, step, c + r * ldc, ldc, add);
}

template <bool BF16>
static void gemm_rows(const GemmCall* call) {
  const long tile = BF16 ? 1024 : 2048, lda = call->group / 16 / (long)sizeof(float);
  const float* x = (const float*)call->a;
  const char* b = (const char*)call->panel;
  const int rows = call->rows, k_tiles = call->k_tiles;
  const bool more = call->more;
  float* c = call->c;
  if (RMAX >= 8 || rows == 1) {  // both halves at once: twice the independent sums
    rows_of<BF16, (RMAX >= 8 ? 8 : 1), 2, true>(x, lda, rows, b, k_tiles, kTileK, 2 * tile, c, kPanelN, more);
  } else {
    rows_of<BF16, RMAX, 1, true>(x, lda, rows, b, k_tiles, kTileK, 2 * tile, c, kPanelN, more);
    rows_of<BF16, RMAX, 1, true>(x, lda, rows, b + tile, k_tiles, kTileK, 2 * tile, c + kTileN, kPanelN, more);
  }
}
