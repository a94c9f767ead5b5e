// Many rounds at once: a lane is one round (or game) as a state machine around a Search, a group
// steps its lanes together and turns what they ask into rows.
//
// The same group serves a worker, whose rows lie in a slot, and in-process self-play. Knows nothing
// of slots and processes. Read next: worker.h.
#pragma once

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "game/encode.h"
#include "game/rules.h"
#include "play/bots.h"
#include "play/pipes.h"
#include "play/record.h"
#include "play/rows.h"
#include "search/search.h"

namespace shmzero {

/// Values with their weights. Weights need not sum to 1.
using Weighted = std::vector<std::pair<int, double>>;

/// Who may hold a seat instead of the agent: a bot, or (none) the other network of the inference
/// process, which plays its policy's best action. With the chance that it does.
using Other = std::pair<std::optional<BotConfig>, double>;

/// What self-play plays, and how.
struct PlaySettings {
  std::uint64_t seed = 0;
  SearchConfig search = {};
  Weighted players = {{4, 1.0}};
  Weighted cards = {{5, 1.0}};  ///< Sizes that the deck does not allow are left out.
  Weighted trumps = {{0, 1.0}};
  int dealer = -1;  ///< -1: random.
  Rules rules;
  bool games = false;         ///< A unit is a whole game, else one round.
  std::vector<Other> others;  ///< Drawn for each seat but one, which is the agent's.

  int most_players() const {
    int most = kMinPlayers;
    for (const auto& [value, weight] : players) most = std::max(most, value);
    return most;
  }
};

inline int draw(const Weighted& from, Rng& rng, int most) {
  double total = 0.0;
  for (const auto& [value, weight] : from) total += value <= most ? weight : 0.0;
  double left = rng.uniform() * total;
  int drawn = -1;
  for (const auto& [value, weight] : from) {
    if (value > most || weight <= 0.0) continue;
    drawn = value;
    left -= weight;
    if (left < 0.0) break;
  }
  return drawn;
}

/// What a unit's round, or its game's first round, is like.
inline RoundSettings draw_settings(const PlaySettings& play, std::uint64_t unit) {
  Rng rng(stream_key(play.seed, unit, 0, Purpose::kSettings));
  RoundSettings drawn;
  drawn.num_players = draw(play.players, rng, kMaxPlayers);
  drawn.cards = draw(play.cards, rng, kNumCards / drawn.num_players);
  drawn.trump = draw(play.trumps, rng, kNoTrump);
  const auto random_dealer = rng.below(static_cast<std::uint32_t>(drawn.num_players));
  drawn.dealer =
      play.dealer < 0 ? static_cast<int>(random_dealer) : play.dealer % drawn.num_players;
  drawn.rules = play.rules.round;
  return drawn;
}

/// Sums since the start, of one process.
struct PlayCounters {
  std::uint64_t units = 0, rounds = 0, decisions = 0, simulations = 0, terminals = 0, rows = 0;
};

/// The units to play and what came of them, shared by the groups of one process.
struct UnitQueue {
  std::deque<Unit> waiting;
  std::vector<FinishedRound> finished;
  PlayCounters counters;
  Progress* progress = nullptr;  ///< Moves on with every row, decision and part of a long one.
  std::atomic<std::uint64_t>* playing =
      nullptr;  ///< The unit whose lane is being stepped, plus 1; 0: none.
};

/// One round, or game, in progress.
class Lane {
 public:
  bool idle() const { return !unit_.has_value(); }
  /// Of a lane that is not idle.
  std::uint64_t unit() const { return *unit_; }
  const Round& round() const { return round_; }
  /// Whether the rows of the last step are the other network's.
  bool asks_other() const { return asks_other_; }

