// Python's face of matches, of single bot decisions and of the endgame solver.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bind/bind.h"
#include "game/tracked_round.h"
#include "play/bots.h"
#include "play/match.h"
#include "search/solver.h"

namespace py = pybind11;

namespace shmzero {
namespace {

/// A match, stepped from Python.
class MatchRun {
 public:
  MatchRun(const PlaySettings& play, const std::vector<py::object>& agents,
           const std::vector<Table>& tables, std::uint32_t lanes, std::uint32_t threads)
      : group_(settings_of(play, agents, tables), std::max(1u, lanes), std::max(1u, threads)) {
    check_range("threads", threads, 0, 1024);
  }

  /// Plays on and returns [(agent, features float16 [B, 256], masks uint64 [B]), ...], which all
  /// have to be answered; none where it takes long, after a tenth of a second or one decision of a
  /// bot; None when the match is over.
  py::object step() {
    check_still();
    if (!asked_.empty()) throw py::value_error("a match was stepped before its rows were answered");
    if (group_.done()) return py::none();
    bool complete = false;
    stepping_ = true;  // and stays so where a step fails: the match cannot go on from that
    {
      const GilRelease release;
      complete = group_.step();
    }
    stepping_ = false;
    py::list blocks;
    if (!complete) return blocks;
    for (std::uint32_t agent = 0; agent < group_.settings().agents.size(); ++agent) {
      std::size_t rows = 0;
      group_.for_each_waiting(agent, [&](const MatchLane& lane) { rows += lane.rows().size(); });
      if (rows == 0) continue;
      py::array_t<std::uint16_t> features({rows, static_cast<std::size_t>(kNumFeatures)});
      py::array_t<std::uint64_t> masks(static_cast<py::ssize_t>(rows));
      std::uint16_t* feature = features.mutable_data();
      std::uint64_t* mask = masks.mutable_data();
      group_.for_each_waiting(agent, [&](const MatchLane& lane) {
        feature = std::copy(lane.features().begin(), lane.features().end(), feature);
        for (const MatchLane::Row& row : lane.rows()) *mask++ = row.mask;
      });
      blocks.append(py::make_tuple(agent, features.attr("view")("float16"), masks));
      asked_.emplace_back(agent, rows);
    }
    return blocks;
  }

  void answer(std::uint32_t agent, const Floats& policies, const Floats& values) {
    check_still();
    const auto asked = std::find_if(asked_.begin(), asked_.end(),
                                    [&](const auto& one) { return one.first == agent; });
    if (asked == asked_.end()) {
      throw py::value_error("agent " + std::to_string(agent) + " asked nothing");
    }
    check_answers(policies, values, asked->second);
    const float* policy = policies.data();
    const float* value = values.data();
    std::size_t row = 0;
    group_.for_each_waiting(agent, [&](MatchLane& lane) {
      for (std::size_t at = 0; at < lane.rows().size(); ++at, ++row, policy += kNumActions) {
        if (!lane.answer(at, policy, value[row])) {
          refuse_answer(row, policy, lane.rows()[at].mask, value[row]);
        }
      }
    });
    asked_.erase(asked);
  }

  std::size_t num_units() const { return group_.num_units(); }
  std::size_t num_rounds() const {
    check_still();
    return group_.finished().size();
  }

  /// Columns [N] or, by seat, [N, 8] (-1 beyond the players) of the N finished rounds.
  py::dict rounds() const {
    check_still();
    const auto n = static_cast<py::ssize_t>(group_.finished().size());
    const std::vector<py::ssize_t> wide = {n, kMaxPlayers};
    py::array_t<std::uint32_t> deal(n);
    py::array_t<int> rotation(n), round_of_game(n), players(n), cards(n), dealer(n);
    py::array_t<int> scores(wide), bids(wide), tricks(wide);
    for (py::ssize_t i = 0; i < n; ++i) {
      const MatchRound& one = group_.finished()[static_cast<std::size_t>(i)];
      const Round& end = one.end;
      deal.mutable_at(i) = one.unit.deal;
      rotation.mutable_at(i) = one.unit.rotation;
      round_of_game.mutable_at(i) = one.round_of_game;
      players.mutable_at(i) = end.num_players;
      cards.mutable_at(i) = end.cards;
      dealer.mutable_at(i) = end.dealer;
      for (int s = 0; s < kMaxPlayers; ++s) {
        const bool seated = s < end.num_players;
        scores.mutable_at(i, s) = seated ? score(end, s) : -1;
        bids.mutable_at(i, s) = seated ? end.bids[s] : -1;
        tricks.mutable_at(i, s) = seated ? end.tricks_won[s] : -1;
      }
    }
    py::dict d;
    d["deal"] = deal;
    d["rotation"] = rotation;
    d["round_of_game"] = round_of_game;
    d["players"] = players;
    d["cards"] = cards;
    d["dealer"] = dealer;
    d["scores"] = scores;
    d["bids"] = bids;
    d["tricks"] = tricks;
    return d;
  }

