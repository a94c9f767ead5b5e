// Plays rounds of every kind, by searches of every kind, with the hash evaluator and prints one
// hash of their records and of all rows that were asked. Built for different instruction sets it
// must print the same.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "play/evaluate.h"
#include "play/lane.h"

int main() {
  using namespace shmzero;
  SearchConfig search = {};
  search.determinizations = 2;
  search.simulations = 12;
  search.leaves_in_flight = 2;
  search.c_puct = 1.25f;
  search.noise_fraction = 0.25f;
  search.noise_alpha = 0.5f;
  search.temperature = search.final_temperature = 1.0f;
  search.temperature_decisions = 100;
  search.rivalry = 0.5f;
  std::vector<PlaySettings> kinds;
  PlaySettings play;
  play.players = play.cards = play.trumps = {};
  for (int players = kMinPlayers; players <= kMaxPlayers; ++players) {
    play.players.push_back({players, 1.0});
  }
  for (int cards = 1; cards <= 17; ++cards) play.cards.push_back({cards, 1.0});
  for (int trump = 0; trump <= kNoTrump; ++trump) play.trumps.push_back({trump, 1.0});
  play.search = search;
  kinds.push_back(play);
  play.search.solved_cards = 8;
  play.search.leaves_in_flight = 3;
  kinds.push_back(play);
  play.search.opponents = Opponents::kMaximise;
  kinds.push_back(play);
  play.search.known_hands = true;
  play.search.solved_cards = 0;
  kinds.push_back(play);
  play.search = search;
  play.search.root = RootRule::kHalving;
  play.search.considered = 4;
  play.search.target = Target::kImproved;
  play.search.improved_beta = 10.0f;
  kinds.push_back(play);
  play.search.simulations = 0;
  play.games = true;
  play.cards = {{3, 1.0}};
  kinds.push_back(play);

  std::uint64_t hash = 0;
  const auto add = [&](std::uint64_t word) { hash = mix(hash * 31 + word); };
  for (const PlaySettings& settings : kinds) {
    UnitQueue queue;
    for (std::uint64_t unit = 0; unit < 20; ++unit) queue.waiting.push_back({unit});
    LaneGroup group(settings, queue);
    group.set_num_lanes(8);
    const std::uint32_t capacity = 8 * group.rows_per_lane();
    std::vector<std::uint16_t> features(std::size_t{capacity} * kNumFeatures, 0xffff);
    std::vector<std::uint64_t> masks(capacity);
    std::vector<float> policies(std::size_t{capacity} * kNumActions), values(capacity);
    const RowView rows = {features.data(), masks.data(), capacity};
    while (const std::uint32_t asked = group.step({policies.data(), values.data(), 0}, rows)) {
      for (std::size_t row = 0; row < asked; ++row) {
        const std::uint16_t* at = features.data() + row * kNumFeatures;
        for (int i = 0; i < kNumFeatures; ++i) add(at[i]);
        add(masks[row]);
        evaluate_hash(at, masks[row], policies.data() + row * kNumActions, &values[row]);
      }
    }
    for (const FinishedRound& round : queue.finished) {
      for (const char byte : round.record) add(static_cast<unsigned char>(byte));
    }
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(hash));
}
