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

static void leave() { _tile_release(); }

static inline void store_panel(int rows, float* c) {
  _tile_stored(0, c, kPanelN * 4);
  _tile_stored(1, c + 16, kPanelN * 4);
  if (rows <= 16) return;
  _tile_stored(2, c + 16 * kPanelN, kPanelN * 4);
  _tile_stored(3, c + 16 * kPanelN + 16, kPanelN * 4);
}

static inline void load_panel(int rows, const float* c) {
  _tile_loadd(0, c, kPanelN * 4);
  _tile_loadd(1, c + 16, kPanelN * 4);
  if (rows <= 16) return;
  _tile_loadd(2, c + 16 * kPanelN, kPanelN * 4);
  _tile_loadd(3, c + 16 * kPanelN + 16, kPanelN * 4);
}

static inline void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// The panel stays in the first-level cache for the row blocks that follow, where it fits; A only passes through, hence its
// hint. What is finished on the way costs little: vectors and tiles work at once.
static void gemm_tiles(const GemmCall* call) {
  const int rows = call->rows, k_tiles = call->k_tiles;
  const char *x = (const char*)call->a, *y = x + call->group, *b = (const char*)call->panel, *next = (const char*)call->ahead;
  const Finish* before = call->before;
  const int left = before ? before->count : 0, some = (left + k_tiles - 1) / k_tiles;
  int done = 0;
  const auto finish = [&] {
    if (done >= left) return;
    const int end = done + some < left ? done + some : left;
    before->rows(before, done, end);
    done = end;
  };
  const auto fetch = [&] {
    for (int i = 0; i < call->lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  };
  if (call->more)
    load_panel(rows, call->c);
  else
    zero_tiles();
  if (rows <= 16) {
    if (before) before->rows(before, 0, left);
    for (int t = 0; t < k_tiles; t++, x += 1024, b += 2048) {
      fetch();
      _tile_loadd(4, x, 64);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
  } else {
    for (int t = 0; t < k_tiles; t++, x += 1024, y += 1024, b += 2048) {
      _tile_stream_loadd(4, x, 64);
      _tile_loadd(6, b, 64);
      _tile_loadd(7, b + 1024, 64);
      _tile_stream_loadd(5, y, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      fetch();
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      finish();
    }
  }
  store_panel(rows, call->c);
}

// Few rows: weights become tiles a little before they are multiplied, in memory that stays in the first-level cache, and
// both go on at the same time.
static void gemm_few(const void* a, int rows, const Strip* strips, int k_tiles, float* c) {
  constexpr int kStep = 3;  // of 1 to 6 the fastest
  alignas(64) char tiles[2][kStep * 2048];
  const char *x = (const char*)a, *y = x + (long)k_tiles * 1024;
  zero_tiles();
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
  store_panel(rows, c);
}

#include "attention_amx.inl"
#include "attention_int8_amx.inl"

#include "integer_amx.inl"

static constexpr Kernels with_tiles() {
  Kernels t = rows_kernels<true, true>("amx");
  t.enter_gemm = enter_gemm;
  t.enter_attention[0] = enter_attention;
  t.enter_attention[1] = enter_integers;
  t.leave = leave;
  t.overlaps = true;
  t.gemm = gemm_tiles;
  t.gemm_strips = gemm_few;
  t.strip_rows = kRowBlock;
  t.enter_integer = enter_integer;
  t.gemm_integer = gemm_bytes;
  t.gemm_nibbles = gemm_nibbles;
  t.write_kv[1] = write_kv_integers;
  t.attend[0] = attend_tiles;
  t.attend[1] = attend_integers;
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
