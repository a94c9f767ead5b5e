// Training rows with the full deal, for the learner's critic: what every other seat really held,
// and what it was as likely to hold.
//
// These rows know what no player knows. They go into the learner's arrays and nowhere else: hands
// lie beside the 256 features, never in them, so no serving network takes them. Read next:
// replay.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "game/encode.h"
#include "play/record.h"

namespace shmzero {

/// Hands of a row: place 0 the undealt cards, place i the hand of relative seat i.
inline constexpr int kNumHands = kMaxPlayers;

/// Arrays that somebody else owns, N rows each. Cards and actions are in the ego's canonical suits.
struct FullDealView {
  std::uint16_t* features;       ///< [N, 256] float16 bits, of the mover.
  std::uint64_t* masks;          ///< [N] legal actions.
  std::uint8_t* hands;           ///< [N, 8 x 52] 1 for each card that the mover does not see.
  std::uint8_t* silent;          ///< [N] bit i: relative seat i has yet to bid.
  std::uint8_t* actions;         ///< [N] that was taken.
  float* utilities;              ///< [N] that the mover came to.
  std::uint16_t* policies;       ///< [N, 52] float16 bits, the record's target, sum 1.
  std::uint16_t* seat_features;  ///< [N, 256] float16 bits, of a seat drawn at random.
  float* seat_utilities;         ///< [N] that this seat came to.
  std::uint8_t* tricks;          ///< [N] that the mover won in the end.
  std::uint32_t* versions;       ///< [N] weights that decided.
  std::size_t capacity;          ///< N; rows wrap round.
};

/// What the seats of a round came to, and whose decisions are rows.
struct ReplayChoice {
  const float* outcomes = nullptr;  ///< [8] by seat, instead of the round's utilities.
  int only_seat = -1;               ///< Rows of this seat alone, -1: of all.
};

/// Expected share of the win of each seat once `end`, the last round of a game, is over: equals
/// share it.
inline void win_shares(const Round& end, float* shares) {
  int best = INT32_MIN, winners = 0;
  const auto total = [&](int s) { return end.game.totals[s] + score(end, s); };
  for (int s = 0; s < end.num_players; ++s) best = std::max(best, total(s));
  for (int s = 0; s < end.num_players; ++s) winners += total(s) == best;
  for (int s = 0; s < kMaxPlayers; ++s) {
    shares[s] = s < end.num_players && total(s) == best ? 1.0f / static_cast<float>(winners) : 0.0f;
  }
}

/// Writes one row a searched decision from row `at` on, wrapping; returns how many.
inline std::size_t replay_full_deal(const RoundRecord& record, std::uint64_t seat_seed,
                                    const FullDealView& out, std::size_t at,
                                    const ReplayChoice& choice = {}) {
  const std::size_t first = at;
  Round end = record.start();
  CardSet dealt = 0;
  for (int s = 0; s < end.num_players; ++s) dealt |= end.hands[s];
  const CardSet undealt = ~dealt & ((CardSet{1} << kNumCards) - 1);
  for (const std::uint8_t action : record.actions) apply(end, action);
  const auto outcome = [&](int seat) {
    return choice.outcomes != nullptr ? choice.outcomes[seat] : utility(end, seat, record.rivalry);
  };

  Round round = record.start();
  std::size_t ply = 0;
  for (const SearchedDecision& decision : record.searched) {
    for (; ply < decision.ply; ++ply) apply(round, record.actions[ply]);
    if (choice.only_seat >= 0 && round.seat != choice.only_seat) continue;
    const std::size_t row = at++ % out.capacity;
    const int ego = round.seat;
    const SuitOrder order = encode(round, ego, out.features + row * kNumFeatures);
    const std::uint64_t actions = legal(round);
    out.masks[row] = canonical_mask(round, actions, order);
    out.actions[row] =
        static_cast<std::uint8_t>(action_to_canonical(round, record.actions[ply], order));
    out.utilities[row] = outcome(ego);
    out.tricks[row] = end.tricks_won[ego];
    out.versions[row] = decision.version;

    std::uint8_t* hands = out.hands + row * kNumHands * kNumCards;
    std::fill_n(hands, kNumHands * kNumCards, std::uint8_t{0});
    unsigned silent = 0;
    for_each_card(canonical_cards(undealt, order), [&](int card) { hands[card] = 1; });
    for (int i = 1, s = round.next_seat(ego); i < round.num_players; ++i, s = round.next_seat(s)) {
      for_each_card(canonical_cards(round.hands[s], order),
                    [&](int card) { hands[i * kNumCards + card] = 1; });
      silent |= static_cast<unsigned>(round.bids[s] < 0) << i;
    }
    out.silent[row] = static_cast<std::uint8_t>(silent);

    std::uint16_t* policy = out.policies + row * kNumActions;
    for (int a = 0; a < kNumActions; ++a) policy[a] = 0;
    float total = 0.0f;
    for (int a = 0; a < decision.num_actions; ++a) total += decision.counts[a];
    const std::uint16_t* count = decision.counts;
    for_each_card(actions, [&](int action) {
      policy[action_to_canonical(round, action, order)] = half_bits(*count++ / total);
    });

    Rng rng(stream_key(seat_seed, record.id, ply, Purpose::kReplay));
    const int drawn = static_cast<int>(rng.below(round.num_players));
    const int seat = choice.only_seat >= 0 ? choice.only_seat : drawn;
    encode(round, seat, out.seat_features + row * kNumFeatures);
    out.seat_utilities[row] = outcome(seat);
  }
  return at - first;
}

/// Deals the cards of the silent seats and the undealt ones anew, in a row's `hands` [8 x 52].
///
/// A seat that has yet to bid has done nothing that its cards could have had a part in: given all
/// the others' cards, every such deal was as likely as the true one, whoever plays. Throws
/// std::invalid_argument for more cards than there are.
inline void redeal(std::uint8_t* hands, unsigned silent, Rng& rng) {
  std::uint8_t pool[kNumCards];
  std::uint8_t owners[kNumCards];  // place 0 is the undealt pile
  std::uint32_t size = 0;
  for (int place = 0; place < kNumHands; ++place) {
    if (place != 0 && !(silent >> place & 1)) continue;
    std::uint8_t* const hand = hands + place * kNumCards;
    for (int card = 0; card < kNumCards; ++card) {
      if (hand[card] == 0) continue;
      if (size == kNumCards) throw std::invalid_argument("redeal: more cards than there are");
      hand[card] = 0;
      pool[size] = static_cast<std::uint8_t>(card);
      owners[size++] = static_cast<std::uint8_t>(place);
    }
  }
  for (; size > 0; --size) {
    const std::uint32_t drawn = rng.below(size);
    hands[owners[size - 1] * kNumCards + pool[drawn]] = 1;
    pool[drawn] = pool[size - 1];
  }
}

}  // namespace shmzero
