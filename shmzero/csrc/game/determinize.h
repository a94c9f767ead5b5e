// Worlds: deals drawn exactly uniformly from those consistent with what one seat has seen.
// Uses hand sizes, cards gone and voids; never reads which cards another seat holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "game/rules.h"

namespace shmzero {

namespace detail {
/// n choose k for n <= 13.
inline constexpr auto kBinomials = [] {
  std::array<std::array<double, kNumRanks + 1>, kNumRanks + 1> table = {};
  for (std::size_t n = 0; n <= kNumRanks; ++n) {
    table[n][0] = 1.0;
    for (std::size_t k = 1; k <= n; ++k) {
      table[n][k] = table[n - 1][k - 1] + (k < n ? table[n - 1][k] : 0.0);
    }
  }
  return table;
}();
}  // namespace detail

/// Draws worlds for one seat of one position: set up once, sampled often.
///
/// Only seats that have shown a void in a suit of which cards are still out restrict the deal. For
/// them a dynamic programme over "cards of each suit given away so far" counts the ways to deal
/// the rest; a draw walks it forward. Everybody else, and the undealt pile, then share the
/// remaining cards by a plain shuffle: given the restricted hands, all such deals are equally many.
/// Work is bounded by (cards out + 1)^3 states a restricted seat, whatever the voids.
class WorldSampler {
 public:
  WorldSampler(const Round& round, int seat) : base_(round) {
    unseen_ = kAllCards & ~round.played & ~round.hands[seat];
    // A hand may only be asked how many cards it has; wipe the rest so that nothing can leak.
    for (int s = 0; s < round.num_players; ++s) {
      if (s != seat) base_.hands[s] = 0;
    }
    for (int s = 0; s < round.num_players; ++s) {
      const int size = round.hand_size(s);
      if (s == seat || size == 0) continue;
      Holder holder = {static_cast<std::uint8_t>(s), static_cast<std::uint8_t>(size), 0};
      for (int suit = 0; suit < kNumSuits; ++suit) {
        if ((round.voids[s] >> suit & 1) && ranks_of(unseen_, suit) != 0) {
          holder.voids = static_cast<std::uint8_t>(holder.voids | 1 << suit);
        }
      }
      (holder.voids != 0 ? restricted_ : free_).push_back(holder);
    }
    if (!restricted_.empty()) count_ways();
  }

  /// A full deal in which the ego holds its own cards. Throws std::logic_error where none exists.
  Round sample(Rng& rng) const {
    Round world = base_;
    CardSet left = unseen_;
    if (!restricted_.empty()) left = deal_restricted(world, rng);
    std::uint8_t cards[kNumCards];
    std::uint32_t num_left = 0;
    for_each_card(left, [&](int card) { cards[num_left++] = static_cast<std::uint8_t>(card); });
    for (const Holder& holder : free_) {
      CardSet hand = 0;
      for (int i = 0; i < holder.size; ++i) {
        const std::uint32_t pick = rng.below(num_left);
        hand |= one_card(cards[pick]);
        cards[pick] = cards[--num_left];
      }
      world.hands[holder.seat] = hand;
    }
    return world;
  }

 private:
  struct Holder {
    std::uint8_t seat;
    std::uint8_t size;
    std::uint8_t voids;
  };
  struct Given {
    int of[kNumSuits];  // cards of each suit dealt to restricted seats so far
  };

  /// Calls visit(counts, ways) for every split of a holder's hand over the suits it may hold.
  template <class Visit>
  void for_each_split(const Holder& holder, const Given& given, Visit&& visit) const {
    int room[kNumSuits];
    for (int suit = 0; suit < kNumSuits; ++suit) {
      room[suit] = holder.voids >> suit & 1 ? 0 : num_unseen_[suit] - given.of[suit];
    }
    const int size = holder.size;
    for (int a = std::max(0, size - room[1] - room[2] - room[3]); a <= std::min(size, room[0]);
         ++a) {
      for (int b = std::max(0, size - a - room[2] - room[3]); b <= std::min(size - a, room[1]);
           ++b) {
        const int rest = size - a - b;
        for (int c = std::max(0, rest - room[3]); c <= std::min(rest, room[2]); ++c) {
          const int counts[kNumSuits] = {a, b, c, rest - c};
          double ways = 1.0;
          for (int suit = 0; suit < kNumSuits; ++suit) {
            ways *= detail::kBinomials[static_cast<std::size_t>(num_unseen_[suit] - given.of[suit])]
                                      [static_cast<std::size_t>(counts[suit])];
          }
          if (!visit(counts, ways)) return;
        }
      }
    }
  }

