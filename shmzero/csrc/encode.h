// What one seat knows of a round, as 256 float16 features in canonical suit order.
// Reads public state and the ego's own hand, nothing else: features are a function of the
// information set. The table of the 256 entries stands at `encode`.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "rules.h"

namespace shmzero {

inline constexpr int kNumFeatures = 256;
/// Changes whenever a feature changes its meaning; a checkpoint of another version is refused.
inline constexpr int kFeatureVersion = 1;

/// Bits of the float16 nearest to `value` (ties to even). Finite, within the float16 range.
constexpr std::uint16_t half_bits(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::int32_t exponent = static_cast<std::int32_t>((bits >> 23) & 0xff) - 127 + 15;
  std::uint32_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  if ((bits & 0x7fffffffu) == 0 || exponent < -10) return static_cast<std::uint16_t>(sign);
  const int shift = exponent <= 0 ? 14 - exponent : 13;
  const std::uint32_t half = 1u << (shift - 1);
  const std::uint32_t rest = mantissa & ((1u << shift) - 1);
  mantissa >>= shift;
  if (rest > half || (rest == half && (mantissa & 1u))) ++mantissa;
  const std::uint32_t base = exponent <= 0 ? 0u : static_cast<std::uint32_t>(exponent - 1) << 10;
  return static_cast<std::uint16_t>(sign | (base + mantissa));
}

constexpr float half_value(std::uint16_t bits) {
  const std::uint32_t exponent = (bits >> 10) & 31u;
  const std::uint32_t mantissa = bits & 1023u;
  const float magnitude = exponent == 0
                              ? static_cast<float>(mantissa) * 0x1.0p-24f
                              : std::bit_cast<float>(((exponent + 112u) << 23) | (mantissa << 13));
  return bits & 0x8000u ? -magnitude : magnitude;
}
static_assert(half_bits(1.0f) == 0x3c00 && half_bits(-2.0f) == 0xc000 && half_bits(0.1f) == 0x2e66);

namespace feature {
inline constexpr int kHand = 0, kTrick = 52, kPlayed = 104, kBids = 156, kTricksWon = 164,
                     kNeeded = 172, kVoids = 180, kScores = 208, kDealer = 216, kLeader = 224,
                     kPlayers = 232, kCards = 238, kCardsLeft = 239, kTrickNumber = 240,
                     kHasTrump = 241, kIsPlaying = 242, kBidBalance = 243, kHook = 244,
                     kForbidden = 245, kGameShare = 246, kNextCards = 247;

inline constexpr int kHalfRange = 64;
/// Halves of (i - kHalfRange) / divisor for small whole numerators.
constexpr std::array<std::uint16_t, 2 * kHalfRange> fractions(int divisor) {
  std::array<std::uint16_t, 2 * kHalfRange> table = {};
  for (int i = 0; i < 2 * kHalfRange; ++i) {
    table[static_cast<std::size_t>(i)] =
        half_bits(static_cast<float>(i - kHalfRange) / static_cast<float>(divisor));
  }
  return table;
}
inline constexpr auto kNinths = fractions(9);
inline constexpr auto kThirteenths = fractions(13);
inline constexpr auto kFourteenths = fractions(14);
inline constexpr std::uint16_t kOne = half_bits(1.0f);
inline constexpr std::uint16_t kTwo = half_bits(2.0f);
constexpr std::uint16_t at(const std::array<std::uint16_t, 2 * kHalfRange>& table, int numerator) {
  return table[static_cast<std::size_t>(numerator + kHalfRange)];
}
/// Halves of i / cards, for every hand size.
inline constexpr int kMostCards = kNumCards / kMinPlayers;
inline constexpr auto kShares = [] {
  std::array<std::array<std::uint16_t, kMostCards + 1>, kMostCards + 1> table = {};
  for (std::size_t cards = 1; cards <= kMostCards; ++cards) {
    for (std::size_t i = 0; i <= cards; ++i) {
      table[cards][i] = half_bits(static_cast<float>(i) / static_cast<float>(cards));
    }
  }
  return table;
}();

/// Zeroes a row. Straight stores: for this size gcc turns memset into `rep stos`, which starts
/// late.
inline void clear(std::uint16_t* out) {
#if defined(__SSE2__)
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    const __m128i zero = _mm_setzero_si128();
    (_mm_storeu_si128(reinterpret_cast<__m128i*>(out) + I, zero), ...);
  }(std::make_index_sequence<kNumFeatures * sizeof(std::uint16_t) / sizeof(__m128i)>{});
#else
  std::fill_n(out, kNumFeatures, std::uint16_t{0});
#endif
}
}  // namespace feature

/// A renaming of the suits and its inverse.
struct SuitOrder {
  std::uint8_t to_canonical[kNumSuits];
  std::uint8_t from_canonical[kNumSuits];
};

/// SHMZERO_SUITS=fixed leaves the suits below trump in one order for all hands, to measure what the
/// canonical order brings. Features are then of another version, which no other checkpoint fits.
inline bool fixed_suits() {
  static const bool fixed = [] {
    const char* set = std::getenv("SHMZERO_SUITS");
    return set != nullptr && std::string_view(set) == "fixed";
  }();
  return fixed;
}

