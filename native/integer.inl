// Products of integers (integer.h) in vector registers. Included after simd.inl; the file that includes it may define
// HR_VNNI, for VPDPBUSD: activations' bytes are then stored with 128 added.
#pragma once
#include "integer.h"

typedef int16_t VS __attribute__((vector_size(VBYTES)));
typedef int8_t VB4 __attribute__((vector_size(VBYTES / 4)));
typedef int32_t VIu __attribute__((vector_size(VBYTES), aligned(4), may_alias));

static inline VF to_float(VI v) { return __builtin_convertvector(v, VF); }

// acc + the four products of bytes in each lane. What a kind of processor wants to see of either factor is prepared once
// for several uses.
#if defined(HR_VNNI)
static constexpr int kStoredBias = 128;
struct Weights { VI all; };
struct Values { VI all; };
static inline Weights weights_of(VI x) { return {x}; }
static inline Values values_of(VI x) { return {x}; }
static inline VI dot4(VI acc, Weights w, Values x) { return (VI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x.all, (__m512i)w.all); }
#elif defined(__AVX512BW__) || defined(__AVX2__)
static constexpr int kStoredBias = 0;
struct Weights { VI even, odd; };  // 16-bit: bytes 0 and 2; 1 and 3
struct Values { VI even, odd; };
static inline VI multiply_pairs(VI a, VI b) {
#if defined(__AVX512BW__)
  return (VI)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
  return (VI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
static inline Weights weights_of(VI x) { return {(VI)((VS)x << 8 >> 8), (VI)((VS)x >> 8)}; }
static inline Values values_of(VI x) { return {(VI)((VS)x << 8 >> 8), (VI)((VS)x >> 8)}; }
static inline VI dot4(VI acc, Weights w, Values x) {
  return acc + (multiply_pairs(w.even, x.even) + multiply_pairs(w.odd, x.odd));
}
#else
static constexpr int kStoredBias = 0;
struct Weights { VI b[4]; };
struct Values { VI b[4]; };
static inline Weights weights_of(VI x) { return {{x << 24 >> 24, x << 16 >> 24, x << 8 >> 24, x >> 24}}; }
static inline Values values_of(VI x) { return {{x << 24 >> 24, x << 16 >> 24, x << 8 >> 24, x >> 24}}; }
static inline VI dot4(VI acc, Weights w, Values x) {
  for (int i = 0; i < 4; i++) acc += w.b[i] * x.b[i];
  return acc;
}
#endif

// (high * 255 + low) * scale * unit; with one plane, `low` is all.
template <int PLANES>
static inline VF to_result(VI high, VI low, VF scale, VF unit) {
  const VF x = PLANES == 1 ? to_float(low) : to_float(high) * (float)kLowSteps + to_float(low);
  return x * scale * unit;
}

// c[R][16 NV] of R rows: `a` is the first of them in its plane's first tile.
template <int PLANES, int R, int NV>
static inline __attribute__((always_inline)) void dot_rows(const char* a, const float* scale, const char* const* b,
                                                           const char* const* end, int tiles, float* c) {
  VI acc[R][PLANES][NV * V16];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < PLANES; p++)
      for (int v = 0; v < NV * V16; v++) acc[r][p][v] = VI{};
  const long plane = tiles * kByteTile;
  for (int t = 0; t < tiles; t++)
    for (int four = 0; four < 16; four++) {
      Weights w[NV * V16];
      for (int v = 0; v < NV * V16; v++) {
        const char* from = b[v / V16] + t * kByteTile + four * 64 + v % V16 * VBYTES;
        if (v % V16 == 0) __builtin_prefetch(from + kFetchAhead, 0, 2);
        w[v] = weights_of(*(const VIu*)from);
      }
      for (int r = 0; r < R; r++)
        for (int p = 0; p < PLANES; p++) {
          int32_t bytes;
          __builtin_memcpy(&bytes, a + p * plane + t * kByteTile + r * 64 + four * 4, 4);
          const Values x = values_of(VI{} + bytes);
          for (int v = 0; v < NV * V16; v++) acc[r][p][v] = dot4(acc[r][p][v], w[v], x);
        }
    }
  for (int v = 0; v < NV * V16; v++) {
    const VF unit = load((const float*)end[v / V16] + v % V16 * W);
    const VI excess = kStoredBias * *(const VIu*)(end[v / V16] + 64 + v % V16 * VBYTES);
    for (int r = 0; r < R; r++)
      save(c + r * kPanelN + v * W,
           to_result<PLANES>(acc[r][0][v] - excess, acc[r][PLANES - 1][v] - excess, splat(scale[r]), unit));
  }
}

template <int PLANES, int R, int NV>
static inline void dot_rows_of(const char* a, const float* scale, int rows, const char* const* b, const char* const* end,
                               int tiles, float* c) {
  int r = 0;
  for (; r + R <= rows; r += R) dot_rows<PLANES, R, NV>(a + r * 64, scale + r, b, end, tiles, c + r * kPanelN);
  if constexpr (R > 1)
    dot_rows_of<PLANES, R / 2, NV>(a + r * 64, scale + r, rows - r, b, end, tiles, c + r * kPanelN);
}

template <int PLANES>
static void gemm_integer_rows(const void* a, int rows, const Strip* strips, int tiles, float* c) {
  const char* b[] = {strips[0].data, strips[1].data};
  const char* end[] = {b[0] + integer_end(kBytes, tiles), b[1] + integer_end(kBytes, tiles)};
  for (int first = 0; first < rows; first += 16) {
    const char* group = (const char*)a + first / 16 * integer_group_bytes(tiles, PLANES);
    const int n = rows - first < 16 ? rows - first : 16;
    float* out = c + first * kPanelN;
    if (RMAX >= 8) {  // registers hold both halves' sums
      dot_rows_of<PLANES, RMAX / PLANES, 2>(group + 64, (const float*)group, n, b, end, tiles, out);
    } else {
      constexpr int R = RMAX / PLANES;
      dot_rows_of<PLANES, R, 1>(group + 64, (const float*)group, n, b, end, tiles, out);
      dot_rows_of<PLANES, R, 1>(group + 64, (const float*)group, n, b + 1, end + 1, tiles, out + kTileN);
    }
  }
}

static void gemm_integer(const void* a, int rows, int planes, const Strip* strips, int tiles, float* c, const void*, int) {
  planes == 1 ? gemm_integer_rows<1>(a, rows, strips, tiles, c) : gemm_integer_rows<2>(a, rows, strips, tiles, c);
}

template <int PLANES, int BIAS>
static void quantise_planes(const float* x, int tiles, char* group, int row) {
  const float limit = PLANES == 1 ? 127.0f : 127.0f * (kLowSteps + 1);
  VI most = {};  // of magnitudes, bits are in the order of values, and NaNs the largest
  for (int i = 0; i < tiles * kByteK; i += W) {
    const VI bits = (VI)load(x + i) & 0x7fffffff, more = bits > most;
    most = (more & bits) | (~more & most);
  }
  int32_t top = 0;
  for (int i = 0; i < W; i++) top = most[i] > top ? most[i] : top;
  float largest;
  __builtin_memcpy(&largest, &top, 4);
  const float scale = largest / limit;
  ((float*)group)[row] = scale - scale == 0.0f ? scale : __builtin_nanf("");
  const VF per_unit = splat(largest > 1e-30f && scale - scale == 0.0f ? limit / largest : 0.0f);
  const VF magic = splat(12582912.0f);  // 1.5 * 2^23: the sum's lowest bits are the nearest integer
  char* to = group + 64 + row * 64;
  for (int t = 0; t < tiles; t++, to += kByteTile)
    for (int i = 0; i < kByteK; i += W) {
      const VF sum = load(x + t * kByteK + i) * per_unit + magic;
      VI low = (VI)sum;
      if (PLANES == 2) {
        const VF q = sum - magic, high = q * (1.0f / kLowSteps) + magic;
        *(VB4*)(to + i) = __builtin_convertvector(((VI)high & 255) ^ BIAS, VB4);
        low = (VI)(q - (high - magic) * (float)kLowSteps + magic);
      }
      *(VB4*)(to + (PLANES - 1) * tiles * kByteTile + i) = __builtin_convertvector((low & 255) ^ BIAS, VB4);
    }
}

// A row of floats [64 tiles] on its own grid, as row `row` of the operand. One that is not finite gets a scale of NaN,
// which ends it in an error.
template <int BIAS>
static void quantise(const float* x, int tiles, int planes, void* a, int row) {
  char* group = (char*)a + row / 16 * integer_group_bytes(tiles, planes);
  planes == 1 ? quantise_planes<1, BIAS>(x, tiles, group, row % 16) : quantise_planes<2, BIAS>(x, tiles, group, row % 16);
}

// Row `row` of the float A operand.
template <bool ABF16>
static void row_of_a(const void* a, int k_tiles, int row, float* out) {
  for (int t = 0; t < k_tiles; t++)
    for (int i = 0; i < kTileK; i += W) {
      if (ABF16) {
        const uint16_t* x = (const uint16_t*)a + ((long)(row / 16) * k_tiles + t) * 512 + row % 16 * 32 + i;
        save(out + t * kTileK + i, (VF)(__builtin_convertvector(*(const VHu*)x, VU) << 16));
      } else {
        save(out + t * kTileK + i, load((const float*)a + (long)row * k_tiles * kTileK + t * kTileK + i));
      }
    }
}

#if defined(__AVX2__)
// For 16-bit words of nibbles and for bytes: which of 16 columns' bytes belong to them.
struct alignas(64) ColumnOrder {
  uint8_t first[64], second[64], bytes[64];
};
static constexpr ColumnOrder column_order() {
  ColumnOrder order{};
  for (int lane = 0; lane < 4; lane++)
    for (int i = 0; i < 16; i++) {
      order.first[lane * 16 + i] = i % 2 ? 4 * lane + i / 8 : 0x80;
      order.second[lane * 16 + i] = i % 2 ? 4 * lane + 2 + i / 8 : 0x80;
      order.bytes[lane * 16 + i] = 4 * lane + i / 4;
    }
  return order;
}
static constexpr ColumnOrder kColumnOrder = column_order();

static inline VI column_bytes(const uint8_t* columns, const uint8_t* order) {
  const __m128i x = _mm_loadu_si128((const __m128i*)columns);
#if defined(__AVX512BW__)
  return (VI)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(x), _mm512_load_si512(order));
#else
  return (VI)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(x), _mm256_load_si256((const __m256i*)order));