  std::size_t index_of(const Given& given) const {
    // The fourth suit follows from the sum, which the number of seats served fixes.
    return static_cast<std::size_t>((given.of[0] * (most_[1] + 1) + given.of[1]) * (most_[2] + 1) +
                                    given.of[2]);
  }

  static Given plus(const Given& given, const int* counts) {
    Given sum = given;
    for (int suit = 0; suit < kNumSuits; ++suit) sum.of[suit] += counts[suit];
    return sum;
  }

  void count_ways() {
    for (int suit = 0; suit < kNumSuits; ++suit) {
      num_unseen_[suit] = count(unseen_ & suit_cards(suit));
      int wanted = 0;
      for (const Holder& holder : restricted_) {
        if (!(holder.voids >> suit & 1)) wanted += holder.size;
      }
      most_[suit] = std::min(num_unseen_[suit], wanted);
    }
    num_states_ = static_cast<std::size_t>((most_[0] + 1) * (most_[1] + 1) * (most_[2] + 1));
    // Layer i: ways to serve seats i.. from a state; -1 where not asked yet.
    ways_.assign(num_states_ * restricted_.size(), -1.0);
    if (ways_from(0, Given{}) <= 0.0) {
      throw std::logic_error("determinize: no deal is consistent with the voids shown");
    }
  }

  double ways_from(std::size_t layer, const Given& given) {
    if (layer == restricted_.size()) return 1.0;
    double& known = ways_[layer * num_states_ + index_of(given)];
    if (known >= 0.0) return known;
    double total = 0.0;
    for_each_split(restricted_[layer], given, [&](const int* counts, double ways) {
      total += ways * ways_from(layer + 1, plus(given, counts));
      return true;
    });
    known = total;
    return total;
  }

  /// Deals to the restricted seats and returns the cards left for the others.
  CardSet deal_restricted(Round& world, Rng& rng) const {
    CardSet left = unseen_;
    Given given = {};
    for (std::size_t layer = 0; layer < restricted_.size(); ++layer) {
      const Holder& holder = restricted_[layer];
      double target = rng.uniform() * ways_[layer * num_states_ + index_of(given)];
      int chosen[kNumSuits] = {};
      for_each_split(holder, given, [&](const int* counts, double ways) {
        const Given after = plus(given, counts);
        const double rest = layer + 1 < restricted_.size()
                                ? ways_[(layer + 1) * num_states_ + index_of(after)]
                                : 1.0;
        if (ways * rest <= 0.0) return true;
        std::copy(counts, counts + kNumSuits, chosen);
        target -= ways * rest;
        return target >= 0.0;
      });
      CardSet hand = 0;
      for (int suit = 0; suit < kNumSuits; ++suit) {
        std::uint8_t cards[kNumRanks];
        std::uint32_t num_cards = 0;
        for_each_card(left & suit_cards(suit),
                      [&](int card) { cards[num_cards++] = static_cast<std::uint8_t>(card); });
        for (int i = 0; i < chosen[suit]; ++i) {
          const std::uint32_t pick = rng.below(num_cards);
          hand |= one_card(cards[pick]);
          cards[pick] = cards[--num_cards];
        }
      }
      world.hands[holder.seat] = hand;
      left &= ~hand;
      given = plus(given, chosen);
    }
    return left;
  }

  Round base_;
  CardSet unseen_;
  std::vector<Holder> restricted_;
  std::vector<Holder> free_;
  int num_unseen_[kNumSuits] = {};
  int most_[kNumSuits] = {};
  std::size_t num_states_ = 0;
  std::vector<double> ways_;
};

}  // namespace shmzero
