// Quantised strips (strips.h) to tiles. Included after simd.inl.
#pragma once
#include "strips.h"

// float16 to float32, exact. No infinities or NaNs: they were refused when the strip was packed.
static inline VF load_halves(const uint16_t* p) {
#ifdef __AVX512F__
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
  const VU h = __builtin_convertvector(*(const VHu*)p, VU), magnitude = h & 0x7fffu;
  const VU normal = (magnitude << 13) + (112u << 23), small = (VU)(__builtin_convertvector((VI)magnitude, VF) * 0x1p-24f);
  const VU is_small = (VU)(magnitude < 0x400u);
  return (VF)((h & 0x8000u) << 16 | (is_small & small) | (~is_small & normal));
#endif
}

static inline VF load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  VF v;
  for (int i = 0; i < W; i++) v[i] = (int8_t)p[i];
  return v;
#endif
}

// Lane j is column j / 2.
static inline VF load_twice(const float* columns) {
#if defined(__AVX512F__)
  const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(columns)));
#elif defined(__AVX2__)
  const __m256i twice = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(columns)), twice);
#else
  VF v;
  for (int j = 0; j < W; j++) v[j] = columns[j / 2];
  return v;
#endif
}

// 2^23 + (x & mask), in lanes.
static inline VF as_float(VU x, VU mask) {
#ifdef __AVX512F__
  const __m512i exponent = _mm512_set1_epi32(0x4b000000);
  return (VF)_mm512_ternarylogic_epi32((__m512i)x, (__m512i)mask, exponent, 0xea);
#else
  return (VF)((x & mask) | 0x4b000000u);
#endif
}

static inline void save_two_bf16(uint16_t* p, VF first, VF second) {
#ifdef __AVX512BF16__
  *(__m512bh*)p = _mm512_cvtne2ps_pbh(second, first);
#else
  save_bf16(p, first);
  save_bf16(p + 16, second);
#endif
}

// To [32 k][16 columns] from half a pair of rows, lanes as in a dword of quants.
static inline void scatter(float* tile, int i, int part, VF v) {
  for (int j = 0; j < W; j++) {
    const int lane = part * W + j;
    tile[(i / 2 * 2 + lane % 2) * 16 + i % 2 * 8 + lane / 2] = v[j];
  }
}

// One tile: scale[16 columns] for each of its runs of k, minimum[16]. take(other, pair of k, part, first, second) gets vectors of
// both halves of the columns, lanes as in a dword of quants.
template <int FORMAT, class Take>
static inline __attribute__((always_inline)) void read_tile(const uint8_t* quants, long ahead,
                                                            const float (*scale)[kTileN], const float* minimum, char* other,
                                                            Take take) {
  constexpr StripFormat f = kStripFormats[FORMAT];
  using At = QuantPlace<f.bits>;
#ifdef __FMA__
  // (2^23 + q * 2^p) * s / 2^p - (2^23 / 2^p + bias) * s: both factors of each product are short, so this is exact.
  constexpr bool folded = !f.minimum && !f.shared;
#else
  constexpr bool folded = false;
#endif
  enum { in_dword = At::in_dword, dwords = kTileK / in_dword };
  for (int part = 0; part < V16; part++)
    for (int run = 0; run < f.scales; run++) {
      VF s[At::per][2], c[At::per][2];
      VU mask[At::per];
      for (int half = 0; half < 2; half++) {
        const int column = half * 8 + part * W / 2;
        const VF d = load_twice(scale[run] + column), m = f.minimum ? load_twice(minimum + column) : VF{};
        for (int i = 0; i < At::per; i++) {
          const float unit = (float)(1 << (At::first + f.bits * i));
          mask[i] = VU{} + (((1u << f.bits) - 1) << (At::first + f.bits * i));
          s[i][half] = d * (1.0f / unit);
          c[i][half] = folded ? d * -(8388608.0f / unit + f.bias) : m;
        }
      }
      for (int n = run * dwords / f.scales; n < (run + 1) * dwords / f.scales; n++) {
        const uint8_t* from = quants + (n * V16 + part) * VBYTES;
        __builtin_prefetch(from + ahead, 0, 2);  // one at a time: a burst of them would hold up the loads
        const VU x = *(const VUu*)from;
        VF v[in_dword];
#pragma GCC unroll 8
        for (int i = 0; i < in_dword; i++) {
          const int turn = i / At::per * At::turn, at = i % At::per, half = i % 2;
          const VF q = as_float(turn ? x >> turn | x << (32 - turn) : x, mask[at]);
          const float excess = 8388608.0f + f.bias * (float)(1 << (At::first + f.bits * at));
          v[i] = folded        ? vfma(q, s[at][half], c[at][half])
                 : f.minimum ? vfma(q - excess, s[at][half], c[at][half])
                             : (q - excess) * s[at][half];
        }
        for (int i = 0; i < in_dword; i += 2) take(other, n * (in_dword / 2) + i / 2, part, v[i], v[i + 1]);
      }
    }
}