 private:
  /// Raises ValueError where another thread is within `step`, which does not hold the GIL.
  void check_still() const {
    if (stepping_)
      throw py::value_error("a match is being stepped by another thread, or has failed");
  }

  static MatchSettings settings_of(const PlaySettings& play, const std::vector<py::object>& agents,
                                   const std::vector<Table>& tables) {
    check_play(play);
    MatchSettings settings = {play, {}, tables};
    for (const py::object& agent : agents) {
      AgentConfig config;
      config.is_network = py::isinstance<SearchConfig>(agent);
      if (config.is_network) {
        config.search = agent.cast<SearchConfig>();
        check_search(config.search);
        if (config.search.known_hands) {
          throw py::value_error("known_hands is set; a match never looks at hidden hands");
        }
      } else {
        config.bot = agent.cast<BotConfig>();
      }
      settings.agents.push_back(config);
    }
    for (const Table& table : tables) {
      for (const std::uint8_t agent : table) {
        if (agent >= agents.size()) {
          throw py::value_error("agent " + std::to_string(agent) + " sits at a table; there are " +
                                std::to_string(agents.size()));
        }
      }
    }
    return settings;
  }

  MatchGroup group_;
  std::vector<std::pair<std::uint32_t, std::size_t>> asked_;  ///< (agent, rows)
  bool stepping_ = false;
};

int bot_action(const TrackedRound& round, const BotConfig& config, std::uint64_t seed) {
  const Round state = round.state;  // a copy: another thread may play the round on
  const std::uint64_t key = stream_key(seed, 0, round.actions.size(), Purpose::kBot);
  const std::uint64_t actions = legal(state);
  if (actions == 0) throw py::value_error("bot_action: the round is over");
  if ((actions & (actions - 1)) == 0) return lowest(actions);
  const GilRelease release;
  UctBot uct;
  return choose_action(state, config, uct, key);
}

py::tuple solve(const TrackedRound& round, int most_cards) {
  const Round state = round.state;  // a copy: another thread may play the round on
  if (state.phase == Phase::kDone) throw py::value_error("solve: the round is over");
  const int held = count(state.held());
  if (held > most_cards) {
    throw py::value_error("solve: " + std::to_string(held) + " cards are held; allowed: at most " +
                          std::to_string(most_cards));
  }
  Solution solution;
  {
    const GilRelease release;
    Solver solver(18);
    solution = solver.solve(state);
  }
  std::vector<int> scores;
  for (int s = 0; s < state.num_players; ++s) scores.push_back(solution.scores.of(s));
  return py::make_tuple(solution.action, scores);
}

}  // namespace

void bind_arena(py::module_& m) {
  py::enum_<BotKind>(m, "BotKind")
      .value("random", BotKind::kRandom)
      .value("threshold", BotKind::kThreshold)
      .value("monte_carlo", BotKind::kMonteCarlo)
      .value("uct", BotKind::kUct);
  py::class_<BotConfig>(m, "BotConfig", "An opponent that needs no network.")
      .def(py::init([](BotKind kind, std::uint32_t playouts, std::uint32_t worlds,
                       std::uint32_t simulations, std::uint32_t solved_cards) {
             check_range("kind", static_cast<int>(kind), 0, static_cast<int>(BotKind::kUct));
             const bool effort = kind == BotKind::kMonteCarlo ? playouts > 0
                                 : kind == BotKind::kUct      ? worlds > 0 && simulations > 0
                                                              : true;
             if (!effort) throw py::value_error("a bot that plays out needs at least one playout");
             return BotConfig{kind, playouts, worlds, simulations, solved_cards};
           }),
           py::arg("kind"), py::arg("playouts") = 0, py::arg("worlds") = 0,
           py::arg("simulations") = 0, py::arg("solved_cards") = 0)
      .def_readonly("kind", &BotConfig::kind)
      .def_readonly("playouts", &BotConfig::playouts)
      .def_readonly("worlds", &BotConfig::worlds)
      .def_readonly("simulations", &BotConfig::simulations)
      .def_readonly("solved_cards", &BotConfig::solved_cards);
  py::class_<MatchRun>(m, "MatchRun", "A match, stepped: rows out, answers in.")
      .def(py::init<const PlaySettings&, const std::vector<py::object>&, const std::vector<Table>&,
                    std::uint32_t, std::uint32_t>(),
           py::arg("settings"), py::arg("agents"), py::arg("tables"), py::arg("lanes"),
           py::arg("threads"))
      .def("step", &MatchRun::step)
      .def("answer", &MatchRun::answer, py::arg("agent"), py::arg("policies"), py::arg("values"))
      .def_property_readonly("num_units", &MatchRun::num_units)
      .def_property_readonly("num_rounds", &MatchRun::num_rounds)
      .def("rounds", &MatchRun::rounds);
  m.def("bot_action", &bot_action, py::arg("round"), py::arg("config"), py::arg("seed") = 0,
        "The action of the seat to act; a function of its information set and the seed.");
  m.def("solve", &solve, py::arg("round"), py::arg("most_cards") = 16,
        "(action, scores by seat) of max^n with all hands known; ties go to the lowest action.");
}

}  // namespace shmzero
