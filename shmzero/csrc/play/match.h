// Matches: the same deals played by agents in every rotation of the seats. A lane is one round (or
// game) in progress; bots answer at once, on the group's threads, networks are asked row by row.
//
// A unit, (deal, rotation), is a pure function of the seed and the agents at its table. None of its
// random numbers are those of self-play with the same seed: what was trained on is not played here.
// Read next: bots.h, search/search.h; matches/duplicate.py, which turns the rounds into figures.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "game/encode.h"
#include "game/rules.h"
#include "play/bots.h"
#include "play/lane.h"
#include "search/search.h"

namespace shmzero {

struct AgentConfig {
  bool is_network = false;
  BotConfig bot;  ///< Of a bot.
  SearchConfig
      search;  ///< Of a network. Its noise and temperature are not used: it plays its best.
};

/// Agents by seat, before rotation; entries beyond the players are not used.
using Table = std::array<std::uint8_t, kMaxPlayers>;

struct MatchSettings {
  PlaySettings play;  ///< Its search is not used.
  std::vector<AgentConfig> agents;
  std::vector<Table> tables;  ///< One a deal.
};

struct MatchUnit {
  std::uint32_t deal;
  std::uint8_t rotation;

  /// Place at the unrotated table of who sits at `seat`.
  int place_of(int seat, int num_players) const {
    return (seat - rotation + num_players) % num_players;
  }
};

/// A finished round of a match.
struct MatchRound {
  MatchUnit unit;
  std::uint16_t round_of_game;
  Round end;
};

class MatchLane {
 public:
  struct Row {
    std::uint64_t actions;  ///< Legal ones, real suits; 0 where the value alone was asked.
    std::uint64_t mask;
    std::uint32_t row;
    SuitOrder order;
    bool playing;
  };

  bool idle() const { return !unit_.has_value(); }

  void start(const MatchSettings& settings, const MatchUnit& unit) {
    unit_ = unit;
    game_.reset();
    RoundSettings drawn = draw_settings(settings.play, unit.deal);  // the same for every rotation
    if (settings.play.games) {
      game_.emplace(drawn.num_players, drawn.cards, settings.play.rules, drawn.dealer);
      drawn = game_->settings();
    }
    start_round(settings, drawn);
  }

  /// Plays on until its agent asks for rows or the unit is finished: true. False where it is past
  /// `until` after the decision of a bot that plays out, and there is more to do.
  bool step(const MatchSettings& settings, std::chrono::steady_clock::time_point until) {
    rows_.clear();
    features_.clear();
    for (;;) {
      if (searching_) {
        if (!search_.advance([&](const Round& round, int seat, std::uint64_t actions,
                                 std::uint32_t row) { ask(round, seat, actions, row); })) {
          return true;
        }
        searching_ = false;
        const Decision& decision = search_.decision();
        play(decision.actions[decision.best]);
      }
      const std::uint64_t actions = legal(round_);
      if (actions == 0) {
        finished_.push_back({*unit_, game_round(), round_});
        if (game_) game_->finish(round_);
        if (!game_ || game_->done()) {
          unit_.reset();
          return true;
        }
        start_round(settings, game_->settings());
        continue;
      }
      if ((actions & (actions - 1)) == 0) {
        play(lowest(actions));
        continue;
      }
      const int place = unit_->place_of(round_.seat, round_.num_players);
      agent_ = settings.tables[unit_->deal][static_cast<std::size_t>(place)];
      const AgentConfig& agent = settings.agents[agent_];
      const std::uint64_t id = round_id() * kMaxPlayers + unit_->rotation;
      if (agent.is_network) {
        search_.begin(round_, agent.search, settings.play.seed, id, ply_, false);
        searching_ = true;
      } else {
        play(choose_action(round_, agent.bot, uct_,
                           stream_key(settings.play.seed, id, ply_, Purpose::kBot)));
        if (plays_out(agent.bot) && std::chrono::steady_clock::now() >= until) return false;
      }
    }
  }

  /// The answer to a row: policy [52]; false where it cannot be used, see RowCache::answer.
  [[nodiscard]] bool answer(std::size_t at, const float* policy, float value) {
    const Row& row = rows_[at];
    float by_legal[kMaxLegal];
    policy_of_legal(policy, row.actions, row.playing, row.order, by_legal);
    return search_.answer(row.row, by_legal, value);
  }

  std::uint8_t agent() const { return agent_; }
  const std::vector<Row>& rows() const { return rows_; }
  const std::vector<std::uint16_t>& features() const { return features_; }  ///< [rows, 256] float16
  std::vector<MatchRound>& finished() { return finished_; }

 private:
  static bool plays_out(const BotConfig& bot) {
    return bot.kind == BotKind::kMonteCarlo || bot.kind == BotKind::kUct;
  }