  /// Plays on until rows are asked for (true) or no unit is left (false).
  template <class Emit>
  bool step(const PlaySettings& settings, UnitQueue& queue, Emit&& emit) {
    std::uint32_t emitted = 0;
    const auto counted = [&](const Round& round, int seat, std::uint64_t actions,
                             std::uint32_t row) {
      ++emitted;
      emit(round, seat, actions, row);
    };
    for (;;) {
      if (idle() && !start_unit(settings, queue)) return false;
      advance(queue.progress);
      if (queue.playing != nullptr) queue.playing->store(*unit_ + 1, std::memory_order_relaxed);
      if (searching_) {
        const bool decided = search_.advance(counted);
        if (!decided) {
          queue.counters.rows += emitted;
          return true;
        }
        finish_decision(settings, queue.counters);
      }
      play_forced();
      if (round_.phase == Phase::kDone) {
        finish_round(settings, queue);
        continue;
      }
      const int holder = holders_[round_.seat];
      asks_other_ = false;
      if (holder != kAgent) {
        const std::optional<BotConfig>& bot =
            settings.others[static_cast<std::size_t>(holder)].first;
        if (bot) {
          static thread_local UctBot uct;  // scratch, too large for every lane
          play(choose_action(
              round_, *bot, uct,
              stream_key(settings.seed, record_.id, record_.actions.size(), Purpose::kBot),
              queue.progress));
          continue;
        }
        asks_other_ = true;
      }
      static const SearchConfig policy_alone = [] {
        SearchConfig config = {};
        config.simulations = 0;
        return config;
      }();
      version_ = UINT32_MAX;
      search_.begin(round_, asks_other_ ? policy_alone : settings.search, settings.seed, record_.id,
                    record_.actions.size(), !asks_other_, queue.progress);
      searching_ = true;
    }
  }

  /// As Search::answer; by weights of that version.
  [[nodiscard]] bool answer(std::uint32_t row, const float* policy, float value,
                            std::uint32_t version) {
    version_ = std::min(version_, version);
    return search_.answer(row, policy, value);
  }

 private:
  bool start_unit(const PlaySettings& settings, UnitQueue& queue) {
    if (queue.waiting.empty()) return false;
    const Unit unit = queue.waiting.front();
    queue.waiting.pop_front();
    unit_ = unit.id;
    RoundSettings drawn = draw_settings(settings, *unit_);
    draw_holders(settings, drawn.num_players);
    game_.reset();
    if (settings.games) {
      game_.emplace(drawn.num_players, drawn.cards, settings.rules, drawn.dealer);
      game_->round_index = static_cast<int>(unit.first_round);
      std::copy(unit.totals.begin(), unit.totals.end(), game_->totals.begin());
      drawn = game_->settings();
    }
    start_round(settings, drawn);
    return true;
  }

  void draw_holders(const PlaySettings& settings, int num_players) {
    holders_.fill(kAgent);
    if (settings.others.empty()) return;
    Rng rng(stream_key(settings.seed, *unit_, 0, Purpose::kOthers));
    const int own = static_cast<int>(rng.below(static_cast<std::uint32_t>(num_players)));
    for (int seat = 0; seat < num_players; ++seat) {
      double left = rng.uniform();
      for (std::size_t i = 0; i < settings.others.size() && seat != own; ++i) {
        left -= settings.others[i].second;
        if (left >= 0.0) continue;
        holders_[static_cast<std::size_t>(seat)] = static_cast<std::int8_t>(i);
        break;
      }
    }
  }

  void start_round(const PlaySettings& settings, const RoundSettings& drawn) {
    // Rounds of games are numbered within a block of ids of their game.
    record_ = {};
    record_.id = game_ ? *unit_ * kMaxRoundsPerGame + static_cast<std::uint64_t>(game_->round_index)
                       : *unit_;
    record_.settings = drawn;
    record_.rivalry = settings.search.rivalry;
    record_.target = settings.search.simulations == 0            ? RecordTarget::kPolicy
                     : settings.search.target == Target::kVisits ? RecordTarget::kVisits
                                                                 : RecordTarget::kImproved;
    round_ = deal_round(drawn, Rng(stream_key(settings.seed, record_.id, 0, Purpose::kDeal)));
    std::copy(round_.hands, round_.hands + kMaxPlayers, record_.hands);
    searching_ = false;
  }

