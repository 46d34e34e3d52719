// Threads that run one function together and meet at barriers; the calling thread is number 0.
#pragma once
#include <stdint.h>

#include <atomic>
#include <memory>

namespace hr {

// Runs fn(arg, thread) for thread 0 .. threads - 1 on the process's pool and returns when all have. The workers are
// made when first needed and serve every model; between runs they spin for some tens of microseconds, then sleep.
void run_parallel(int threads, void (*fn)(void* arg, int thread), void* arg);

template <class F>
void run_parallel(int threads, F& body) {
  run_parallel(threads, [](void* arg, int thread) { (*static_cast<F*>(arg))(thread); }, &body);
}

// What the threads of a run share: a barrier, and the units of work of the phase between two barriers.
class Team {
 public:
  explicit Team(int threads);

  int threads() const { return threads_; }
  void barrier();

  // Next unit of phase `phase` in [0, n) for this thread, or -1 when all are taken. Each thread first takes its own
  // contiguous share in order (one stream of memory), then what others have not begun: a thread that the system
  // has put aside holds nobody up. Phases are numbered by the caller, the same in every thread, one after another.
  long claim(int thread, uint32_t phase, long n);

 private:
  struct alignas(64) Share {
    std::atomic<uint64_t> taken{0};  // phase in the upper half, units taken in it in the lower
  };
  const int threads_;
  std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

}  // namespace hr
