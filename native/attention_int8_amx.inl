// Attention over keys and values in 8 bits, by products of integers on AMX tiles. Included by kernels_amx.cpp.
//
// Blocks are multiplied as they lie in memory: what is not 8 bits wide, a row's queries and its weights of a chunk, becomes
// integers of two bytes on a grid of its own, 256 * high + low with both signed. A sum over a head's dims or a chunk's tokens
// is exact in 32 bits, so no order matters; floats come in after it.
//
// Both bytes of a query row are rows of one tile, next to each other. So groups are of 8 rows here, and one product
// does for both: for the few rows of decoding it takes hardly longer than for one of them.
#pragma once

enum { kTileRows = 8, kGroupRows = 16, kMostInteger = 127 * 256 + 127 };
static_assert((long)kMostInteger * 127 * kMaxHeadDim < 1l << 31 && kChunk == kByteK, "sums of products stay exact");

// 0-3: sums; 4, 5: queries or weights of 8 rows each (A); 6, 7: keys or values (B).
static void enter_integers(int rows) {
  TileConfig config;
  for (int i = 0; i < 8; i++) set_tile(config, i, i < 6 && rows < kTileRows ? 2 * rows : 16, 64);
  load_config(config);
}

// Codes of kv.inl as integers.
static inline void signed_codes(uint8_t* codes, int n) {
  for (int i = 0; i < n; i += 64) {
    const __m512i code = _mm512_load_si512(codes + i), magnitude = _mm512_and_si512(code, _mm512_set1_epi8(0x7f));
    _mm512_store_si512(codes + i, _mm512_mask_sub_epi8(magnitude, _mm512_movepi8_mask(code), _mm512_setzero_si512(), magnitude));
  }
}

static void write_kv_integers(const float* k, const float* v, int dim, int slot, void* k_block, void* v_block) {
  alignas(64) uint8_t key[kMaxHeadDim + 64], value[kMaxHeadDim + 64];
  uint8_t *kb = (uint8_t*)k_block, *vb = (uint8_t*)v_block;
  const long scales = (long)(dim + kTileK - 1) / kTileK * kTileK * kKvBlock;
  const float v_scale = codes_of(v, dim, value);
  ((float*)(kb + scales))[slot] = codes_of(k, dim, key);
  ((float*)(vb + scales))[slot] = finite(v_scale);
  signed_codes(key, dim);
  signed_codes(value, dim);
  for (int i = 0; i < dim; i += 4) __builtin_memcpy(kb + i * kKvBlock + slot * 4, key + i, 4);
  // Of four tokens only this one's bytes are written: the others may be another thread's.
  vb += slot / 4 * 64;
  const __m128i shift = _mm_cvtsi32_si128(slot % 4 * 8);
  for (int i = 0; i < dim; i += 16) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)(value + i)));
    _mm512_mask_storeu_epi8(vb + i * kKvBlock, 0x1111111111111111u << slot % 4, _mm512_sll_epi32(wide, shift));
  }
}

// The largest magnitude; NaN where one is not finite.
static inline float largest(const VF* x, int n) {
  __m512i most = _mm512_setzero_si512();  // bits of magnitudes are in the order of values, and NaNs the largest
  for (int i = 0; i < n; i++) most = _mm512_max_epu32(most, _mm512_and_si512((__m512i)x[i], _mm512_set1_epi32(0x7fffffff)));
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  float top;
  __builtin_memcpy(&top, &bits, 4);
  return top + (top - top);
}

// What integers stand for, and the other way round.
static inline float unit_of(float largest) { return largest * (1.0f / kMostInteger); }
static inline VF per_unit(float largest) { return splat(largest > 0x1p-100f ? kMostInteger / largest : 0.0f); }

// 64 floats as integers of two bytes, in the tile rows `to` (high bytes) and the next.
static inline void save_integers(const VF* x, VF per_unit, uint8_t* to) {
  // Packing works in quarters of a register: it leaves four i of quarter q where four q of quarter i belong.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i half = _mm512_set1_epi16(128), byte = _mm512_set1_epi16(255);
  const __m512i a = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0] * per_unit), _mm512_cvtps_epi32(x[1] * per_unit));
  const __m512i b = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2] * per_unit), _mm512_cvtps_epi32(x[3] * per_unit));
  const __m512i high = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(a, half), 8),
                                          _mm512_srai_epi16(_mm512_add_epi16(b, half), 8));
  const __m512i low = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
  _mm512_store_si512(to, _mm512_permutexvar_epi32(order, high));
  _mm512_store_si512(to + 64, _mm512_permutexvar_epi32(order, low));
}

// A row of queries, 64 dims a tile; returns what its integers stand for.
static inline float save_query(const float* q, int dp, uint8_t* to) {
  VF x[kMaxHeadDim / W];
  const int n = (dp + kByteK - 1) / kByteK * kByteK / W;
  for (int i = 0; i < n; i++) x[i] = i * W < dp ? load(q + i * W) : VF{};
  const float top = largest(x, n);
  for (int i = 0; i < dp; i += 64, to += kByteTile) save_integers(x + i / W, per_unit(top), to);
  return unit_of(top);
}

