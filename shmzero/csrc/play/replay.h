// Training rows out of records: features, masks, targets, derived anew by the rules.
#pragma once

#include <cstdint>
#include <vector>

#include "game/encode.h"
#include "play/record.h"

namespace shmzero {

/// One row a searched decision, in play order. Actions are canonical, as in the features.
struct ReplayRows {
  std::vector<std::uint16_t> features;       ///< [N, 256] float16 bits, of the mover.
  std::vector<std::uint64_t> masks;          ///< [N] legal actions.
  std::vector<float> policies;               ///< [N, 52] target, sum 1.
  std::vector<float> values;                 ///< [N] utility that the mover came to.
  std::vector<float> root_values;            ///< [N] the search's estimate of it.
  std::vector<std::uint64_t> ids;            ///< [N] round.
  std::vector<std::uint8_t> plies;           ///< [N]
  std::vector<std::uint8_t> seats;           ///< [N] mover.
  std::vector<std::uint32_t> versions;       ///< [N] weights.
  std::vector<std::uint16_t> seat_features;  ///< [N, 256] of a seat drawn at random, mover or not.
  std::vector<float> seat_values;            ///< [N] utility that this seat came to.
};

inline void replay_record(const RoundRecord& record, std::uint64_t seat_seed, ReplayRows& rows) {
  Round end = record.start();
  for (const std::uint8_t action : record.actions) apply(end, action);
  float utilities[kMaxPlayers];
  for (int s = 0; s < end.num_players; ++s) utilities[s] = utility(end, s, record.rivalry);

  Round round = record.start();
  std::size_t ply = 0;
  for (const SearchedDecision& decision : record.searched) {
    for (; ply < decision.ply; ++ply) apply(round, record.actions[ply]);
    const std::size_t row = rows.masks.size();
    rows.features.resize((row + 1) * kNumFeatures);
    rows.policies.resize((row + 1) * kNumActions);
    rows.seat_features.resize((row + 1) * kNumFeatures);
    const SuitOrder order = encode(round, round.seat, rows.features.data() + row * kNumFeatures);
    const std::uint64_t actions = legal(round);
    rows.masks.push_back(canonical_mask(round, actions, order));
    float total = 0.0f;
    for (int a = 0; a < decision.num_actions; ++a) total += decision.counts[a];
    const std::uint16_t* count = decision.counts;
    for_each_card(actions, [&](int action) {
      const auto place = static_cast<std::size_t>(action_to_canonical(round, action, order));
      rows.policies[row * kNumActions + place] = *count++ / total;
    });
    rows.values.push_back(utilities[round.seat]);
    rows.root_values.push_back(decision.value);
    rows.ids.push_back(record.id);
    rows.plies.push_back(decision.ply);
    rows.seats.push_back(round.seat);
    rows.versions.push_back(decision.version);
    Rng rng(stream_key(seat_seed, record.id, ply, Purpose::kReplay));
    const int seat = static_cast<int>(rng.below(round.num_players));
    encode(round, seat, rows.seat_features.data() + row * kNumFeatures);
    rows.seat_values.push_back(utilities[seat]);
  }
}

}  // namespace shmzero
