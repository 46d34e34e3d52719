// The C ABI over the classes: arguments checked, exceptions turned into messages.
#include <string.h>

#include <algorithm>
#include <memory>
#include <new>

#include "headrace.h"
#include "isa.h"
#include "step.h"

struct hr_model {
  std::unique_ptr<hr::Model> model;
};

namespace {

void say(char* error, int32_t size, const char* message) {
  if (!error || size < 1) return;
  const size_t n = std::min(strlen(message), (size_t)size - 1);
  memcpy(error, message, n);
  error[n] = 0;
}

// Runs body; nothing thrown crosses the ABI.
template <class F>
int32_t guarded(char* error, int32_t size, F body) {
  try {
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    say(error, size, "out of memory");
  } catch (const std::exception& e) {
    say(error, size, e.what());
  }
  return -1;
}

const std::string& isa_names() {
  static const std::string names = [] {
    std::string joined;
    for (const std::string& name : hr::available_isas()) joined += (joined.empty() ? "" : " ") + name;
    return joined;
  }();
  return names;
}

}  // namespace

extern "C" {

hr_model* hr_create(const hr_spec* spec, int32_t dtype, int32_t kv_dtype, int32_t activations, int32_t max_batch_tokens,
                    int32_t max_model_len, int32_t threads, const char* isa, char* error, int32_t error_size) {
  hr_model* model = nullptr;
  guarded(error, error_size, [&] {
    if (dtype != HR_FLOAT32 && dtype != HR_BFLOAT16) throw hr::Error("unknown dtype");
    if (kv_dtype != HR_KV_SAME && kv_dtype != HR_KV_INT8) throw hr::Error("unknown KV dtype");
    if (activations != HR_FLOAT && activations != HR_INT8 && activations != HR_INT16) throw hr::Error("unknown activations");
    if (max_batch_tokens < 1 || max_model_len < 1) throw hr::Error("token limits must be positive");
    if (threads < 1 || threads > 1024) throw hr::Error("threads must be from 1 to 1024");
    const hr::Kernels* kernels = hr::find_kernels(isa, dtype == HR_BFLOAT16);
    if (!kernels)
      throw hr::Error("instruction set '" + std::string(isa ? isa : "") + "' is not one of those that this machine runs: " + isa_names());
    auto made = std::make_unique<hr_model>();
    made->model = std::make_unique<hr::Model>(*spec, kv_dtype == HR_KV_INT8, activations, max_batch_tokens, max_model_len, threads,
                                              *kernels);
    model = made.release();
  });
  return model;
}

void hr_destroy(hr_model* model) { delete model; }

int32_t hr_set_tensors(hr_model* model, const hr_tensor* tensors, int32_t count, char* error, int32_t error_size) {
  return guarded(error, error_size, [&] { model->model->set_tensors(tensors, count); });
}

int32_t hr_finish(hr_model* model, char* error, int32_t error_size) {
  return guarded(error, error_size, [&] { model->model->check_complete(); });
}

int32_t hr_allocate_kv(hr_model* model, int64_t blocks, char* error, int32_t error_size) {
  return guarded(error, error_size, [&] { model->model->allocate_kv(blocks); });
}

int32_t hr_step(hr_model* model, const hr_batch* batch, const hr_result* result, char* error, int32_t error_size) {
  return guarded(error, error_size, [&] { hr::Step(*model->model, *batch, *result).run(); });
}

void hr_memory(const hr_model* model, int64_t bytes[4]) {
  const hr::Model& m = *model->model;
  bytes[0] = (int64_t)m.weights_memory.size();
  bytes[1] = (int64_t)m.scratch_memory.size();
  bytes[2] = (int64_t)m.kv_memory.size();
  bytes[3] = m.kv_block_bytes();
}

const char* hr_isa(const hr_model* model) { return model->model->kernels.isa; }

const char* hr_isas(void) { return isa_names().c_str(); }

}  // extern "C"