  void play(int action) {
    record_.actions.push_back(static_cast<std::uint8_t>(action));
    apply(round_, action);
  }

  void play_forced() {
    for (std::uint64_t actions = legal(round_); actions != 0 && (actions & (actions - 1)) == 0;
         actions = legal(round_)) {
      play(lowest(actions));
    }
  }

  void finish_decision(const PlaySettings& settings, PlayCounters& counters) {
    const Decision& decision = search_.decision();
    searching_ = false;
    if (asks_other_) {
      play(decision.actions[decision.best]);  // nothing to learn from
      return;
    }
    SearchedDecision searched = {};
    searched.ply = static_cast<std::uint8_t>(record_.actions.size());
    searched.value = decision.value;
    searched.version = version_;
    searched.num_actions = decision.num_actions;
    std::copy(decision.counts, decision.counts + decision.num_actions, searched.counts);
    ++counters.decisions;
    counters.simulations += decision.simulations;
    counters.terminals += decision.terminals;
    const int chosen = choose(settings, decision);
    record_.searched.push_back(searched);
    play(decision.actions[chosen]);
  }

  /// Samples from visits^(1/T), without a search from policy^(1/T) and its share of random moves.
  /// Sequential halving has no meaningful counts: its best action is played.
  int choose(const PlaySettings& settings, const Decision& decision) {
    const SearchConfig& config = settings.search;
    const bool early = record_.searched.size() < config.temperature_decisions;
    const double temperature = early ? config.temperature : config.final_temperature;
    const bool searched = config.simulations > 0;
    if (searched && (temperature <= 0.0 || config.root == RootRule::kHalving)) return decision.best;
    double weights[kMaxLegal];
    double highest = 0.0, total = 0.0;
    for (int a = 0; a < decision.num_actions; ++a) {
      weights[a] = searched ? decision.visits[a] : decision.prior[a];
      highest = std::max(highest, weights[a]);
    }
    for (int a = 0; a < decision.num_actions; ++a) {
      weights[a] = temperature > 0.0 ? std::pow(weights[a] / highest, 1.0 / temperature)
                                     : a == decision.best;
      total += weights[a];
    }
    if (!searched) {
      // Without a search there is no root to put noise into: its share of the moves is uniform.
      const double share = config.noise_fraction;
      for (int a = 0; a < decision.num_actions; ++a) {
        weights[a] = (1.0 - share) * weights[a] / total + share / decision.num_actions;
      }
      total = 1.0;
    }
    Rng rng(stream_key(settings.seed, record_.id, record_.actions.size(), Purpose::kChoice));
    double left = rng.uniform() * total;
    int chosen = decision.best;
    for (int a = 0; a < decision.num_actions; ++a) {
      if (weights[a] <= 0.0) continue;
      chosen = a;
      left -= weights[a];
      if (left < 0.0) break;
    }
    return chosen;
  }

  void finish_round(const PlaySettings& settings, UnitQueue& queue) {
    if (game_) game_->finish(round_);
    const bool last = !game_ || game_->done();
    queue.finished.push_back({.unit = *unit_, .record = encode_record(record_), .last = last});
    ++queue.counters.rounds;
    if (!last) {
      start_round(settings, game_->settings());
      return;
    }
    ++queue.counters.units;
    unit_.reset();
  }

 public:
  static constexpr std::uint64_t kMaxRoundsPerGame = 256;

 private:
  static constexpr std::int8_t kAgent = -1;

