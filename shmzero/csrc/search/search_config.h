// What a search is asked for and what it answers.
#pragma once

#include <algorithm>
#include <cstdint>

namespace shmzero {

enum class Opponents : std::uint8_t { kPolicy, kMaximise };
enum class RootRule : std::uint8_t { kPuct, kHalving };
enum class Target : std::uint8_t { kVisits, kImproved };

/// See SearchConfig in mcts/config.py, which has the defaults and the checks.
struct SearchConfig {
  std::uint32_t determinizations;
  std::uint32_t simulations;  ///< In each world.
  std::uint32_t leaves_in_flight;
  float c_puct;
  float fpu_reduction;
  Opponents opponents;
  RootRule root;
  Target target;
  float improved_beta;
  std::uint32_t considered;
  bool known_hands;
  float noise_fraction;
  float noise_alpha;
  float temperature;
  std::uint32_t temperature_decisions;
  float final_temperature;
  float rivalry;
  std::uint32_t solved_cards;  ///< Leaves with so few cards in all hands get their exact max^n
                               ///< value; 0: none.

  /// Leaves per tree and wave: well below the simulations, or the first wave would be the search.
  std::uint32_t wave_leaves() const {
    return std::max(1u, std::min(leaves_in_flight, simulations / 4));
  }
  std::uint32_t worlds() const { return known_hands ? 1 : determinizations; }
  std::uint32_t rows_per_step(std::uint32_t players) const {
    if (simulations == 0) return 1;
    const std::uint32_t rows = opponents == Opponents::kMaximise ? players : 1;
    return worlds() * wave_leaves() * rows;
  }
};

/// A hand has at most 17 cards (three players), a bid at most 18 values.
inline constexpr int kMaxLegal = 18;

/// What a decision came to; the a-th entry is of the a-th legal action, lowest action first.
struct Decision {
  std::uint8_t num_actions;
  std::uint8_t actions[kMaxLegal];
  float prior[kMaxLegal];           ///< Without noise.
  std::uint32_t visits[kMaxLegal];  ///< Simulations, over all worlds.
  float q[kMaxLegal];       ///< Mean utility of the root seat; the root's value where untried.
  float policy[kMaxLegal];  ///< The target, sum 1; noise is taken out of it.
  std::uint16_t counts[kMaxLegal];  ///< The target as recorded: visits, or shares of 65535.
  float value;                      ///< Of the root seat.
  std::uint8_t best;                ///< Place of the action to play without temperature.
  std::uint32_t simulations;
  std::uint32_t evaluations;  ///< Rows asked, see RowCache.
  std::uint32_t terminals;    ///< Simulations that ended in a finished round.
};

}  // namespace shmzero