#endif
}

// Two vectors of words (nibble q in the highest bits) times S, rounded, packed to bytes.
static inline VI nibble_bytes(VS first, VS second, VS first_scale, VS second_scale) {
#if defined(__AVX512BW__)
  return (VI)_mm512_packs_epi16(_mm512_mulhrs_epi16((__m512i)first, (__m512i)first_scale),
                                _mm512_mulhrs_epi16((__m512i)second, (__m512i)second_scale));
#else
  return (VI)_mm256_packs_epi16(_mm256_mulhrs_epi16((__m256i)first, (__m256i)first_scale),
                                _mm256_mulhrs_epi16((__m256i)second, (__m256i)second_scale));
#endif
}

static inline VI add_bytes(VI a, VI b) {
#if defined(__AVX512BW__)
  return (VI)_mm512_adds_epi8((__m512i)a, (__m512i)b);
#else
  return (VI)_mm256_adds_epi8((__m256i)a, (__m256i)b);
#endif
}

template <bool PLUS>
static inline void bytes_of_nibbles(const uint8_t* tile, long ahead, char* out) {
  const VS top = VS{} - 4096;  // 0xf000
  __builtin_prefetch(tile + 512 + ahead, 0, 2);
  for (int part = 0; part < V16; part++)
    for (int group = 0; group < 2; group++) {
      const uint8_t* scale = tile + 512 + group * kTileN;
      const VS s0 = (VS)column_bytes(scale, kColumnOrder.first + part * VBYTES) >> 8;
      const VS s1 = (VS)column_bytes(scale, kColumnOrder.second + part * VBYTES) >> 8;
      const VI middle = PLUS ? column_bytes(tile + 544 + group * kTileN, kColumnOrder.bytes + part * VBYTES) : VI{};
      for (int pair = group * 4; pair < group * 4 + 4; pair++) {
        const uint8_t* from = tile + pair * 64 + part * VBYTES;
        if (part == 0) __builtin_prefetch(from + ahead, 0, 2);
        const VS x = (VS) * (const VIu*)from;
        VI one = nibble_bytes(x & top, (x << 4) & top, s0, s1), two = nibble_bytes((x << 8) & top, x << 12, s0, s1);
        if (PLUS) one = add_bytes(one, middle), two = add_bytes(two, middle);
        char* to = out + pair * 128 + part * VBYTES;
        *(VIu*)to = one;
        *(VIu*)(to + 64) = two;
      }
    }
}
#else
template <bool PLUS>
static inline void bytes_of_nibbles(const uint8_t* tile, long, char* out) {
  for (int four = 0; four < 16; four++)
    for (int n = 0; n < kTileN; n++)
      for (int i = 0; i < 4; i++) {
        uint16_t word;
        __builtin_memcpy(&word, tile + 2 * (four / 2 * 32 + n / 4 * 8 + n % 2 * 4 + i), 2);
        const int q = (int16_t)(word << (8 * (four % 2) + 4 * (n % 4 / 2))) >> 12;
        int w = (q * (int8_t)tile[512 + four / 8 * kTileN + n] + 4) >> 3;
        if (PLUS) w += (int8_t)tile[544 + four / 8 * kTileN + n];
        out[(four * kTileN + n) * 4 + i] = (char)(w > 127 ? 127 : w < -128 ? -128 : w);
      }
}
#endif

// Tiles [first, end) of a strip of nibbles as bytes.
static inline void expand_nibbles(const Strip* strip, int first, int end, char* out) {
  const uint8_t* tile = (const uint8_t*)strip->data + first * integer_tile_bytes(strip->format);
  if (strip->format == kNibbles)
    for (int t = first; t < end; t++, tile += 544, out += kByteTile) bytes_of_nibbles<false>(tile, strip->ahead, out);
  else
    for (int t = first; t < end; t++, tile += 576, out += kByteTile) bytes_of_nibbles<true>(tile, strip->ahead, out);
}

// A strip of any format as one of bytes, with its end.
static void expand_integer(const Strip* strip, int tiles, void* out) {
  if (strip->format == kBytes)
    __builtin_memcpy(out, strip->data, tiles * kByteTile);
  else
    expand_nibbles(strip, 0, tiles, (char*)out);
  __builtin_memcpy((char*)out + integer_end(kBytes, tiles), strip->data + integer_end(strip->format, tiles), kStripEnd);
}
