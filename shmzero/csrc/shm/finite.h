// Looks for numbers that are NaN or infinite: in the states of a request, in the answers to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "shm/shm_layout.h"
#include "shm/slot.h"

namespace shmzero {

/// Place of the first element that is NaN or infinite, `count` where there is none.
inline std::size_t first_not_finite(const std::byte* elements, std::size_t count, Wire wire) {
  const auto look = [&](auto exponent) {
    using Bits = decltype(exponent);
    const auto bits_at = [&](std::size_t i) {
      Bits bits;
      std::memcpy(&bits, elements + i * sizeof bits, sizeof bits);
      return bits;
    };
    Bits any = 0;  // first without leaving the loop, which the compiler can vectorise
    for (std::size_t i = 0; i < count; ++i)
      any |= static_cast<Bits>((bits_at(i) & exponent) == exponent);
    if (any == 0) return count;
    std::size_t i = 0;
    while ((bits_at(i) & exponent) != exponent) ++i;
    return i;
  };
  return wire == Wire::kFloat16 ? look(std::uint16_t{0x7c00}) : look(std::uint32_t{0x7f800000});
}

/// Throws std::invalid_argument naming the first state of `num_rows` that is not finite.
inline void check_finite(const std::byte* states, std::size_t num_rows, const SegmentSizes& sizes) {
  const std::size_t count = num_rows * sizes.state_dim;
  const std::size_t place = first_not_finite(states, count, sizes.wire);
  if (place == count) return;
  throw std::invalid_argument("state " + std::to_string(place % sizes.state_dim) + " of row " +
                              std::to_string(place / sizes.state_dim) + " is NaN, or infinite as " +
                              (sizes.wire == Wire::kFloat16 ? "float16" : "float32"));
}

/// What is wrong with the answers to rows [first_row, first_row + num_rows) of a slot where one of
/// them is NaN or infinite, else an empty string. A row without a legal action asked for its value
/// alone: a policy of it that is not finite becomes zeros.
inline std::string not_finite(const SlotRows& answers, const SegmentSizes& sizes,
                              std::uint32_t first_row, std::uint32_t num_rows) {
  const auto look = [&](const char* what, float* numbers, std::size_t width, bool needs_action) {
    const auto first = [&](std::size_t row, std::size_t count) {
      const auto* from = reinterpret_cast<const std::byte*>(numbers + row * width);
      return first_not_finite(from, count * width, Wire::kFloat32);
    };
    if (first(first_row, num_rows) == num_rows * width) return std::string{};
    for (std::size_t r = 0; r < num_rows; ++r) {
      const std::size_t row = first_row + r;
      const std::size_t place = first(row, 1);
      if (place == width) continue;
      const std::uint64_t* mask = answers.masks + row * sizes.mask_words();
      const bool has_action =
          std::any_of(mask, mask + sizes.mask_words(), [](auto word) { return word != 0; });
      if (needs_action && !has_action) {
        std::fill_n(numbers + row * width, width, 0.0f);
        continue;
      }
      const float found = numbers[row * width + place];
      const char* name = std::isnan(found) ? "NaN" : found > 0 ? "infinity" : "-infinity";
      return std::string("the model answered ") + name + " as " + what + " " +
             std::to_string(place) + " of row " + std::to_string(row) +
             " of this request; a server with check_finite=False (serve: --no-check-finite) "
             "passes such answers on";
    }
    return std::string{};
  };
  const std::string wrong = look("policy", answers.policies, sizes.action_dim, true);
  return wrong.empty() ? look("value", answers.values, sizes.value_dim, false) : wrong;
}

}  // namespace shmzero
