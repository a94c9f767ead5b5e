// Plays rounds of every kind with the hash evaluator and prints one hash of their records and of
// all rows that were asked. Built for different instruction sets it must print the same.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "../shmzero/csrc/evaluate.h"
#include "../shmzero/csrc/lane.h"

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
  std::uint64_t hash = 0;
  const auto add = [&](std::uint64_t word) { hash = mix(hash * 31 + word); };
  for (const Opponents opponents : {Opponents::kPolicy, Opponents::kMaximise}) {
    PlaySettings play;
    search.opponents = opponents;
    play.search = search;
    play.players.clear();
    play.cards.clear();
    play.trumps.clear();
    for (int players = kMinPlayers; players <= kMaxPlayers; ++players) {
      play.players.push_back({players, 1.0});
    }
    for (int cards = 1; cards <= 17; ++cards) play.cards.push_back({cards, 1.0});
    for (int trump = 0; trump <= kNoTrump; ++trump) play.trumps.push_back({trump, 1.0});
    UnitQueue queue;
    for (std::uint64_t unit = 0; unit < 40; ++unit) queue.waiting.push_back({unit});
    LaneGroup group(play, queue);
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
