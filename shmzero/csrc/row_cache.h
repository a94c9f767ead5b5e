// The rows of one decision: each asked once however many worlds and simulations need it, and its
// answer. Knows no trees and no slots. Read next: search.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "rules.h"

namespace shmzero {

class RowCache {
 public:
  /// Forgets everything; `expected` rows will fit without growing.
  void clear(std::size_t expected) {
    rows_.clear();
    policies_.clear();
    table_.assign(std::bit_ceil(2 * std::max<std::size_t>(expected, 1)), 0);
  }

  std::uint32_t size() const { return static_cast<std::uint32_t>(rows_.size()); }
  bool answered(std::uint32_t row) const { return rows_[row].answered; }
  float value(std::uint32_t row) const { return rows_[row].value; }
  std::uint8_t num_actions(std::uint32_t row) const { return rows_[row].num_actions; }
  /// Over the row's legal actions, ascending; sum 1.
  const float* policy(std::uint32_t row) const {
    return policies_.data() + rows_[row].first_policy;
  }

  /// The number of a row, which is size() - 1 after the call if it is new. The key names the row:
  /// public actions, whose view, and the hand seen; all else follows from the root. (Two histories
  /// can come to equal features: such rows, a few in a thousand, are asked twice.)
  std::uint32_t find_or_add(const Round& state, int seat, std::uint64_t actions) {
    const std::uint64_t key =
        mix(state.history_hash ^ mix(state.hands[seat] * 8 + static_cast<std::uint64_t>(seat)));
    std::size_t place = key & (table_.size() - 1);
    while (table_[place] != 0) {
      const std::uint32_t found = table_[place] - 1;
      if (rows_[found].key == key) return found;
      place = (place + 1) & (table_.size() - 1);
    }
    const std::uint32_t row = size();
    const int num_actions = count(actions);
    rows_.push_back({key, static_cast<std::uint32_t>(policies_.size()), 0.0f,
                     static_cast<std::uint8_t>(num_actions), false});
    policies_.resize(policies_.size() + static_cast<std::size_t>(num_actions));
    table_[place] = row + 1;
    if (2 * rows_.size() > table_.size()) grow();
    return row;
  }

  /// The answer to a row: the policy over its legal actions in ascending order (ignored for a row
  /// that asked for a value alone) and the expected utility of the row's seat. Throws
  /// runtime_error for a policy without mass and for what is not finite.
  void answer(std::uint32_t row, const float* policy, float value) {
    Row& to = rows_[row];
    to.value = value;
    to.answered = true;
    float sum = 0.0f;
    for (int i = 0; i < to.num_actions; ++i) sum += policy[i];
    const bool has_mass = sum > 0.0f || to.num_actions == 0;
    if (!has_mass || !std::isfinite(sum) || !std::isfinite(value)) {
      throw std::runtime_error(
          "the evaluator gave a policy without mass, or a number that is not finite");
    }
    const float scale = 1.0f / sum;
    for (int i = 0; i < to.num_actions; ++i) policies_[to.first_policy + i] = policy[i] * scale;
  }

 private:
  struct Row {
    std::uint64_t key;
    std::uint32_t first_policy;
    float value;
    std::uint8_t num_actions;
    bool answered;
  };

  void grow() {
    table_.assign(2 * table_.size(), 0);
    for (std::uint32_t row = 0; row < size(); ++row) {
      std::size_t place = rows_[row].key & (table_.size() - 1);
      while (table_[place] != 0) place = (place + 1) & (table_.size() - 1);
      table_[place] = row + 1;
    }
  }

  std::vector<Row> rows_;
  std::vector<float> policies_;
  std::vector<std::uint32_t> table_;  ///< Row + 1 by hash of its key, at most half full; 0 empty.
};

}  // namespace shmzero
