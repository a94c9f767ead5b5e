// Exact max^n of rounds in which every hand is known and few cards are left.
// Every seat maximises its own score; of equally good actions the lowest is taken, everywhere in
// the tree. Knows nothing of hidden hands: whoever calls it on a guessed deal gets a clairvoyant's
// value.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "game/rules.h"

namespace shmzero {

/// How far a process has come with its work: whoever watches it takes it for stuck when this stands
/// still. One thread writes it. Relaxed: it orders nothing.
using Progress = std::atomic<std::uint64_t>;

/// Moves it on, where somebody watches.
inline void advance(Progress* progress) {
  if (progress == nullptr) return;
  progress->store(progress->load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

/// Scores of all seats, one byte a seat, each plus 64 so that penalties fit.
struct PackedScores {
  std::uint64_t bytes = 0;

  int of(int seat) const { return static_cast<int>(bytes >> (8 * seat) & 0xff) - 64; }
  static PackedScores of_round(const Round& round) {
    PackedScores packed;
    for (int s = 0; s < round.num_players; ++s) {
      packed.bytes |= static_cast<std::uint64_t>(score(round, s) + 64) << (8 * s);
    }
    return packed;
  }
};

/// As utility() of game/rules.h, from scores.
inline float utility(const PackedScores& scores, const Round& round, int seat, float rivalry) {
  float value = static_cast<float>(scores.of(seat));
  if (rivalry != 0.0f) {
    int others = 0;
    for (int s = 0; s < round.num_players; ++s) others += s == seat ? 0 : scores.of(s);
    value -= rivalry * static_cast<float>(others) / static_cast<float>(round.num_players - 1);
  }
  return value / static_cast<float>(10 + round.cards);
}

/// What a position comes to, and the acting seat's choice.
struct Solution {
  PackedScores scores;
  int action;  ///< -1 where the round is over.
};

/// Actions of the seat to act without those that a lower one stands for: two cards of one hand and
/// suit lead to the same play if no other card that still counts lies between them.
inline std::uint64_t distinct_actions(const Round& round) {
  const std::uint64_t actions = legal(round);
  if (round.phase != Phase::kPlaying) return actions;
  CardSet counting = round.held();
  if (round.trick_size > 0) counting |= one_card(round.winning_card);
  std::uint64_t distinct = 0;
  for (int suit = 0; suit < kNumSuits; ++suit) {
    bool below_is_own = false;
    for_each_card(counting & suit_cards(suit), [&](int card) {
      const bool own = actions >> card & 1;
      if (own && !below_is_own) distinct |= one_card(card);
      below_is_own = own;
    });
  }
  return distinct;
}

class Solver {
 public:
  /// 2^cache_bits positions are remembered, 16 bytes each.
  explicit Solver(int cache_bits) : cache_(std::size_t{1} << cache_bits) {}

  /// Work grows as the product of the hands' factorials; the cache keeps it near the number of
  /// different positions. `progress` moves on meanwhile.
  Solution solve(const Round& round, Progress* progress = nullptr) {
    progress_ = progress;
    return solved(round);
  }

 private:
  static constexpr std::uint32_t kPositionsAStep = 1024;

  Solution solved(const Round& round) {
    if (++positions_ % kPositionsAStep == 0) advance(progress_);
    Solution best = {{}, -1};
    if (round.phase == Phase::kDone) return {PackedScores::of_round(round), -1};
    for_each_card(distinct_actions(round), [&](int action) {
      Round after = round;
      apply(after, action);
      const PackedScores scores = value(after);
      if (best.action < 0 || scores.of(round.seat) > best.scores.of(round.seat)) {
        best = {scores, action};
      }
    });
    return best;
  }

  struct Entry {
    std::uint64_t key = 0;
    PackedScores scores;
  };

  PackedScores value(const Round& round) {
    if (round.phase == Phase::kDone) return PackedScores::of_round(round);
    const std::uint64_t key = key_of(round);
    // The newest position takes the place: a recursion soon asks for its neighbours.
    if (const Entry& known = cache_[key & (cache_.size() - 1)]; known.key == key)
      return known.scores;
    const PackedScores scores = solved(round).scores;
    cache_[key & (cache_.size() - 1)] = {key, scores};
    return scores;
  }

  /// Names all that the rest of the round depends on. 64 bits of hash: two of the millions of
  /// positions that a cache ever sees share one with a chance below 1e-6.
  static std::uint64_t key_of(const Round& round) {
    std::uint64_t key = 0;
    const auto add = [&](std::uint64_t word) {
      key = (std::rotl(key, 25) ^ word) * 0x9e3779b97f4a7c15u;
      key ^= key >> 32;
    };
    for (int s = 0; s < round.num_players; ++s) add(round.hands[s]);
    std::uint64_t words[2];
    std::memcpy(&words[0], round.bids, sizeof words[0]);
    std::memcpy(&words[1], round.tricks_won, sizeof words[1]);
    add(words[0]);
    add(words[1]);
    std::uint64_t rest = round.num_players;
    rest = rest << 8 | round.cards;
    rest = rest << 3 | round.trump;
    rest = rest << 3 | round.dealer;
    rest = rest << 8 | round.rules.hook_from;
    rest = rest << 2 | static_cast<std::uint64_t>(round.rules.scoring);
    rest = rest << 3 | round.seat;
    rest = rest << 3 | round.trick_size;
    if (round.trick_size > 0) {
      rest = rest << 2 | static_cast<std::uint64_t>(suit_of(round.trick[0]));
      rest = rest << 6 | round.winning_card;
      rest = rest << 3 | round.winning_seat;
    }
    add(rest);
    return key | 1;  // 0 is an empty entry
  }

  std::vector<Entry> cache_;
  Progress* progress_ = nullptr;
  std::uint32_t positions_ = 0;  ///< Looked at, of all calls.
};

/// The solver of a thread, for those who solve now and then: a megabyte, made on first use.
inline Solver& shared_solver() {
  static thread_local Solver solver(16);
  return solver;
}

}  // namespace shmzero
