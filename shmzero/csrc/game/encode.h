// What one seat knows of a round, as 256 float16 features in canonical suit order.
// Reads public state and the ego's own hand, nothing else: features are a function of the
// information set. The table of the 256 entries stands at `encode`; what else has to change with
// them is in csrc/README.md, under "Features".
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#if defined(__SSSE3__) && defined(__x86_64__)
#define SHMZERO_BYTE_SHUFFLES
#include <tmmintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "game/rules.h"

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

/// Halves of (relative seat + 1)/9 by an entry of Round::played_by, as low and high bytes.
struct SeatNinths {
  alignas(16) std::uint8_t low[16];
  alignas(16) std::uint8_t high[16];
};
/// By number of players and the dealer's seat relative to the ego.
inline constexpr auto kSeatNinths = [] {
  std::array<std::array<SeatNinths, kMaxPlayers>, kMaxPlayers + 1> table = {};
  for (int players = kMinPlayers; players <= kMaxPlayers; ++players) {
    for (int dealer = 0; dealer < players; ++dealer) {
      SeatNinths& ninths =
          table[static_cast<std::size_t>(players)][static_cast<std::size_t>(dealer)];
      for (int by = 0; by < players; ++by) {
        const std::uint16_t half = at(kNinths, (dealer + by) % players + 1);
        ninths.low[by + 1] = static_cast<std::uint8_t>(half & 0xff);
        ninths.high[by + 1] = static_cast<std::uint8_t>(half >> 8);
      }
    }
  }
  return table;
}();
/// Halves of i / divisor for i of 0 to 31, as low and high bytes.
struct ByteFractions {
  alignas(16) std::uint8_t low[32];
  alignas(16) std::uint8_t high[32];
};
constexpr ByteFractions byte_fractions(int divisor) {
  ByteFractions table = {};
  for (int i = 0; i < 32; ++i) {
    const std::uint16_t half = half_bits(static_cast<float>(i) / static_cast<float>(divisor));
    table.low[i] = static_cast<std::uint8_t>(half & 0xff);
    table.high[i] = static_cast<std::uint8_t>(half >> 8);
  }
  return table;
}
inline constexpr auto kByteThirteenths = byte_fractions(13);
inline constexpr auto kByteFourteenths = byte_fractions(14);

