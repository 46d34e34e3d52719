// AMX: 16 x 16 x 32 bf16 tile products for the linear layers and both products of attention. fp32 uses AVX512.
//
// A tile product takes the same time for 1 row as for 16, and its sums run over k in one order for every row, so one
// kernel serves every batch size and keeps results independent of it.
#include "integer.h"
#include "kernels.h"
#include "strips.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__)
#include <immintrin.h>

namespace hr {
namespace {

#include "simd_avx512.inl"

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

static inline void set_tile(TileConfig& config, int tile, int rows, int row_bytes) {
  config.rows[tile] = (uint8_t)rows;
  config.row_bytes[tile] = (uint16_t)row_bytes;
}

static inline void load_config(const TileConfig& config) {
  asm volatile("" ::"r"(&config) : "memory");  // gcc 12 may drop the stores into a config that only ldtilecfg reads
  _tile_loadconfig(&config);
}

// 0-3: C of (row group, half panel) 00 01 10 11; 4, 5: A of both row groups; 6, 7: B of both halves.
// With fewer than 16 rows in all, tiles of the first group shrink to them: fewer lines to load, the same sums.
static void enter_gemm(int rows) {
  TileConfig config;
  for (int i = 0; i < 8; i++) set_tile(config, i, 16, 64);
  if (rows < 16) config.rows[0] = config.rows[1] = config.rows[4] = (uint8_t)rows;
  load_config(config);
}

// 0-3: C; 4: A and 5: B of 32 k (scores); 6: A and 7: B of 16 k (values of one block).
static void enter_attention() {
  TileConfig config;
  for (int i = 0; i < 6; i++) set_tile(config, i, 16, 64);
  set_tile(config, 6, 16, 32);
  set_tile(config, 7, 8, 64);
  load_config(config);
}

static void leave() { _tile_release(); }

static inline void store_tiles(int rows, float* c) {
  _tile_stored(0, c, kPanelN * 4);
  _tile_stored(1, c + 16, kPanelN * 4);
  if (rows <= 16) return;
  _tile_stored(2, c + 16 * kPanelN, kPanelN * 4);
  _tile_stored(3, c + 16 * kPanelN + 16, kPanelN * 4);
}

static void gemm_tiles(const void* a, int rows, const void* panel, int k_tiles, float* c, const void* ahead, int lines) {
  const char *x = (const char*)a, *b = (const char*)panel, *next = (const char*)ahead;
  if (rows <= 16) {
    _tile_zero(0);
    _tile_zero(1);
    for (int t = 0; t < k_tiles; t++, x += 1024, b += 2048) {
      _tile_loadd(4, x, 64);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    store_tiles(rows, c);
    return;
  }
  const char* y = x + (long)k_tiles * 1024;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int t = 0; t < k_tiles; t++, x += 1024, y += 1024, b += 2048) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, y, 64);
    _tile_dpbf16ps(2, 5, 6);
    for (int i = 0; i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    _tile_loadd(7, b + 1024, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  store_tiles(rows, c);
}

// Few rows: weights become tiles a little before they are multiplied, in memory that stays in the first-level cache, and
// both go on at the same time.
static void gemm_few(const void* a, int rows, const Strip* strips, int k_tiles, float* c) {
  constexpr int kStep = 4;
  alignas(64) char tiles[2][kStep * 2048];
  const char *x = (const char*)a, *y = x + (long)k_tiles * 1024;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int t = -kStep; t < k_tiles; t += kStep) {
    const int next = t + kStep;
    char* to = tiles[next / kStep % 2];
    if (next < k_tiles)
      for (int half = 0; half < 2; half++)
        expand_strip<true>(strips + half, k_tiles, next, next + kStep < k_tiles ? next + kStep : k_tiles, to + half * 1024);
    if (t < 0) continue;
    const char* b = tiles[t / kStep % 2];
    for (int i = t; i < k_tiles && i < next; i++, x += 1024, y += 1024, b += 2048) {
      _tile_loadd(4, x, 64);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
      if (rows <= 16) continue;
      _tile_loadd(5, y, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  store_tiles(rows, c);
}

// Scores of n blocks (n tiles of 16 x 16, side by side in s).
static inline void scores(const uint16_t* q, int dp, const char* const* kv, int n, float* s) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int j = 0; j < dp / kTileK; j++) {
    _tile_loadd(4, q + j * 512, 64);
    _tile_loadd(5, kv[0] + j * 1024, 64);
    _tile_dpbf16ps(0, 4, 5);
    if (n < 2) continue;
    _tile_loadd(5, kv[1] + j * 1024, 64);
    _tile_dpbf16ps(1, 4, 5);
    if (n < 3) continue;
    _tile_loadd(5, kv[2] + j * 1024, 64);
    _tile_dpbf16ps(2, 4, 5);
    if (n < 4) continue;
    _tile_loadd(5, kv[3] + j * 1024, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, s, kChunk * 4);
  _tile_stored(1, s + 16, kChunk * 4);
  _tile_stored(2, s + 32, kChunk * 4);
  _tile_stored(3, s + 48, kChunk * 4);
}

// acc[16][64 columns] += P (n blocks of [16 rows][16 tokens]) * V, columns in tiles of 16, `columns` (1-4) of them.
static inline void values(const uint16_t* p, const char* const* kv, long v_offset, int n, int columns, float* acc,
                          long ld) {
  _tile_loadd(0, acc, ld);
  if (columns > 1) _tile_loadd(1, acc + 16, ld);
  if (columns > 2) _tile_loadd(2, acc + 32, ld);
  if (columns > 3) _tile_loadd(3, acc + 48, ld);
  for (int b = 0; b < n; b++) {
    const char* v = kv[b] + v_offset;
    _tile_loadd(6, p + b * 256, 32);
    _tile_loadd(7, v, 64);
    _tile_dpbf16ps(0, 6, 7);
    if (columns < 2) continue;
    _tile_loadd(7, v + 512, 64);
    _tile_dpbf16ps(1, 6, 7);
    if (columns < 3) continue;
    _tile_loadd(7, v + 1024, 64);
    _tile_dpbf16ps(2, 6, 7);
    if (columns < 4) continue;
    _tile_loadd(7, v + 1536, 64);
    _tile_dpbf16ps(3, 6, 7);
  }
  _tile_stored(0, acc, ld);
  if (columns > 1) _tile_stored(1, acc + 16, ld);
  if (columns > 2) _tile_stored(2, acc + 32, ld);
  if (columns > 3) _tile_stored(3, acc + 48, ld);
}

// Query rows are taken in groups of 16, one tile each. While one group's weights are computed in vector registers, the
// tile unit works for the other.
static void attend_tiles(const AttentionCall* call, AttentionState* state) {
  const int dp = call->dp, groups = (call->rows + 15) / 16;
  alignas(64) uint16_t q[kQueryRows * kMaxHeadDim];  // [group][dp/32][16][32]
  alignas(64) float s[kQueryRows * kChunk];
  alignas(64) uint16_t p[kQueryRows * kChunk];  // [group][4 blocks][16 rows][16 tokens]
  // Rows beyond `rows` multiply as zeros.
  for (int i = 0; i < groups * 16 * dp; i += 32) *(__m512i*)(q + i) = _mm512_setzero_si512();
  for (int i = 0; i < groups * 16 * kChunk; i += 32) *(__m512i*)(p + i) = _mm512_setzero_si512();
  for (int r = 0; r < call->rows; r++)
    for (int j = 0; j < dp; j += 16)
      save_bf16(q + (r / 16) * 16 * dp + (j / 32) * 512 + (r % 16) * 32 + j % 32, load(call->q + (long)r * dp + j));
  reset(state, groups * 16, dp);
  for (int first = call->begin; first < call->end; first += kChunk) {
    const int n = call->end - first < kChunk ? (call->end - first + kKvBlock - 1) / kKvBlock : kChunk / kKvBlock;
    const char* kv[kChunk / kKvBlock];
    for (int b = 0; b < n; b++) kv[b] = call->kv + (long)call->blocks[first / kKvBlock + b] * call->block_stride;
    for (int g = 0; g < groups; g++) scores(q + g * 16 * dp, dp, kv, n, s + g * 16 * kChunk);
    for (int g = 0; g < groups; g++) {
      uint16_t* weights = p + g * 16 * kChunk;
      for (int r = 0; r < 16 && g * 16 + r < call->rows; r++)
        softmax_row(call, state, g * 16 + r, first, s + (g * 16 + r) * kChunk,
                    [=](int column, VF w) { save_bf16(weights + column * 16 + r * 16, w); });
    }
    for (int g = 0; g < groups; g++) {
      float* acc = state->acc + (long)g * 16 * dp;
      for (int j = 0; j < dp / 16; j += 4)
        values(p + g * 16 * kChunk, kv, call->v_offset + j * 512, n, dp / 16 - j < 4 ? dp / 16 - j : 4, acc + j * 16, dp * 4);
    }
  }
}

#include "integer_amx.inl"

static constexpr Kernels with_tiles() {
  Kernels t = rows_kernels<true, true>("amx");
  t.enter_gemm = enter_gemm;
  t.enter_attention = enter_attention;
  t.leave = leave;
  t.gemm = gemm_tiles;
  t.gemm_strips = gemm_few;
  t.enter_integer = enter_integer;
  t.gemm_integer = gemm_bytes;
  t.gemm_nibbles = gemm_nibbles;
  t.attend = attend_tiles;
  return t;
}

constexpr Kernels kFloat = rows_kernels<false, false>("amx"), kBf16 = with_tiles();

}  // namespace

const Kernels* kernels_amx(bool bf16) { return bf16 ? &kBf16 : &kFloat; }

}  // namespace hr

#else
namespace hr {
const Kernels* kernels_amx(bool) { return nullptr; }
}  // namespace hr
#endif
