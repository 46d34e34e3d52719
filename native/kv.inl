// How keys and values of a token go into a KV block, and how a block of 8-bit codes becomes tiles again (layouts:
// kernels.h). Included before attention.inl.
#pragma once

// A value that is not finite is stored as 0: masked slots are multiplied by an exact 0, and 0 * NaN would carry one
// request's fault into the next user of the block. The key keeps it, so the faulty row itself still ends in NaN.
static inline float finite(float x) { return x - x == 0.0f ? x : 0.0f; }
static inline VF finite(VF x) { return pick(x - x == VF{}, x, VF{}); }

template <bool BF16>
static void write_kv(const float* k, const float* v, int dim, int slot, void* k_block, void* v_block) {
  if (BF16) {
    alignas(64) uint16_t key[kMaxHeadDim], value[kMaxHeadDim];
    int i = 0;
    for (; i + W <= dim; i += W) {
      save_bf16(key + i, load(k + i));
      save_bf16(value + i, finite(load(v + i)));
    }
    for (; i < dim; i++) {
      key[i] = bf16(k[i]);
      value[i] = bf16(finite(v[i]));
    }
    uint16_t *kb = (uint16_t*)k_block + 2 * slot, *vb = (uint16_t*)v_block + (slot / 2) * 32 + slot % 2;
    for (int j = 0; j < dim; j += 2) __builtin_memcpy(kb + j * 16, key + j, 4);
    for (int j = 0; j < dim; j++) vb[(j / 16) * 256 + (j % 16) * 2] = value[j];
  } else {
    float *kb = (float*)k_block + slot, *vb = (float*)v_block + slot * 16;
    for (int j = 0; j < dim; j++) kb[j * 16] = k[j];
    for (int j = 0; j < dim; j++) vb[(j / 16) * 256 + j % 16] = finite(v[j]);
  }
}

// 8 bits: code / 127 of the largest magnitude of a token's head. Returns the scale, NaN if a value is not finite (then
// codes are those of the finite ones).
static inline float codes_of(const float* x, int dim, uint8_t* codes) {
  float most = 0.0f, fault = 0.0f;
  for (int i = 0; i < dim; i++) {
    const float magnitude = __builtin_fabsf(finite(x[i]));
    most = magnitude > most ? magnitude : most;
    fault += x[i] - x[i];
  }
  const float inverse = most > 1e-30f ? 127.0f / most : 0.0f, magic = 12582912.0f;  // magic rounds to even
  for (int i = 0; i < dim; i++) {
    const float magnitude = __builtin_fabsf(finite(x[i]) * inverse) + magic;
    uint32_t bits, value;
    __builtin_memcpy(&bits, x + i, 4);
    __builtin_memcpy(&value, &magnitude, 4);
    codes[i] = (uint8_t)((bits >> 24 & 0x80u) | (value & 0x7fu));
  }
  return (most > 1e-30f ? most / 127.0f : 0.0f) + fault;
}

// Where element i of the other layouts is among the codes.
template <bool BF16>
static inline int code_place(int i) {
  return BF16 ? (i & ~63) | (i & 24) << 1 | (i & 32) >> 2 | (i & 7) : i;
}

template <bool BF16>
static void write_kv8(const float* k, const float* v, int dim, int slot, void* k_block, void* v_block) {
  alignas(64) uint8_t key[kMaxHeadDim], value[kMaxHeadDim];
  alignas(64) float sound[kMaxHeadDim];
  for (int i = 0; i < dim; i++) sound[i] = finite(v[i]);
  const long scales = (long)(dim + kTileK - 1) / kTileK * kTileK * kKvBlock;
  uint8_t *kb = (uint8_t*)k_block, *vb = (uint8_t*)v_block;
  ((float*)(kb + scales))[slot] = codes_of(k, dim, key);
  ((float*)(vb + scales))[slot] = codes_of(sound, dim, value);
  for (int j = 0; j < dim; j++) {
    kb[code_place<BF16>(BF16 ? j / 2 * 32 + slot * 2 + j % 2 : j * 16 + slot)] = key[j];
    vb[code_place<BF16>(j / 16 * 256 + (BF16 ? slot / 2 * 32 + j % 16 * 2 + slot % 2 : slot * 16 + j % 16))] = value[j];
  }
}

#if defined(__AVX512VBMI__)
struct alignas(64) CodeBytes {
  uint8_t high[128], low[128];  // of the bf16 numbers 0 to 127
};
static constexpr CodeBytes code_bytes() {
  CodeBytes t{};
  for (int m = 1, e = 0; m < 128; m++) {
    if (m >> (e + 1)) e++;
    const int bits = (127 + e) << 7 | ((m << (7 - e)) & 0x7f);
    t.high[m] = (uint8_t)(bits >> 8);
    t.low[m] = (uint8_t)bits;
  }
  return t;
}
constexpr CodeBytes kCodeBytes = code_bytes();
#endif

// n codes, a multiple of 64, as numbers from -127 to 127 in the model's precision (exact in both).
template <bool BF16>
static inline void expand_codes(const char* from, long n, char* to) {
#if defined(__AVX512VBMI__)
  if (BF16) {
    // The upper and the lower byte of a bf16 magnitude, looked up; the sign bit moves over.
    const __m512i high0 = _mm512_load_si512(kCodeBytes.high), high1 = _mm512_load_si512(kCodeBytes.high + 64);
    const __m512i low0 = _mm512_load_si512(kCodeBytes.low), low1 = _mm512_load_si512(kCodeBytes.low + 64);
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    for (long i = 0; i < n; i += 64, from += 64, to += 128) {
      const __m512i code = _mm512_loadu_si512(from);
      const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
      const __m512i high = _mm512_permutex2var_epi8(high0, code, high1);
      const __m512i whole = _mm512_ternarylogic_epi32(high, code, sign, 0xf8);  // high | (code & sign)
      _mm512_storeu_si512(to, _mm512_unpacklo_epi8(low, whole));
      _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi8(low, whole));
    }
    return;
  }
#endif
  typedef uint8_t Bytes __attribute__((vector_size(8), aligned(1), may_alias));
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
  typedef uint32_t FloatBits __attribute__((vector_size(32), aligned(4), may_alias));
  for (long i = 0; i < n; i += 8) {
    const Words code = __builtin_convertvector(*(const Bytes*)(from + i), Words);
    const Words bits = (Words)__builtin_convertvector((Ints)(code & 0x7fu), Floats) | (code & 0x80u) << 24;
    if (BF16)
      *(Halves*)(to + 2 * ((i & ~63) | (i & 48) >> 1 | (i & 8) << 2)) = __builtin_convertvector(bits >> 16, Halves);
    else
      *(FloatBits*)(to + 4 * i) = bits;
  }
}