/// Zeroes what encode() does not write whole. Straight stores: for this size gcc turns memset into
/// `rep stos`, which starts late.
inline void clear(std::uint16_t* out) {
#if defined(__SSE2__)
  const auto zero = [&]<std::size_t... I>(std::size_t first, std::index_sequence<I...>) {
    (_mm_storeu_si128(reinterpret_cast<__m128i*>(out + first) + I, _mm_setzero_si128()), ...);
  };
  static_assert(kTrick - 4 + 7 * 8 == kPlayed && kScores + 6 * 8 == kNumFeatures);
  zero(kTrick - 4, std::make_index_sequence<7>{});
  zero(kScores, std::make_index_sequence<6>{});
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
  const CardSet own = round.hands[ego];
  // Longest own suit first, then own ranks, played ranks, ranks in the current trick; suits that
  // tie in all of them stay in index order until who is void and who played what is looked at.
  constexpr int kSuitBits = 2;
  const bool fixed = fixed_suits();
  std::uint64_t keys[kNumSuits];
  for (int suit = 0; suit < kNumSuits; ++suit) {
    const std::uint64_t own_ranks = ranks_of(own, suit);
    const std::uint64_t key =
        fixed ? static_cast<std::uint64_t>(kNumSuits - suit)
              : (static_cast<std::uint64_t>(count(own_ranks)) << 39) | (own_ranks << 26) |
                    (static_cast<std::uint64_t>(ranks_of(round.played, suit)) << 13) |
                    ranks_of(round.in_trick, suit);
    keys[suit] = (static_cast<std::uint64_t>(suit == round.trump) << 63) | (key << kSuitBits) |
                 static_cast<std::uint64_t>(kNumSuits - 1 - suit);
  }
  const auto sort_pair = [&](int i, int j) {
    const std::uint64_t swapped = (keys[i] ^ keys[j]) & all_if(keys[i] < keys[j]);
    keys[i] ^= swapped;
    keys[j] ^= swapped;
  };
  sort_pair(0, 1);
  sort_pair(2, 3);
  sort_pair(0, 2);
  sort_pair(1, 3);
  sort_pair(1, 2);
  const auto suit_at = [&](int i) {
    return kNumSuits - 1 - static_cast<int>(keys[i] & ((1u << kSuitBits) - 1));
  };
  const auto ties = [&](int i) { return (keys[i - 1] ^ keys[i]) >> kSuitBits == 0; };
  if (ties(1) | ties(2) | ties(3)) {
    // By suit: voids by dealer-relative seat, then the seat that played each rank.
    std::uint64_t seats[kNumSuits] = {};
    CardSet played = 0;
    for (int i = 1; i < kNumSuits; ++i) {
      if (ties(i)) played |= suit_cards(suit_at(i - 1)) | suit_cards(suit_at(i));
    }
    played &= round.played;
    const auto add = [&](int card, int by) {
      seats[suit_of(card)] |= static_cast<std::uint64_t>(by) << (3 * rank_of(card));
    };
    for_each_card(played & ~round.in_trick,
                  [&](int card) { add(card, round.played_by[card] - 1); });
    for (int i = 0, by = round.relative(round.leader, round.dealer); i < round.trick_size; ++i) {
      if (played >> round.trick[i] & 1) add(round.trick[i], by);
      by = round.next_seat(by);
    }
    for (int s = 0, relative = round.relative(0, round.dealer); s < round.num_players; ++s) {
      for (std::uint32_t voids = round.voids[s]; voids != 0; voids &= voids - 1) {
        seats[std::countr_zero(voids)] |= std::uint64_t{1} << (39 + relative);
      }
      relative = round.next_seat(relative);
    }
    for (int i = 1; i < kNumSuits; ++i) {
      for (int j = i; j > 0 && ties(j) && seats[suit_at(j - 1)] < seats[suit_at(j)]; --j) {
        std::swap(keys[j - 1], keys[j]);
      }
    }
  }
  SuitOrder order;
  for (int i = 0; i < kNumSuits; ++i) {
    const int suit = suit_at(i);
    order.from_canonical[i] = static_cast<std::uint8_t>(suit);
    order.to_canonical[suit] = static_cast<std::uint8_t>(i);
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

inline int action_to_canonical(bool playing, int action, const SuitOrder& order) {
  return playing ? order.to_canonical[suit_of(action)] * kNumRanks + rank_of(action) : action;
}

inline int action_to_canonical(const Round& round, int action, const SuitOrder& order) {
  return action_to_canonical(round.phase == Phase::kPlaying, action, order);
}

/// What a row's policy [52] says of each legal action, in ascending order of the actions.
inline void policy_of_legal(const float* policy, std::uint64_t actions, bool playing,
                            const SuitOrder& order, float* by_legal) {
  for_each_card(actions, [&](int action) {
    *by_legal++ = policy[action_to_canonical(playing, action, order)];
  });
}

/// Bytes of seats from the ego on, clockwise, in a word; zeros beyond the players.
template <class Byte>
std::uint64_t from_ego(const Byte (&by_seat)[kMaxPlayers], int ego, int num_players) {
  static_assert(std::endian::native == std::endian::little);
  const auto bytes = std::bit_cast<std::uint64_t>(std::to_array(by_seat));
  const int last = num_players - 1;
  const std::uint64_t all = ~std::uint64_t{0} >> (8 * (kMaxPlayers - num_players));
  return ((bytes & all) >> (8 * ego) | (bytes << (8 * (last - ego)) << 8)) & all;
}

/// Writes bids, tricks won, tricks needed and voids of the seats, [24 + 28], and 4 zeros more.
inline void write_seats(const Round& round, int ego, const SuitOrder& order, std::uint16_t* out) {
  using namespace feature;
  const std::uint64_t beyond = ~std::uint64_t{0} << (8 * round.num_players - 8) << 8;
  const std::uint64_t bids = from_ego(round.bids, ego, round.num_players) | beyond;
  const std::uint64_t tricks = from_ego(round.tricks_won, ego, round.num_players);
  const std::uint64_t real_voids = from_ego(round.voids, ego, round.num_players) >> 8;
  std::uint64_t voids = 0;  // a byte a seat, suits in canonical order
  for (int i = 0; i < kNumSuits; ++i) {
    voids |= (real_voids >> order.from_canonical[i] & 0x0101010101010101u) << i;
  }
  std::uint16_t* const out_voids = out + kVoids - kBids;
#if defined(SHMZERO_BYTE_SHUFFLES)
  const auto load = [](const std::uint8_t* from) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(from));
  };
  const auto store = [](std::uint16_t* to, __m128i halves) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
  };
  const auto word = [](std::uint64_t bytes) {
    return _mm_cvtsi64_si128(static_cast<long long>(bytes));
  };
  // A shuffle looks up 16 entries, and none where the index is negative.
  const auto look_up = [&](const std::uint8_t* table, __m128i index) {
    const __m128i below = _mm_adds_epu8(index, _mm_set1_epi8(0x70));
    const __m128i above = _mm_sub_epi8(index, _mm_set1_epi8(16));
    return _mm_or_si128(_mm_shuffle_epi8(load(table), below),
                        _mm_shuffle_epi8(load(table + 16), above));
  };
  const auto fractions = [&](const ByteFractions& table, __m128i count, __m128i signs) {
    const __m128i high = _mm_or_si128(look_up(table.high, count), signs);
    return _mm_unpacklo_epi8(look_up(table.low, count), high);
  };
  const __m128i none = _mm_setzero_si128();
  const __m128i bid = word(bids), won = word(tricks);
  const __m128i needed = _mm_andnot_si128(_mm_cmpgt_epi8(none, bid), _mm_sub_epi8(bid, won));
  store(out, fractions(kByteFourteenths, _mm_add_epi8(bid, _mm_set1_epi8(1)), none));
  store(out + kTricksWon - kBids, fractions(kByteThirteenths, won, none));
  store(out + kNeeded - kBids, fractions(kByteThirteenths, _mm_abs_epi8(needed),
                                         _mm_and_si128(needed, _mm_set1_epi8(-128))));
  const __m128i flags = _mm_setr_epi16(1, 2, 4, 8, 1, 2, 4, 8);
  const __m128i two_seats = _mm_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1);
  for (int seats = 0; seats < kMaxPlayers; seats += 2) {
    const __m128i bits = _mm_shuffle_epi8(word(voids >> (8 * seats)), two_seats);
    store(out_voids + seats * kNumSuits,
          _mm_and_si128(_mm_cmpeq_epi16(_mm_and_si128(bits, flags), flags),
                        _mm_set1_epi16(static_cast<short>(kOne))));
  }