  std::uint16_t game_round() const {
    return static_cast<std::uint16_t>(game_ ? game_->round_index : 0);
  }
  /// Rounds of a game are numbered within a block of ids of their deal.
  std::uint64_t round_id() const { return unit_->deal * Lane::kMaxRoundsPerGame + game_round(); }

  void start_round(const MatchSettings& settings, const RoundSettings& drawn) {
    round_ = deal_round(drawn, Rng(stream_key(settings.play.seed, round_id(), 0, Purpose::kDeal)));
    ply_ = 0;
    searching_ = false;
  }

  void play(int action) {
    apply(round_, action);
    ++ply_;
  }

  void ask(const Round& round, int seat, std::uint64_t actions, std::uint32_t row) {
    features_.resize(features_.size() + kNumFeatures);
    const SuitOrder order = encode(round, seat, features_.data() + features_.size() - kNumFeatures);
    rows_.push_back({.actions = actions,
                     .mask = canonical_mask(round, actions, order),
                     .row = row,
                     .order = order,
                     .playing = round.phase == Phase::kPlaying});
  }

  std::optional<MatchUnit> unit_;
  std::optional<Game> game_;
  Round round_ = {};
  std::uint64_t ply_ = 0;
  std::uint8_t agent_ = 0;  ///< To act.
  bool searching_ = false;
  Search search_;
  UctBot uct_;
  std::vector<Row> rows_;
  std::vector<std::uint16_t> features_;
  std::vector<MatchRound> finished_;
};

/// All units of a match, a limited number of them at once.
class MatchGroup {
 public:
  MatchGroup(MatchSettings settings, std::uint32_t num_lanes, std::uint32_t num_threads)
      : settings_(std::move(settings)), num_threads_(num_threads) {
    // From here on everything about the match is keyed by this.
    settings_.play.seed = stream_key(settings_.play.seed, 0, 0, Purpose::kMatch);
    for (std::uint32_t deal = 0; deal < settings_.tables.size(); ++deal) {
      const int rotations = draw_settings(settings_.play, deal).num_players;
      for (int r = 0; r < rotations; ++r) units_.push_back({deal, static_cast<std::uint8_t>(r)});
    }
    lanes_.resize(std::min<std::size_t>(num_lanes, units_.size()));
  }

  std::size_t num_units() const { return units_.size(); }
  bool done() const {
    if (next_unit_ < units_.size()) return false;
    for (const MatchLane& lane : lanes_) {
      if (!lane.idle()) return false;
    }
    return true;
  }

  /// Gives idle lanes a unit each and plays every lane on: true. False where there was no time for
  /// all of them, so that the caller can look around: call it again before anything is answered.
  /// What is asked together does not depend on the time. All rows must have been answered.
  bool step() {
    const auto until = std::chrono::steady_clock::now() + kStepTime;
    if (to_step_.empty()) {
      for (MatchLane& lane : lanes_) {
        if (lane.idle() && next_unit_ < units_.size()) lane.start(settings_, units_[next_unit_++]);
        if (!lane.idle()) to_step_.push_back(&lane);
      }
    }
    std::atomic<std::size_t> next{0};  // relaxed: hands out indices, publishes nothing
    std::vector<std::exception_ptr> errors(num_threads_);
    const auto work = [&](std::exception_ptr& error) {
      try {
        for (;;) {
          const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
          if (i >= to_step_.size()) return;
          if (to_step_[i]->step(settings_, until)) to_step_[i] = nullptr;
          if (std::chrono::steady_clock::now() >= until) return;
        }
      } catch (...) {
        error = std::current_exception();
      }
    };
    {
      std::vector<std::jthread> threads;
      for (std::uint32_t t = 1; t < num_threads_; ++t) {
        threads.emplace_back([&, t] { work(errors[t]); });
      }
      work(errors[0]);
    }
    for (const std::exception_ptr& error : errors) {
      if (error) std::rethrow_exception(error);
    }
    for (MatchLane& lane : lanes_) {
      finished_.insert(finished_.end(), lane.finished().begin(), lane.finished().end());
      lane.finished().clear();
    }
    std::erase(to_step_, nullptr);
    return to_step_.empty();
  }

  /// Lanes that wait for rows of an agent, in order. Their rows make its batch.
  template <class Visit>
  void for_each_waiting(std::uint32_t agent, Visit&& visit) {
    for (MatchLane& lane : lanes_) {
      if (!lane.idle() && lane.agent() == agent) visit(lane);
    }
  }

  const MatchSettings& settings() const { return settings_; }
  const std::vector<MatchRound>& finished() const { return finished_; }

 private:
  static constexpr std::chrono::milliseconds kStepTime{100};

  MatchSettings settings_;
  std::uint32_t num_threads_;
  std::vector<MatchUnit> units_;
  std::size_t next_unit_ = 0;
  std::vector<MatchLane> lanes_;
  std::vector<MatchLane*> to_step_;  ///< Those that have not come as far as they can.
  std::vector<MatchRound> finished_;
};

}  // namespace shmzero
