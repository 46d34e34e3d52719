#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace hr {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins about 20 microseconds, then lets others run between looks: on a shared machine the thread that we wait for may
// need this very processor.
template <class Done>
void wait_until(Done done) {
  for (int i = 0; i < 500; i++) {
    if (done()) return;
    pause_cpu();
  }
  while (!done()) sched_yield();
}

class Pool {
 public:
  void run(int threads, void (*fn)(void*, int), void* arg) {
    std::lock_guard<std::mutex> one_run_at_a_time(run_mutex_);
    while ((int)workers_.size() < threads - 1) add_worker();
    fn_ = fn;
    arg_ = arg;
    threads_ = threads;
    running_.store((int)workers_.size());
    {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      job_.fetch_add(1);
    }
    if (sleeping_.load() > 0) wake_.notify_all();
    fn(arg, 0);
    wait_until([&] { return running_.load() == 0; });
  }

 private:
  void add_worker() {
    // Signals are for the interpreter's own threads.
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int number = (int)workers_.size() + 1;
    workers_.emplace_back([this, number, seen = job_.load()] { work(number, seen); });
    workers_.back().detach();
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }

  void work(int number, uint64_t seen) {
    for (;;) {
      seen = next_job(seen);
      if (number < threads_) fn_(arg_, number);
      running_.fetch_sub(1);
    }
  }

  // Looks for a millisecond before it sleeps: the caller schedules the next step in less, and a step that has to wake a
  // sleeper took 4 to 8 % longer on a virtual machine (benchmarks/log.md).
  uint64_t next_job(uint64_t seen) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    wait_until([&] { return job_.load() != seen || std::chrono::steady_clock::now() > give_up; });
    if (job_.load() != seen) return job_.load();
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return job_.load() != seen; });
    sleeping_.fetch_sub(1);
    return job_.load();
  }

  std::mutex run_mutex_, sleep_mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> job_{0};
  std::atomic<int> running_{0}, sleeping_{0};
  void (*fn_)(void*, int) = nullptr;
  void* arg_ = nullptr;
  int threads_ = 0;
};

// Never destroyed: its threads may outlive main. A forked child has no workers, so it makes itself a new one.
Pool& pool() {
  static std::mutex mutex;
  static Pool* instance = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (!instance || owner != getpid()) {
    instance = new Pool;
    owner = getpid();
  }
  return *instance;
}

}  // namespace

void run_parallel(int threads, void (*fn)(void*, int), void* arg) {
  if (threads == 1)
    fn(arg, 0);
  else
    pool().run(threads, fn, arg);
}

Team::Team(int threads) : threads_(threads), shares_(new Share[threads]) {}

void Team::barrier() {
  if (threads_ == 1) return;
  const uint32_t now = generation_.load();
  if (arrived_.fetch_add(1) + 1 == threads_) {
    arrived_.store(0);
    generation_.store(now + 1);
  } else {
    wait_until([&] { return generation_.load() != now; });
  }
}

long Team::claim(int thread, uint32_t phase, long n) {
  for (int i = 0; i < threads_; i++) {
    const int owner = (thread + i) % threads_;
    const long begin = n * owner / threads_, count = n * (owner + 1) / threads_ - begin;
    std::atomic<uint64_t>& taken = shares_[owner].taken;
    uint64_t value = taken.load(std::memory_order_relaxed);
    for (;;) {
      const long next = (uint32_t)(value >> 32) == phase ? (long)(uint32_t)value : 0;
      if (next >= count) break;
      if (taken.compare_exchange_weak(value, (uint64_t)phase << 32 | (uint64_t)(next + 1), std::memory_order_relaxed))
        return begin + next;
    }
  }
  return -1;
}

}  // namespace hr