#else
  for (int i = 0; i < kMaxPlayers; ++i) {
    const int bid = static_cast<std::int8_t>(bids >> (8 * i) & 0xff);
    const int won = static_cast<int>(tricks >> (8 * i) & 0xff);
    out[i] = at(kFourteenths, bid + 1);
    out[kTricksWon - kBids + i] = at(kThirteenths, won);
    out[kNeeded - kBids + i] = at(kThirteenths, bid >= 0 ? bid - won : 0);
    for (int suit = 0; suit < kNumSuits; ++suit) {
      out_voids[i * kNumSuits + suit] = voids >> (8 * i + suit) & 1 ? kOne : std::uint16_t{0};
    }
  }
#endif
}

/// Writes a hand, [52], the cards of `takes` as 2, and up to 3 zeros more.
inline void write_hand(CardSet hand, CardSet takes, const SuitOrder& order, std::uint16_t* out) {
  using feature::kOne, feature::kTwo;
  for (int i = 0; i < kNumSuits; ++i, out += kNumRanks) {
    const std::uint32_t own = ranks_of(hand, order.from_canonical[i]);
    const std::uint32_t taking = own & ranks_of(takes, order.from_canonical[i]);
#if defined(SHMZERO_BYTE_SHUFFLES)
    // A byte a rank looks at its bit. The low bytes of kOne and kTwo are zero.
    static_assert((kOne & 0xff) == 0 && (kTwo & 0xff) == 0);
    const auto spread = [](std::uint32_t ranks, int byte) {
      const __m128i bits = _mm_set1_epi64x(static_cast<long long>(0x8040201008040201u));
      const __m128i twice = _mm_shuffle_epi8(_mm_cvtsi32_si128(static_cast<int>(ranks)),
                                             _mm_set_epi64x(0x0101010101010101, 0));
      return _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(twice, bits), bits),
                           _mm_set1_epi8(static_cast<char>(byte)));
    };
    const __m128i high = _mm_add_epi8(spread(own, kOne >> 8), spread(taking, (kTwo - kOne) >> 8));
    const __m128i low = _mm_setzero_si128();
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(low, high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm_unpackhi_epi8(low, high));
#else
    for (int rank = 0; rank < kNumRanks; ++rank) {
      out[rank] = static_cast<std::uint16_t>((own >> rank & 1u) * kOne +
                                             (taking >> rank & 1u) * (kTwo - kOne));
    }
