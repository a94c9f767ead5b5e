// The rows of one decision: each asked once however many worlds and simulations need it, and its
// answer. Knows no trees and no slots. Read next: search.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "game/rules.h"
#include "search/scratch.h"

namespace shmzero {

/// Values further from 0 are refused: utilities are about 0 to 1, and the sums of a search have to
/// stay finite.
inline constexpr float kMostValue = 1e6f;

class RowCache {
 public:
  /// Forgets everything; `expected` rows will fit without growing.
  void clear(std::size_t expected) {
    rows_.clear();
    policies_.clear();
    table_.assign(std::bit_ceil(2 * std::max<std::size_t>(expected, 1)), 0);
  }

  std::uint32_t size() const { return rows_.size(); }
  bool answered(std::uint32_t row) const { return rows_[row].answered != 0; }
  float value(std::uint32_t row) const { return rows_[row].value; }
  /// Over the row's legal actions, ascending; sum 1.
  const float* policy(std::uint32_t row) const {
    return policies_.data() + rows_[row].first_policy;
  }

  /// The number of a row, which is size() - 1 after the call if it is new. The key names the row:
  /// public actions, whose view, and the hand seen; all else follows from the root. (Two histories
  /// can come to equal features: such rows, a few in a thousand, are asked twice.) Throws
  /// length_error beyond 2^24 rows.
  std::uint32_t find_or_add(const Round& state, int seat, std::uint64_t actions) {
    const std::uint64_t key =
        mix(state.history_hash ^ mix(state.hands[seat] * 8 + static_cast<std::uint64_t>(seat)));
    const std::size_t last = table_.size() - 1;
    std::size_t place = key & last;
    for (; table_[place] != 0; place = (place + 1) & last) {
      if ((table_[place] ^ tag(key)) >> kRowBits != 0) continue;
      const std::uint32_t found = (table_[place] & kRows) - 1;
      if (rows_[found].key == key) return found;
    }
    const std::uint32_t row = size();
    if (row >= kRows || policies_.size() >= kPolicies) {
      throw std::length_error("more rows in a decision than can be numbered");
    }
    const auto num_actions = static_cast<std::uint32_t>(count(actions));
    *rows_.add() = {.key = key,
                    .value = 0.0f,
                    .first_policy = policies_.size(),
                    .num_actions = num_actions,
                    .answered = 0};
    policies_.add(num_actions);
    table_[place] = tag(key) | (row + 1);
    if (2 * std::size_t{row} + 2 > table_.size()) grow();
    return row;
  }

  /// Takes the answer to a row: the weights of its legal actions in ascending order, of any sum
  /// (ignored for a row that asked for a value alone), and the expected utility of the row's seat.
  ///
  /// Returns false, and takes nothing, where the answer cannot be used: a weight below 0 or not
  /// finite, a sum that cannot be divided by, a value not within kMostValue of 0. Which of these it
  /// is, refuse_answer in play/rows.h says.
  [[nodiscard]] bool answer(std::uint32_t row, const float* policy, float value) {
    Row& to = rows_[row];
    const std::uint32_t num_actions = to.num_actions;
    float sum = 0.0f, least = 0.0f;
    for (std::uint32_t i = 0; i < num_actions; ++i) {
      sum += policy[i];
      least = std::min(least, policy[i]);
    }
    // A NaN among the weights is one in the sum and fails every comparison, an infinite weight
    // makes the scale 0, and a sum too small to be divided by makes it infinite.
    const float scale = 1.0f / sum;
    const bool has_policy =
        least >= 0.0f && scale > 0.0f && scale <= std::numeric_limits<float>::max();
    if (!(has_policy || num_actions == 0) || !(std::abs(value) <= kMostValue)) return false;
    to.value = value;
    to.answered = 1;
    float* scaled = policies_.data() + to.first_policy;
    for (std::uint32_t i = 0; i < num_actions; ++i) scaled[i] = policy[i] * scale;
    return true;
  }

 private:
  /// An entry of the table: the row's number plus 1, below high bits of its key, which tell most
  /// others apart without a look at the row; 0 empty.
  static constexpr int kRowBits = 24;
  static constexpr std::uint32_t kRows = (std::uint32_t{1} << kRowBits) - 1;
  static std::uint32_t tag(std::uint64_t key) {
    return static_cast<std::uint32_t>(key >> 32) & ~kRows;
  }

  static constexpr int kPolicyBits = 26;
  static constexpr std::uint32_t kPolicies = std::uint32_t{1} << kPolicyBits;

  struct Row {
    std::uint64_t key;
    float value;
    std::uint32_t first_policy : kPolicyBits;
    std::uint32_t num_actions : 5;
    std::uint32_t answered : 1;
  };
  static_assert(sizeof(Row) == 16);

  void grow() {
    table_.assign(2 * table_.size(), 0);
    for (std::uint32_t row = 0; row < size(); ++row) {
      std::size_t place = rows_[row].key & (table_.size() - 1);
      while (table_[place] != 0) place = (place + 1) & (table_.size() - 1);
      table_[place] = tag(rows_[row].key) | (row + 1);
    }
  }

  Scratch<Row> rows_;
  Scratch<float> policies_;
  std::vector<std::uint32_t> table_;  ///< Entries by hash of the key, at most half full.
};

}  // namespace shmzero
