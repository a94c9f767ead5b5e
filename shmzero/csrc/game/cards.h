// Cards and sets of cards. A card is suit * 13 + rank; a set is one bit per card.
// Not here: who holds them (rules.h). Read next: rules.h.
#pragma once

#include <bit>
#include <cstdint>

namespace shmzero {

using CardSet = std::uint64_t;

inline constexpr int kNumSuits = 4;
inline constexpr int kNumRanks = 13;
inline constexpr int kNumCards = kNumSuits * kNumRanks;
/// One action space for both phases: a bid is its number, a card its index.
inline constexpr int kNumActions = kNumCards;
inline constexpr int kMinPlayers = 3;
inline constexpr int kMaxPlayers = 8;
/// Trump of a round without trumps; one past the last suit, so that no card is ever of it.
inline constexpr int kNoTrump = kNumSuits;

inline constexpr CardSet kAllCards = (CardSet{1} << kNumCards) - 1;
inline constexpr CardSet kSuitCards = (CardSet{1} << kNumRanks) - 1;

constexpr int suit_of(int card) { return (card * 79) >> 10; }  // card / 13 for 0..51
constexpr int rank_of(int card) { return card - suit_of(card) * kNumRanks; }
constexpr CardSet one_card(int card) { return CardSet{1} << card; }
constexpr CardSet suit_cards(int suit) { return kSuitCards << (suit * kNumRanks); }
/// All bits where `condition` holds, else none.
constexpr CardSet all_if(bool condition) { return -static_cast<CardSet>(condition); }
constexpr int lowest(CardSet cards) { return std::countr_zero(cards); }
/// Without the POPCNT instruction std::popcount is a call.
constexpr int count(CardSet cards) {
#if defined(__POPCNT__)
  return std::popcount(cards);
#else
  cards -= (cards >> 1) & 0x5555555555555555u;
  cards = (cards & 0x3333333333333333u) + ((cards >> 2) & 0x3333333333333333u);
  cards = (cards + (cards >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int>((cards * 0x0101010101010101u) >> 56);
#endif
}

/// The 13 ranks held in one suit, as bits 0..12.
constexpr std::uint32_t ranks_of(CardSet cards, int suit) {
  return static_cast<std::uint32_t>((cards >> (suit * kNumRanks)) & kSuitCards);
}

/// Calls `visit(card)` for every card of the set, lowest first.
template <class Visit>
constexpr void for_each_card(CardSet cards, Visit&& visit) {
  while (cards != 0) {
    visit(lowest(cards));
    cards &= cards - 1;
  }
}

static_assert(suit_of(12) == 0 && suit_of(13) == 1 && suit_of(51) == 3 && rank_of(51) == 12);

}  // namespace shmzero
