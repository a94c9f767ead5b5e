// An array that grows and is forgotten at once: what a decision makes by the thousand.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace shmzero {

/// Unlike a vector it keeps what it has grown to as its length, so that adding is a comparison and
/// a count. Pointers into it are good until the next `add`.
template <class T>
class Scratch {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  std::uint32_t size() const { return size_; }
  void clear() { size_ = 0; }
  /// The first of `number` more, at size() before the call; their contents are old.
  T* add(std::uint32_t number = 1) {
    const std::uint32_t first = size_, size = size_ + number;
    if (size > items_.size()) items_.resize(std::max<std::size_t>(size, 2 * items_.size()));
    size_ = size;
    return items_.data() + first;
  }
  T& operator[](std::size_t at) { return items_[at]; }
  const T& operator[](std::size_t at) const { return items_[at]; }
  T* data() { return items_.data(); }
  const T* data() const { return items_.data(); }
  T* begin() { return items_.data(); }
  T* end() { return items_.data() + size_; }
  const T* begin() const { return items_.data(); }
  const T* end() const { return items_.data() + size_; }

 private:
  std::vector<T> items_;
  std::uint32_t size_ = 0;
};

}  // namespace shmzero
