// Expansion of stored weights to float32: GGUF's block formats and the plain ones.
#pragma once

extern "C" {
// Expands `n` elements at `src`, stored as `dtype`, into `dst`. `n` must be a whole number of blocks (1, 32 or 256
// elements); `src` needs no alignment. `dtype` is the index of the type in headrace.weights.spec.DType's order.
// Returns false, with nothing written, for an unknown dtype or a broken block.
__attribute__((visibility("default"))) bool hr_dequantize(int dtype, const void* src, float* dst, long n);
}
