// Anonymous memory from the system, zeroed, taken page by page as it is first touched.
#pragma once
#include <stddef.h>
#include <sys/mman.h>

#include <new>
#include <utility>

namespace hr {

class Mapping {
 public:
  Mapping() = default;
  // Address space only: the system does not set memory aside for it. Throws std::bad_alloc.
  explicit Mapping(size_t bytes) : size_(bytes ? bytes : 1) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<char*>(p);
#ifdef MADV_HUGEPAGE
    madvise(data_, size_, MADV_HUGEPAGE);
#endif
  }
  Mapping(Mapping&& other) noexcept { swap(other); }
  Mapping& operator=(Mapping&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Mapping() {
    if (data_) munmap(data_, size_);
  }

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void swap(Mapping& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  char* data_ = nullptr;
  size_t size_ = 0;
};

// Hands out pieces of one mapping, 64-byte aligned. Over a null base it only counts: the same code that lays memory
// out first measures it.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class T>
  T* take(size_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace hr