/// The canonical order: trump first, the others by everything `ego` knows about them.
///
/// Two suits compare equal only if they are interchangeable for the ego, so information sets that
/// differ by a renaming get one order. Seats enter relative to the dealer: turning the table
/// changes nothing.
inline SuitOrder suit_order(const Round& round, int ego) {
  CardSet trick = 0;
  for (int i = 0; i < round.trick_size; ++i) trick |= one_card(round.trick[i]);
  const CardSet own = round.hands[ego];
  // Longest own suit first, then own ranks, played ranks, ranks in the current trick; suits that
  // tie in all of them stay in index order until who is void and who played what is looked at.
  constexpr int kSuitBits = 2;
  std::uint64_t keys[kNumSuits];
  int num_keys = 0;
  for (int suit = 0; suit < kNumSuits; ++suit) {
    const std::uint64_t own_ranks = ranks_of(own, suit);
    const std::uint64_t key =
        fixed_suits() ? static_cast<std::uint64_t>(kNumSuits - suit)
                      : (static_cast<std::uint64_t>(count(own_ranks)) << 39) | (own_ranks << 26) |
                            (static_cast<std::uint64_t>(ranks_of(round.played, suit)) << 13) |
                            ranks_of(trick, suit);
    keys[num_keys] = (key << kSuitBits) | static_cast<std::uint64_t>(kNumSuits - 1 - suit);
    num_keys += suit != round.trump;
  }
  for (int i = num_keys; i < kNumSuits; ++i) keys[i] = 0;
  const auto sort_pair = [&](int i, int j) {
    const std::uint64_t high = std::max(keys[i], keys[j]);
    keys[j] = std::min(keys[i], keys[j]);
    keys[i] = high;
  };
  sort_pair(0, 1);
  sort_pair(2, 3);
  sort_pair(0, 2);
  sort_pair(1, 3);
  sort_pair(1, 2);
  const auto suit_at = [&](int i) {
    return kNumSuits - 1 - static_cast<int>(keys[i] & ((1u << kSuitBits) - 1));
  };
  bool tied = false;
  for (int i = 1; i < num_keys; ++i) tied |= (keys[i - 1] ^ keys[i]) >> kSuitBits == 0;
  if (tied) {
    std::uint64_t seats[kNumSuits];  // by suit: voids by dealer-relative seat, who played each rank
    for (int suit = 0; suit < kNumSuits; ++suit) seats[suit] = round.played_by[suit];
    for (int s = 0, relative = round.relative(0, round.dealer); s < round.num_players; ++s) {
      for (std::uint32_t voids = round.voids[s]; voids != 0; voids &= voids - 1) {
        seats[std::countr_zero(voids)] |= std::uint64_t{1} << (39 + relative);
      }
      if (++relative == round.num_players) relative = 0;
    }
    for (int i = 1; i < num_keys; ++i) {
      for (int j = i; j > 0 && (keys[j - 1] ^ keys[j]) >> kSuitBits == 0 &&
                      seats[suit_at(j - 1)] < seats[suit_at(j)];
           --j) {
        std::swap(keys[j - 1], keys[j]);
      }
    }
  }
  SuitOrder order;
  int next = 0;
  if (round.trump != kNoTrump) {
    order.from_canonical[0] = round.trump;
    order.to_canonical[round.trump] = 0;
    next = 1;
  }
  for (int i = 0; i < num_keys; ++i, ++next) {
    const int suit = suit_at(i);
    order.from_canonical[next] = static_cast<std::uint8_t>(suit);
    order.to_canonical[suit] = static_cast<std::uint8_t>(next);
  }
  return order;
}

/// Cards of a set, each suit moved to its canonical place.
inline CardSet canonical_cards(CardSet cards, const SuitOrder& order) {
  CardSet moved = 0;
  for (int i = 0; i < kNumSuits; ++i) {
    moved |= static_cast<CardSet>(ranks_of(cards, order.from_canonical[i])) << (i * kNumRanks);
  }
  return moved;
}

/// A mask of actions in the same coordinates as the features. Bids have no suit and stay.
inline std::uint64_t canonical_mask(const Round& round, std::uint64_t actions,
                                    const SuitOrder& order) {
  return round.phase == Phase::kPlaying ? canonical_cards(actions, order) : actions;
}

inline int action_from_canonical(const Round& round, int action, const SuitOrder& order) {
  if (round.phase != Phase::kPlaying) return action;
  return order.from_canonical[suit_of(action)] * kNumRanks + rank_of(action);
}

inline int action_to_canonical(const Round& round, int action, const SuitOrder& order) {
  if (round.phase != Phase::kPlaying) return action;
  return order.to_canonical[suit_of(action)] * kNumRanks + rank_of(action);
}

