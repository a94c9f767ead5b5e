// A round together with the actions that led to it: what Python holds. The search needs no history.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "game/rules.h"

namespace shmzero {

struct TrackedRound {
  Round state;
  std::vector<std::uint8_t> actions;  ///< Bids, then cards, in order.

  bool operator==(const TrackedRound&) const = default;

  RoundSettings settings() const {
    return {state.num_players, state.cards, state.trump, state.dealer, state.rules, state.game};
  }
  /// The hands as dealt, by seat: those still held and what each seat has played.
  std::array<CardSet, kMaxPlayers> dealt() const {
    std::array<CardSet, kMaxPlayers> hands = {};
    Round played = make_round(settings(), hands.data());
    for (const std::uint8_t action : actions) {
      if (played.phase == Phase::kPlaying) hands[played.seat] |= one_card(action);
      apply(played, action);  // who plays when depends on no hand
    }
    for (int s = 0; s < kMaxPlayers; ++s) hands[static_cast<std::size_t>(s)] |= state.hands[s];
    return hands;
  }
};

}  // namespace shmzero
