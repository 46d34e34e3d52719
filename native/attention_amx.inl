// Attention on AMX tiles. Included by kernels_amx.cpp.
//
// The tile unit and 512-bit vectors share their ports: 4 products beside 128 multiply-adds take as long as one after the
// other, and so do tile loads and stores. So nothing here tries to overlap them.
#pragma once

// 0-3: C; 4: queries and 6: weights (A); 5: keys and 7: values of one block (B). Up to 16 rows of queries: a product
// of fewer takes less time.
static void enter_attention(int rows) {
  TileConfig config;
  for (int i = 0; i < 5; i++) set_tile(config, i, rows, 64);
  set_tile(config, 5, 16, 64);
  set_tile(config, 6, rows, 32);
  set_tile(config, 7, 8, 64);
  load_config(config);
}

static inline void load_tiles(const float* c, int n, long ld) {
  _tile_loadd(0, c, ld);
  if (n > 1) _tile_loadd(1, c + 16, ld);
  if (n > 2) _tile_loadd(2, c + 32, ld);
  if (n > 3) _tile_loadd(3, c + 48, ld);
}

static inline void store_tiles(float* c, int n, long ld) {
  _tile_stored(0, c, ld);
  if (n > 1) _tile_stored(1, c + 16, ld);
  if (n > 2) _tile_stored(2, c + 32, ld);
  if (n > 3) _tile_stored(3, c + 48, ld);
}

// The chunk after the one that begins at `first`, asked for a few lines at a time between products: many at once would hold
// up the products' own loads. `bytes` of each block and head: without its values, they follow
// through the hardware's prefetcher.
struct Ahead {
  const char* keys[kChunk / kKvBlock];
  const long bytes;
  long done = 0;
  int blocks = 0, block = 0;

  Ahead(const AttentionCall* call, int first, long bytes) : bytes(bytes) {
    const bool more = first + kChunk < call->end;
    const int32_t* table = more ? call->blocks + (first + kChunk) / kKvBlock : call->next_blocks;
    const char* kv = more ? call->kv : call->next_kv;
    const int tokens = more ? call->end - first - kChunk : call->next_tokens;
    for (; blocks < kChunk / kKvBlock && blocks * kKvBlock < tokens; blocks++) keys[blocks] = kv + table[blocks] * call->block_stride;
  }
  inline __attribute__((always_inline)) void some() {
    if (block == blocks) return;
    for (int i = 0; i < 4; i++) _mm_prefetch(keys[block] + done + i * 64, _MM_HINT_T1);
    done += 4 * 64;
    if (done < bytes) return;
    done = 0;
    block++;
  }
};

// Scores of n blocks, side by side in s.
static inline void scores(const uint16_t* q, int dp, const char* const* k, int n, float* s, Ahead& ahead) {
  zero_tiles();
  for (int j = 0; j < dp / kTileK; j++) {
    _tile_loadd(4, q + j * 512, 64);
    _tile_loadd(5, k[0] + j * 1024, 64);
    _tile_dpbf16ps(0, 4, 5);
    ahead.some();
    if (n < 2) continue;
    _tile_loadd(5, k[1] + j * 1024, 64);
    _tile_dpbf16ps(1, 4, 5);
    ahead.some();
    if (n < 3) continue;
    _tile_loadd(5, k[2] + j * 1024, 64);
    _tile_dpbf16ps(2, 4, 5);
    ahead.some();
    if (n < 4) continue;
    _tile_loadd(5, k[3] + j * 1024, 64);
    _tile_dpbf16ps(3, 4, 5);
    ahead.some();
  }
  store_tiles(s, n, kChunk * 4);
}

// acc[rows][64 columns] += p ([rows][kChunk]) * V of n blocks, columns in tiles of 16, `columns` (1-4) of them.
static inline void values(const uint16_t* p, const char* const* v, int n, long offset, int columns, float* acc, long ld, Ahead& ahead) {
  load_tiles(acc, columns, ld);
  for (int b = 0; b < n; b++) {
    const char* tile = v[b] + offset;
    _tile_loadd(6, p + b * kKvBlock, kChunk * 2);
    _tile_loadd(7, tile, 64);
    _tile_dpbf16ps(0, 6, 7);
    ahead.some();
    if (columns < 2) continue;
    _tile_loadd(7, tile + 512, 64);
    _tile_dpbf16ps(1, 6, 7);
    ahead.some();
    if (columns < 3) continue;
    _tile_loadd(7, tile + 1024, 64);
    _tile_dpbf16ps(2, 6, 7);
    ahead.some();
    if (columns < 4) continue;
    _tile_loadd(7, tile + 1536, 64);
    _tile_dpbf16ps(3, 6, 7);
    ahead.some();
  }
  store_tiles(acc, columns, ld);
}

// Query rows are taken in groups of 16, one tile each; all that one group needs for a chunk stays in the first-level cache.
static void attend_tiles(const AttentionCall* call, AttentionState* state) {
  static_assert(kChunk == 64, "the scores of a chunk are four tiles");
  const int dp = call->dp, rows = call->rows, groups = (rows + 15) / 16;
  alignas(64) uint16_t q[kQueryRows * kMaxHeadDim];  // [group][dp/32][16][32]
  alignas(64) float s[16 * kChunk];
  alignas(64) uint16_t p[16 * kChunk];
  Scales scales;
  scales.score = call->scale * 1.44269504f;
  // Rows beyond `rows` multiply as whatever lies there; nobody reads their results.
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < dp; j += 16)
      save_bf16(q + (r / 16) * 16 * dp + (j / 32) * 512 + (r % 16) * 32 + j % 32, load(call->q + (long)r * dp + j));
  reset(state, rows, dp);
  for (int first = call->begin; first < call->end; first += kChunk) {
    const char *k[kChunk / kKvBlock], *v[kChunk / kKvBlock];
    const int blocks = chunk_blocks<false>(call, first, k, v, &scales);
    Ahead ahead(call, first, call->v_offset);
    for (int g = 0; g < groups; g++) {
      const int m = rows - g * 16 < 16 ? rows - g * 16 : 16;
      const int n = seen_blocks(call, g * 16, m, first, blocks), tokens = (n + n % 2) * kKvBlock;
      if (n == 0) continue;
      scores(q + g * 16 * dp, dp, k, n, s, ahead);
      for (int i = 0; i < 4; i++) ahead.some();
      const float* products = s;
      uint16_t* weights = p;
      softmax_rows<false, false>(
          call, scales, state, g * 16, m, first, tokens, [=](int r, int i) { return load(products + r * kChunk + i); },
          [=](int r, int i, const VF* w) {
            *(__m512bh*)(weights + r * kChunk + i) = _mm512_cvtne2ps_pbh(w[1], w[0]);
            *(__m512bh*)(weights + r * kChunk + i + 2 * W) = _mm512_cvtne2ps_pbh(w[3], w[2]);
          });
      float* acc = state->acc + (long)g * 16 * dp;
      for (int j = 0; j < dp / 16; j += 4)
        values(p, v, n, j * 512, dp / 16 - j < 4 ? dp / 16 - j : 4, acc + j * 16, dp * 4, ahead);
    }
  }
}
