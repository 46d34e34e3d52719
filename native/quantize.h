// Float weights to GGUF's 32-element block formats: Q8_0, Q4_0 and Q4_1. Every block is a pure function of its values:
// callers may cut the work where they like (at blocks) and give the parts to several threads.
#pragma once

extern "C" {
// How a block's scale is chosen.
enum {
  HR_ROUND = 0,  // from the extreme values, then each value to its nearest: bit for bit the `gguf` package's result
  HR_FIT = 1,    // least squared error: Q4_1's scale and minimum are searched for; the other formats round
};

// Quantises `n` values at `src` into `dst`. `dtype` indexes headrace.weights.spec.DType: 3 (Q8_0: 34 bytes a block), 4
// (Q4_0: 18) or 5 (Q4_1: 20). Returns false for another type or method, an `n` that is not a whole number of blocks, a
// value that is not finite, or a scale that float16 cannot hold; `dst` is undefined then.
__attribute__((visibility("default"))) bool hr_quantize(int dtype, int method, const float* src, void* dst, long n);

// The same from `n` elements stored as `from` (any type that hr_dequantize knows), expanded a cache's worth at a time.
__attribute__((visibility("default"))) bool hr_requantize(int from, const void* src, int to, int method, void* dst, long n);
}