// Tiles [first, end) of a strip; `other` is what goes on by `step` bytes with each of them.
template <int FORMAT, class Take>
static inline __attribute__((always_inline)) void read_tiles(const void* strip, int k_tiles, int first, int end, long ahead,
                                                             char* other, long step, Take take) {
  constexpr StripFormat f = kStripFormats[FORMAT];
  constexpr int quant_bytes = f.quant_bytes(), scale_bytes = f.scale_bytes(), shared_bytes = f.shared_bytes();
  const uint8_t* quants = (const uint8_t*)strip + (long)first * quant_bytes;
  const uint8_t* scales = (const uint8_t*)strip + (long)k_tiles * quant_bytes + (long)first * scale_bytes;
  const uint8_t* shared = (const uint8_t*)strip + (long)k_tiles * (quant_bytes + scale_bytes);
  alignas(64) float shared_scale[2][kTileN] = {}, scale[2][kTileN] = {}, minimum[kTileN] = {};
  for (int t = first; t < end; t++, quants += quant_bytes, scales += scale_bytes, other += step) {
    __builtin_prefetch(scales + ahead, 0, 2);
    if (f.shared && (t == first || t % kSharing == 0))
      for (int i = 0; i < kTileN; i += W)
        for (int j = 0; j < 1 + f.minimum; j++)
          save(shared_scale[j] + i, load_halves((const uint16_t*)(shared + t / kSharing * shared_bytes) + j * kTileN + i));
    for (int i = 0; i < kTileN; i += W) {
      if (f.shared) {
        for (int j = 0; j < f.scales; j++) save(scale[j] + i, load(shared_scale[0] + i) * load_bytes(scales + j * kTileN + i));
        if (f.minimum) save(minimum + i, -(load(shared_scale[1] + i) * load_bytes(scales + kTileN + i)));
      } else {
        save(scale[0] + i, load_halves((const uint16_t*)scales + i));
        if (f.minimum) save(minimum + i, load_halves((const uint16_t*)scales + kTileN + i));
      }
    }
    read_tile<FORMAT>(quants, ahead, scale, minimum, other, take);
  }
}

template <int FORMAT, bool BF16>
static void expand_tiles(const void* strip, int k_tiles, int first, int end, void* dst, long ahead) {
  constexpr long tile = BF16 ? 1024 : 2048;
  const auto take = [](char* to, int pair, int part, VF a, VF b) __attribute__((always_inline)) {
    if (BF16) {
      save_two_bf16((uint16_t*)to + pair * 32 + part * W, a, b);
    } else {
      scatter((float*)to, 2 * pair, part, a);
      scatter((float*)to, 2 * pair + 1, part, b);
    }
  };
  read_tiles<FORMAT>(strip, k_tiles, first, end, ahead, (char*)dst, 2 * tile, take);
}

template <bool BF16>
static void expand_strip(const Strip* s, int k_tiles, int first, int end, void* dst) {
  switch (s->format) {
    case 0: return expand_tiles<0, BF16>(s->data, k_tiles, first, end, dst, s->ahead);
    case 1: return expand_tiles<1, BF16>(s->data, k_tiles, first, end, dst, s->ahead);
    case 2: return expand_tiles<2, BF16>(s->data, k_tiles, first, end, dst, s->ahead);
    case 3: return expand_tiles<3, BF16>(s->data, k_tiles, first, end, dst, s->ahead);
    case 4: return expand_tiles<4, BF16>(s->data, k_tiles, first, end, dst, s->ahead);
    case 5: return expand_tiles<5, BF16>(s->data, k_tiles, first, end, dst, s->ahead);
    default: return expand_tiles<6, BF16>(s->data, k_tiles, first, end, dst, s->ahead);
  }
}