/// Writes what `ego` knows into out[256], float16 bits, and returns the suit order used.
///
/// Relative seat i is the i-th clockwise from the ego; suits are canonical.
///     0-51 own hand, 2 where the card would take the trick as it stands
///   52-103 current trick, (relative seat + 1)/9, + 1 for the winning card
///  104-155 finished tricks, (relative seat + 1)/9
///      156 bids (bid + 1)/14 | 164 tricks won /13 | 172 still needed /13
///      180 voids, relative seats 1-7 x suit | 208 total score minus own, /100
///      216 dealer | 224 leader | 232 number of players
///      238 cards/13 | 239 left/13 | 240 trick/cards | 241 has trump | 242 playing
///      243 (bids - cards)/13 | 244 hook applies
///      245 (bid forbidden to the dealer as things stand + 1)/14
///      246 share of the game | 247 next cards/13
inline SuitOrder encode(const Round& round, int ego, std::uint16_t* out) {
  using namespace feature;
  const SuitOrder order = suit_order(round, ego);
  const int num_players = round.num_players;
  clear(out);

  // Ninths of (relative seat + 1), looked up by dealer-relative seat.
  std::uint16_t ninths[kMaxPlayers];
  const int dealer = round.relative(round.dealer, ego);
  for (int s = 0, relative = dealer; s < num_players; ++s) {
    ninths[s] = at(kNinths, relative + 1);
    if (++relative == num_players) relative = 0;
  }

  CardSet finished = round.played;
  CardSet takes = 0;  // cards that would take the trick as it stands
  for (int i = 0, relative = round.relative(round.leader, ego); i < round.trick_size; ++i) {
    const int card = round.trick[i];
    finished &= ~one_card(card);
    const int suit = suit_of(card);
    const int place = card + (order.to_canonical[suit] - suit) * kNumRanks;
    out[kTrick + place] = at(kNinths, relative + (card == round.winning_card ? 10 : 1));
    if (++relative == num_players) relative = 0;
  }
  if (round.trick_size > 0) {
    const int suit = suit_of(round.winning_card);
    takes = suit_cards(suit) & (~CardSet{0} << round.winning_card);
    if (round.trump != kNoTrump && round.trump != suit) takes |= suit_cards(round.trump);
  }
  takes = canonical_cards(takes, order);
  for_each_card(canonical_cards(round.hands[ego], order), [&](int card) {
    out[kHand + card] = static_cast<std::uint16_t>(kOne + (takes >> card & 1u) * (kTwo - kOne));
  });
  std::uint64_t played_by[kNumSuits];  // by canonical suit
  for (int i = 0; i < kNumSuits; ++i) played_by[i] = round.played_by[order.from_canonical[i]];
  for_each_card(canonical_cards(finished, order), [&](int card) {
    const int suit = suit_of(card);
    out[kPlayed + card] = ninths[played_by[suit] >> (3 * (card - suit * kNumRanks)) & 7u];
  });

  for (int i = 0, s = ego; i < num_players; ++i) {
    const int bid = round.bids[s];
    const int tricks = round.tricks_won[s];
    out[kBids + i] = at(kFourteenths, bid + 1);
    out[kNeeded + i] = at(kThirteenths, bid >= 0 ? bid - tricks : 0);
    out[kTricksWon + i] = at(kThirteenths, tricks);
    if (++s == num_players) s = 0;
  }
  for (int i = 1, s = round.next_seat(ego); i < num_players; ++i, s = round.next_seat(s)) {
    for (std::uint32_t voids = round.voids[s]; voids != 0; voids &= voids - 1) {
      out[kVoids + (i - 1) * kNumSuits + order.to_canonical[std::countr_zero(voids)]] = kOne;
    }
  }
  if (round.game.num_rounds != 0) {
    for (int i = 1, s = round.next_seat(ego); i < num_players; ++i, s = round.next_seat(s)) {
      out[kScores + i] =
          half_bits(static_cast<float>(round.game.totals[s] - round.game.totals[ego]) / 100.0f);
    }
    out[kGameShare] = half_bits(static_cast<float>(round.game.rounds_played) /
                                static_cast<float>(round.game.num_rounds));
    out[kNextCards] = at(kThirteenths, round.game.next_cards);
  }
  out[kDealer + dealer] = kOne;
  out[kLeader + round.relative(round.leader, ego)] = kOne;
  out[kPlayers + num_players - kMinPlayers] = kOne;

  out[kCards] = at(kThirteenths, round.cards);
  out[kCardsLeft] = at(kThirteenths, round.hand_size(ego));
  out[kTrickNumber] = kShares[round.cards][round.tricks_done];
  out[kHasTrump] = round.trump != kNoTrump ? kOne : std::uint16_t{0};
  out[kIsPlaying] = round.phase == Phase::kPlaying ? kOne : std::uint16_t{0};
  out[kBidBalance] = at(kThirteenths, round.bid_sum - round.cards);
  if (round.hook_applies()) {
    out[kHook] = kOne;
    // Shown to every seat from the first bid on: what the dealer may not bid as things stand.
    const int forbidden = round.cards - round.bid_sum;
    if (round.phase == Phase::kBidding && forbidden >= 0) {
      out[kForbidden] = at(kFourteenths, forbidden + 1);
    }
  }
  return order;
}

}  // namespace shmzero
