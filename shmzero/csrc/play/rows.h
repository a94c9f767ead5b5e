// Where the rows of one step lie: in a slot of shared memory, or in an array of this process; and
// what is said of an answer that cannot be used.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "game/cards.h"
#include "search/row_cache.h"

namespace shmzero {

/// Requests, to be written. features [R, 256] float16 bits, masks [R].
struct RowView {
  std::uint16_t* features;
  std::uint64_t* masks;
  std::uint32_t capacity;
};

/// Set in the mask of a row that is the other network's to answer, beside the legal actions.
inline constexpr std::uint64_t kOtherNetwork = std::uint64_t{1} << 63;
static_assert(kNumActions < 64);

/// Answers, to be read. policies [R, 52], values [R, 1].
struct AnswerView {
  const float* policies;
  const float* values;
  std::uint32_t version;  ///< Of the weights.
};

/// Throws a runtime_error that says why the search cannot use the answer to row `row` of its batch
/// (see RowCache::answer): policy [52], of which the actions in `mask` are legal, both in the row's
/// own order of suits.
[[noreturn]] inline void refuse_answer(std::size_t row, const float* policy, std::uint64_t mask,
                                       float value) {
  const auto shown = [](float number) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", static_cast<double>(number));
    return std::string(text);
  };
  const std::string who =
      "the evaluator answered row " + std::to_string(row) + " of its batch with ";
  float sum = 0.0f;
  for_each_card(mask, [&](int action) {
    const float weight = policy[action];
    if (!std::isfinite(weight) || weight < 0.0f) {
      throw std::runtime_error(who + "the policy " + shown(weight) + " for action " +
                               std::to_string(action) +
                               ", which is legal; allowed: finite numbers from 0 on");
    }
    sum += weight;
  });
  if (!(std::abs(value) <= kMostValue)) {
    throw std::runtime_error(who + "the value " + shown(value) + "; allowed: finite numbers from " +
                             shown(-kMostValue) + " to " + shown(kMostValue));
  }
  throw std::runtime_error(who + "a policy that sums to " + shown(sum) + " over its " +
                           std::to_string(count(mask)) + " legal actions, the lowest of them " +
                           std::to_string(lowest(mask)) +
                           "; allowed: a sum above 0 whose inverse is finite");
}

}  // namespace shmzero
