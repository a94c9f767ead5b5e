// Where the rows of one step lie: in a slot of shared memory, or in an array of this process.
#pragma once

#include <cstdint>

namespace shmzero {

/// Requests, to be written. features [R, 256] float16 bits, masks [R].
struct RowView {
  std::uint16_t* features;
  std::uint64_t* masks;
  std::uint32_t capacity;
};

/// Answers, to be read. policies [R, 52], values [R, 1].
struct AnswerView {
  const float* policies;
  const float* values;
  std::uint32_t version;  ///< Of the weights.
};

}  // namespace shmzero