#endif
  }
}

/// Writes who played the cards of finished tricks, [52], and up to 3 entries more.
inline void write_played(const Round& round, const SuitOrder& order,
                         const feature::SeatNinths& ninths, std::uint16_t* out) {
  for (int i = 0; i < kNumSuits; ++i, out += kNumRanks) {
    const std::uint8_t* by = round.played_by + order.from_canonical[i] * kNumRanks;
#if defined(SHMZERO_BYTE_SHUFFLES)
    const auto load = [](const void* from) {
      return _mm_loadu_si128(static_cast<const __m128i*>(from));
    };
    const __m128i seats = load(by);
    const __m128i low = _mm_shuffle_epi8(load(ninths.low), seats);
    const __m128i high = _mm_shuffle_epi8(load(ninths.high), seats);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(low, high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm_unpackhi_epi8(low, high));
#else
    for (int rank = 0; rank < kNumRanks; ++rank) {
      out[rank] = static_cast<std::uint16_t>(ninths.low[by[rank]] | ninths.high[by[rank]] << 8);
    }
#endif
  }
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
  // The cards and the seats may run over by some entries: with zeros into what is zero, or into the
  // next part, which is written after them.
  clear(out);
  // Cards that would take the trick as it stands. Without trumps the last set is of no card.
  const int winning = suit_of(round.winning_card);
  const CardSet takes =
      all_if(round.trick_size > 0) & ((suit_cards(winning) & (~CardSet{0} << round.winning_card)) |
                                      (suit_cards(round.trump) & all_if(round.trump != winning)));
  write_hand(round.hands[ego], takes, order, out + kHand);
  const int leader = round.relative(round.leader, ego);
  for (int i = 0, relative = leader; i < round.trick_size; ++i) {
    const int card = round.trick[i];
    const int suit = suit_of(card);
    const int place = card + (order.to_canonical[suit] - suit) * kNumRanks;
    out[kTrick + place] = at(kNinths, relative + (card == round.winning_card ? 10 : 1));
    relative = round.next_seat(relative);
  }
  const int dealer = round.relative(round.dealer, ego);
  write_played(round, order,
               kSeatNinths[static_cast<std::size_t>(num_players)][static_cast<std::size_t>(dealer)],
               out + kPlayed);

  write_seats(round, ego, order, out + kBids);
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
  out[kLeader + leader] = kOne;
  out[kPlayers + num_players - kMinPlayers] = kOne;

  out[kCards] = at(kThirteenths, round.cards);
  out[kCardsLeft] = at(kThirteenths, count(round.hands[ego]));
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