// sums[rows][64] of n (1-4) B, over `tiles` tiles, for up to 8 rows.
static inline void multiply_few(const uint8_t* a, int tiles, const char* const* b, int n, int32_t* sums, Ahead& ahead) {
  zero_tiles();
  for (long at = 0; at < tiles * kByteTile; at += kByteTile) {
    _tile_loadd(4, a + at, 64);
    _tile_loadd(6, b[0] + at, 64);
    _tile_dpbssd(0, 4, 6);
    ahead.some();
    if (n < 2) continue;
    _tile_loadd(6, b[1] + at, 64);
    _tile_dpbssd(1, 4, 6);
    ahead.some();
    if (n < 3) continue;
    _tile_loadd(6, b[2] + at, 64);
    _tile_dpbssd(2, 4, 6);
    ahead.some();
    if (n < 4) continue;
    _tile_loadd(6, b[3] + at, 64);
    _tile_dpbssd(3, 4, 6);
    ahead.some();
  }
  store_tiles((float*)sums, n, 64 * 4);
}

// The same for up to 16, two tiles of A.
static inline void multiply_many(const uint8_t* a, int tiles, const char* const* b, int n, int32_t* sums, Ahead& ahead) {
  const uint8_t* second = a + tiles * kByteTile;
  int32_t* more = sums + 16 * 64;
  for (int i = 0; i < n; i += 2) {
    zero_tiles();
    for (long at = 0; at < tiles * kByteTile; at += kByteTile) {
      _tile_loadd(4, a + at, 64);
      _tile_loadd(6, b[i] + at, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(5, second + at, 64);
      _tile_dpbssd(2, 5, 6);
      ahead.some();
      if (i + 1 == n) continue;
      _tile_loadd(7, b[i + 1] + at, 64);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
    store_tiles((float*)sums + i * 16, n - i < 2 ? 1 : 2, 64 * 4);
    _tile_stored(2, more + i * 16, 64 * 4);
    if (i + 1 < n) _tile_stored(3, more + i * 16 + 16, 64 * 4);
  }
}

// W sums of both bytes' rows as one.
static inline VF joined(const int32_t* sums) {
  return (VF)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(sums), 8), _mm512_load_si512(sums + 64)));
}

// A block's values are a quarter of a tile: those of a chunk are put together to whole ones, [dp/16][16 fours of tokens][16][4].
static inline void copy_values(const char* const* v, int n, int dp, char* to, Ahead& ahead) {
  for (int b = 0; b < n; b++)
    for (int j = 0; j < dp / 16; j++, ahead.some())
      for (int i = 0; i < 256; i += 64)
        _mm512_store_si512(to + j * kByteTile + b * 256 + i, _mm512_loadu_si512(v[b] + j * 256 + i));
}

static void attend_integers(const AttentionCall* call, AttentionState* state) {
  const int dp = call->dp, rows = call->rows, q_tiles = (dp + kByteK - 1) / kByteK;
  // Half a tile of dims at the end is multiplied as a whole one: by zeros, whatever follows a block's keys.
  alignas(64) uint8_t q[2 * kQueryRows * kMaxHeadDim];
  alignas(64) uint8_t weights[2 * kGroupRows * kChunk];
  alignas(64) int32_t sums[2 * kGroupRows * 64];
  float q_unit[kQueryRows], w_unit[kGroupRows];
  Scales scales{};  // zero where a chunk has no block
  scales.score = call->scale * 1.44269504f;
  for (int r = 0; r < rows; r++)
    q_unit[r] = save_query(call->q + (long)r * dp, dp, q + r / kTileRows * q_tiles * kByteTile + r % kTileRows * 128);
  reset(state, rows, dp);
  for (int first = call->begin; first < call->end; first += kChunk) {
    const char *k[kChunk / kKvBlock], *v[kChunk / kKvBlock];
    const int blocks = chunk_blocks<true>(call, first, k, v, &scales);
    Ahead ahead(call, first, 2 * call->v_offset);
    copy_values(v, blocks, dp, call->tiles, ahead);
    for (int g = 0; g < rows; g += kGroupRows) {
      const int m = rows - g < kGroupRows ? rows - g : kGroupRows, n = seen_blocks(call, g, m, first, blocks);
      if (n == 0) continue;
      (m > kTileRows ? multiply_many : multiply_few)(q + g / kTileRows * q_tiles * kByteTile, q_tiles, k, n, sums, ahead);
      for (int i = 0; i < 12; i++) ahead.some();
      const int32_t* products = sums;
      const float* units = q_unit + g;
      float* unit = w_unit;
      uint8_t* w = weights;
      softmax_rows<false, true>(
          call, scales, state, g, m, first, kChunk,
          [=](int r, int i) { return joined(products + r * 128 + i) * splat(units[r]); },
          [=](int r, int, const VF* p) {
            const float top = largest(p, kChunk / W);
            save_integers(p, per_unit(top), w + r * 128);
            unit[r] = unit_of(top);
          });
      for (int j = 0; j < dp; j += 64) {
        const int columns = dp - j < 64 ? dp - j : 64;
        const char* tiles = call->tiles + j / 16 * kByteTile;
        const char* four[] = {tiles, tiles + kByteTile, tiles + 2 * kByteTile, tiles + 3 * kByteTile};
        (m > kTileRows ? multiply_many : multiply_few)(weights, 1, four, columns / 16, sums, ahead);
        for (int r = 0; r < m; r++) {
          float* acc = state->acc + (long)(g + r) * dp + j;
          for (int i = 0; i < columns; i += W) save(acc + i, vfma(joined(sums + r * 128 + i), splat(w_unit[r]), load(acc + i)));
        }
      }
    }
  }
}
