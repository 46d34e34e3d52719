// Products of integers (integer.h) on AMX tiles. Included by kernels_amx.cpp.
//
// Tiles 0-3 are sums, 4 and 5 two tiles of A, 6 and 7 those of both halves of a panel. The two of A are 16 rows each, or
// both planes of the same 16.
#pragma once

static void enter_integer(int rows, int planes) {
  TileConfig config;
  for (int i = 0; i < 8; i++) set_tile(config, i, 16, 64);
  if (rows < 16) config.rows[0] = config.rows[1] = config.rows[4] = (uint8_t)rows;
  if (rows < 16 && planes == 2) config.rows[2] = config.rows[3] = config.rows[5] = (uint8_t)rows;
  load_config(config);
}

static inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// One tile of k: both tiles of A (x, y; y null: one) by both halves of the panel. fetch(0) and fetch(1) are called before the
// halves are loaded. Of many rows, A only passes through the first-level cache, where the panel stays.
template <class Fetch>
static inline __attribute__((always_inline)) void multiply_bytes(const char* x, const char* y, const char* left,
                                                                 const char* right, bool passing, Fetch fetch) {
  fetch(0);
  if (passing)
    _tile_stream_loadd(4, x, 64);
  else
    _tile_loadd(4, x, 64);
  _tile_loadd(6, left, 64);
  _tile_dpbssd(0, 4, 6);
  if (y) {
    if (passing)
      _tile_stream_loadd(5, y, 64);
    else
      _tile_loadd(5, y, 64);
    _tile_dpbssd(2, 5, 6);
  }
  fetch(1);
  _tile_loadd(7, right, 64);
  _tile_dpbssd(1, 4, 7);
  if (y) _tile_dpbssd(3, 5, 7);
}

// The sums times their scales: c[rows][32], rows of `first` (and, with one plane, of `second`).
static inline void results(int planes, int rows, const char* first, const char* second, const Strip* strips, int tiles,
                           float* c) {
  alignas(64) int32_t sums[4][16][16];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  if (planes == 2 || rows > 16) {
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }
  const float *scale = (const float*)first, *scale2 = (const float*)second;
  for (int half = 0; half < 2; half++) {
    const VF unit = load((const float*)(strips[half].data + integer_end(strips[half].format, tiles)));
    float* out = c + half * 16;
    for (int r = 0; r < rows && r < 16; r++) {
      const VI one = *(VI*)sums[half][r], two = *(VI*)sums[2 + half][r];
      save(out + r * kPanelN, planes == 2 ? to_result<2>(one, two, splat(scale[r]), unit)
                                          : to_result<1>(one, one, splat(scale[r]), unit));
    }
    for (int r = 16; r < rows; r++) {
      const VI one = *(VI*)sums[2 + half][r - 16];
      save(out + r * kPanelN, to_result<1>(one, one, splat(scale2[r - 16]), unit));
    }
  }
}

static void gemm_bytes(const void* a, int rows, int planes, const Strip* strips, int tiles, float* c, const void* ahead,
                       int lines) {
  const long group = integer_group_bytes(tiles, planes), plane = tiles * kByteTile;
  const char* next = (const char*)ahead;
  const auto fetch = [&](int half) {
    for (int i = 0; i < (lines + half) / 2; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  };
  const int step = planes == 2 ? 16 : 32;  // rows that two tiles of A have
  for (int first = 0; first < rows; first += step) {
    const char *x = (const char*)a + first / 16 * group, *left = strips[0].data, *right = strips[1].data;
    const bool two = planes == 2 || rows > 16;
    const long y = two ? (planes == 2 ? plane : group) : 0;
    zero_sums();
    const char* tile = x + 64;
    if (rows > 16)
      for (int t = 0; t < tiles; t++, tile += kByteTile, left += kByteTile, right += kByteTile) {
        multiply_bytes(tile, tile + y, left, right, true, fetch);
      }
    else if (two)
      for (int t = 0; t < tiles; t++, tile += kByteTile, left += kByteTile, right += kByteTile) {
        multiply_bytes(tile, tile + y, left, right, false, fetch);
      }
    else
      for (int t = 0; t < tiles; t++, tile += kByteTile, left += kByteTile, right += kByteTile) {
        multiply_bytes(tile, nullptr, left, right, false, fetch);
      }
    results(planes, rows - first < step ? rows - first : step, x, x + group, strips, tiles, c + first * kPanelN);
  }
}

// Nibbles become bytes a little before they are multiplied, in memory that stays in the first-level cache: the vector units
// make the bytes of one tile while the tile unit multiplies one of before. Up to as many rows as two tiles of A have.
static void gemm_nibbles(const void* a, int rows, int planes, const Strip* strips, int tiles, float* c) {
  constexpr int kAhead = 3;
  alignas(64) char bytes[kAhead + 1][2][kByteTile];
  const long group = integer_group_bytes(tiles, planes), plane = tiles * kByteTile;
  const char *x = (const char*)a, *tile = x + 64;
  const bool two = planes == 2 || rows > 16;
  const long y = planes == 2 ? plane : group;
  const auto nothing = [](int) {};  // expand_nibbles fetches
  zero_sums();
  for (int t = -kAhead; t < tiles; t++) {
    const int next = t + kAhead;
    for (int half = 0; half < 2 && next < tiles; half++) {
      char* to = bytes[next % (kAhead + 1)][half];
      if (strips[half].format == kBytes)
        __builtin_memcpy(to, strips[half].data + next * kByteTile, kByteTile);
      else
        expand_nibbles(strips + half, next, next + 1, to);
    }
    if (t < 0) continue;
    const char(&from)[2][kByteTile] = bytes[t % (kAhead + 1)];
    if (two)
      multiply_bytes(tile, tile + y, from[0], from[1], false, nothing);
    else
      multiply_bytes(tile, nullptr, from[0], from[1], false, nothing);
    tile += kByteTile;
  }
  results(planes, rows, x, x + group, strips, tiles, c);
}