  std::optional<std::uint64_t> unit_;
  std::optional<Game> game_;
  Round round_ = {};
  RoundRecord record_;
  Search search_;
  std::array<std::int8_t, kMaxPlayers> holders_ = {};  ///< Of the seats: kAgent, or of others.
  bool searching_ = false;
  bool asks_other_ = false;
  std::uint32_t version_ = 0;  ///< Oldest weights that answered a row of this decision.
};

/// Lanes that are stepped together, their rows in one block.
class LaneGroup {
 public:
  LaneGroup(const PlaySettings& settings, UnitQueue& queue) : settings_(settings), queue_(queue) {}

  /// Lanes that take up a unit after a step without one; those beyond go on while units wait.
  void set_num_lanes(std::uint32_t num_lanes) {
    num_lanes_ = num_lanes;
    if (lanes_.size() < num_lanes) lanes_.resize(num_lanes);
  }
  /// The lanes that asked the rows of the last step, in order.
  std::vector<const Lane*> askers() const {
    std::vector<const Lane*> found;
    found.reserve(owners_.size());
    for (const Owner& owner : owners_) found.push_back(&lanes_[owner.lane]);
    return found;
  }
  std::uint32_t rows_per_lane() const {
    return settings_.search.rows_per_step(static_cast<std::uint32_t>(settings_.most_players()));
  }

  /// Hands every lane the answers of its rows, steps it and writes what it asks next; returns the
  /// number of rows. 0: nothing is in progress. The capacity must be rows_per_lane() for every
  /// lane. `answers` are those of the rows of the last call, and may not lie where `rows` does.
  /// Throws std::runtime_error for an answer that cannot be used.
  std::uint32_t step(const AnswerView& answers, const RowView& rows) {
    asked_.swap(owners_);
    owners_.clear();
    std::size_t answered = 0;
    for (std::uint32_t i = 0; i < lanes_.size(); ++i) {
      Lane& lane = lanes_[i];
      for (; answered < asked_.size() && asked_[answered].lane == i; ++answered) {
        answer(lane, asked_[answered], answered, answers);
      }
      if (lane.idle() && (i >= num_lanes_ || queue_.waiting.empty())) continue;
      lane.step(settings_, queue_,
                [&](const Round& round, int seat, std::uint64_t actions, std::uint32_t row) {
                  const auto at = owners_.size();
                  if (at >= rows.capacity) throw std::logic_error("lane group: block too small");
                  const SuitOrder order = encode(round, seat, rows.features + at * kNumFeatures);
                  const std::uint64_t mask = canonical_mask(round, actions, order);
                  rows.masks[at] = mask | (lane.asks_other() ? kOtherNetwork : 0);
                  owners_.push_back({.actions = actions,
                                     .lane = i,
                                     .row = row,
                                     .order = order,
                                     .playing = round.phase == Phase::kPlaying});
                });
    }
    if (queue_.playing != nullptr) queue_.playing->store(0, std::memory_order_relaxed);
    return static_cast<std::uint32_t>(owners_.size());
  }

 private:
  struct Owner {
    std::uint64_t actions;  ///< Legal ones, real suits; 0 where the value alone was asked.
    std::uint32_t lane;
    std::uint32_t row;
    SuitOrder order;
    bool playing;
  };

  static void answer(Lane& lane, const Owner& owner, std::size_t at, const AnswerView& answers) {
    const float* policy = answers.policies + at * kNumActions;
    float by_legal[kMaxLegal];
    policy_of_legal(policy, owner.actions, owner.playing, owner.order, by_legal);
    if (lane.answer(owner.row, by_legal, answers.values[at], answers.version)) return;
    std::uint64_t mask = 0;
    for_each_card(owner.actions, [&](int action) {
      mask |= one_card(action_to_canonical(owner.playing, action, owner.order));
    });
    refuse_answer(at, policy, mask, answers.values[at]);
  }

  const PlaySettings& settings_;
  UnitQueue& queue_;
  std::uint32_t num_lanes_ = 0;
  std::vector<Lane> lanes_;
  std::vector<Owner> owners_;  ///< Of the rows asked last, by lane.
  std::vector<Owner> asked_;   ///< Of those before, while they are answered.
};

}  // namespace shmzero
