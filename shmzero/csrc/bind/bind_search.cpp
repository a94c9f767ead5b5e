// Python's face of the search, of in-process self-play and of records.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>

#include "bind/bind.h"
#include "game/tracked_round.h"
#include "play/evaluate.h"
#include "play/lane.h"
#include "play/replay.h"
#include "search/search.h"

namespace py = pybind11;

namespace shmzero {
namespace {

using HalfBits = py::array_t<std::uint16_t, py::array::c_style>;

template <class T>
py::array_t<T> as_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class T>
py::array_t<T> as_matrix(const std::vector<T>& values, int columns) {
  const auto rows = static_cast<py::ssize_t>(values.size()) / columns;
  return py::array_t<T>({rows, static_cast<py::ssize_t>(columns)}, values.data());
}

/// Rows of this process, and their widening for Python.
struct LocalRows {
  std::vector<std::uint16_t> features;
  std::vector<std::uint64_t> masks;
  std::uint32_t num_rows = 0;

  RowView reserve(std::uint32_t capacity) {
    features.resize(static_cast<std::size_t>(capacity) * kNumFeatures);
    masks.resize(capacity);
    return {.features = features.data(), .masks = masks.data(), .capacity = capacity};
  }
  /// (states float32 [B, 256], masks bool [B, 52])
  py::tuple widened() const {
    const auto rows = static_cast<py::ssize_t>(num_rows);
    py::array_t<float> states({rows, static_cast<py::ssize_t>(kNumFeatures)});
    py::array_t<bool> wide_masks({rows, static_cast<py::ssize_t>(kNumActions)});
    float* state = states.mutable_data();
    bool* wide_mask = wide_masks.mutable_data();
    for (std::size_t i = 0; i < num_rows * static_cast<std::size_t>(kNumFeatures); ++i) {
      state[i] = half_value(features[i]);
    }
    for (std::size_t row = 0; row < num_rows; ++row) {
      for (int a = 0; a < kNumActions; ++a) *wide_mask++ = masks[row] >> a & 1;
    }
    return py::make_tuple(states, wide_masks);
  }
};

void check_answered(bool answered, const char* what) {
  if (!answered) {
    throw py::value_error(std::string(what) + " was stepped before its rows were answered");
  }
}

/// One decision, stepped from Python.
class SearchRun {
 public:
  SearchRun(const TrackedRound& round, const SearchConfig& config, std::uint64_t seed)
      : config_(config), round_(round.state) {
    check_search(config);
    const std::uint64_t actions = legal(round_);
    if (actions == 0) throw py::value_error("search: the round is over");
    forced_ = (actions & (actions - 1)) == 0;
    if (!forced_) search_.begin(round_, config_, seed, 0, round.actions.size(), true);
  }

  /// The rows of the next step as (states, masks), or None when the decision is made.
  py::object step() {
    if (forced_) return py::none();
    check_answered(answered_, "a search");
    const RowView view = rows_.reserve(std::max(1u, config_.rows_per_step(round_.num_players)));
    asked_.clear();
    const bool decided = search_.advance(
        [&](const Round& round, int seat, std::uint64_t actions, std::uint32_t row) {
          const std::size_t at = asked_.size();
          const SuitOrder order = encode(round, seat, view.features + at * kNumFeatures);
          view.masks[at] = canonical_mask(round, actions, order);
          Asked asked = {.row = row, .places = {}, .num_actions = 0};
          for_each_card(actions, [&](int action) {
            asked.places[asked.num_actions++] =
                static_cast<std::uint8_t>(action_to_canonical(round, action, order));
          });
          asked_.push_back(asked);
        });
    rows_.num_rows = static_cast<std::uint32_t>(asked_.size());
    answered_ = decided_ = decided;
    return decided ? py::object(py::none()) : py::object(rows_.widened());
  }

  void answer(const Floats& policies, const Floats& values) {
    check_answers(policies, values, rows_.num_rows);
    for (std::size_t at = 0; at < asked_.size(); ++at) {
      const Asked& asked = asked_[at];
      float by_legal[kMaxLegal];
      for (int a = 0; a < asked.num_actions; ++a) {
        by_legal[a] = policies.data()[at * kNumActions + asked.places[a]];
      }
      const float value = values.data()[at];
      if (!search_.answer(asked.row, by_legal, value)) {
        refuse_answer(at, policies.data() + at * kNumActions, rows_.masks[at], value);
      }
    }
    answered_ = true;
  }

  py::dict result() const {
    if (!forced_ && !decided_) {
      throw py::value_error("a search has no result yet; step it until that returns None");
    }
    Decision decision = {};
    if (forced_) {
      decision.num_actions = 1;
      decision.actions[0] = static_cast<std::uint8_t>(lowest(legal(round_)));
      decision.prior[0] = decision.policy[0] = 1.0f;
    } else {
      decision = search_.decision();
      if (search_.total_in_flight() != 0) throw std::logic_error("search: visits left in flight");
    }
    py::dict result;
    const auto spread = [&](const char* name, const auto& values) {
      using T = std::remove_cvref_t<decltype(values[0])>;
      std::vector<T> wide(kNumActions);
      for (int a = 0; a < decision.num_actions; ++a) wide[decision.actions[a]] = values[a];
      result[name] = as_array(wide);
    };
    spread("visits", decision.visits);
    spread("q", decision.q);
    spread("policy", decision.policy);
    spread("prior", decision.prior);
    result["value"] = decision.value;
    result["action"] = decision.actions[decision.best];
    result["evaluations"] = decision.evaluations;
    result["simulations"] = decision.simulations;
    result["terminals"] = decision.terminals;
    return result;
  }

 private:
  struct Asked {
    std::uint32_t row;
    std::uint8_t places[kMaxLegal];
    int num_actions;
  };
  SearchConfig config_;
  Round round_;
  bool forced_ = false;
  bool answered_ = true;  ///< Whether the rows of the last step are.
  bool decided_ = false;
  Search search_;
  LocalRows rows_;
  std::vector<Asked> asked_;
};

py::dict counters_dict(const PlayCounters& counters) {
  py::dict d;
  d["units"] = counters.units;
  d["rounds"] = counters.rounds;
  d["decisions"] = counters.decisions;
  d["simulations"] = counters.simulations;
  d["terminals"] = counters.terminals;
  d["rows"] = counters.rows;
  return d;
}

/// Self-play in this process, stepped from Python.
class PlayRun {
 public:
  PlayRun(const PlaySettings& settings, const std::vector<std::uint64_t>& units,
          std::uint32_t lanes)
      : settings_(settings), group_(settings_, queue_) {
    check_play(settings);
    for (const std::uint64_t unit : units) queue_.waiting.push_back({unit});
    lanes_ = std::max(1u, std::min(lanes, static_cast<std::uint32_t>(units.size())));
    group_.set_num_lanes(lanes_);
  }

  py::object step() {
    check_answered(answered_, "self-play");
    const RowView view = rows_.reserve(lanes_ * group_.rows_per_lane());
    answered_ = false;  // also where an answer is refused: the lanes cannot go on from that
    rows_.num_rows =
        group_.step({.policies = policies_.data(), .values = values_.data(), .version = 0}, view);
    answered_ = rows_.num_rows == 0;
    return rows_.num_rows == 0 ? py::object(py::none()) : py::object(rows_.widened());
  }
  void answer(const Floats& policies, const Floats& values) {
    check_answers(policies, values, rows_.num_rows);
    policies_ = policies;
    values_ = values;
    answered_ = true;
  }
  /// (units, seats to act, players), [R] each, of the rows of the last step.
  py::tuple askers() const {
    const std::vector<const Lane*> lanes = group_.askers();
    const auto rows = static_cast<py::ssize_t>(lanes.size());
    py::array_t<std::uint64_t> units(rows);
    py::array_t<std::uint8_t> seats(rows), players(rows);
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      units.mutable_data()[i] = lanes[i]->unit();
      seats.mutable_data()[i] = lanes[i]->round().seat;
      players.mutable_data()[i] = lanes[i]->round().num_players;
    }
    return py::make_tuple(units, seats, players);
  }
  py::list finished() {
    py::list units;
    for (const FinishedRound& round : queue_.finished) {
      py::list& records = begun_[round.unit];
      records.append(py::bytes(round.record));
      if (!round.last) continue;
      units.append(py::make_tuple(round.unit, records));
      begun_.erase(round.unit);
    }
    queue_.finished.clear();
    return units;
  }
  py::dict counters() const { return counters_dict(queue_.counters); }

 private:
  PlaySettings settings_;
  UnitQueue queue_;
  LaneGroup group_;
  std::uint32_t lanes_;
  std::map<std::uint64_t, py::list> begun_;  ///< Records of units that are not finished.
  LocalRows rows_;
  bool answered_ = true;  ///< Whether the rows of the last step are.
  Floats policies_;       ///< The answers to `rows_`, handed out by the next step.
  Floats values_;
};

/// Whether some value has a weight, none is out of range, and every weight is a number from 0 on.
void check_weighted(const char* what, const Weighted& values, int low, int high) {
  double total = 0.0;
  for (const auto& [value, weight] : values) {
    check_range(what, value, low, high);
    if (!(weight >= 0.0 && weight <= 1e300)) {
      throw py::value_error(std::string(what) + " " + std::to_string(value) + " has the weight " +
                            std::to_string(weight) + "; allowed: finite numbers from 0 on");
    }
    total += weight;
  }
  if (!(total > 0.0)) {
    throw py::value_error(std::string(what) + " has no value with a weight; allowed: one or more");
  }
}

void evaluate_rows(bool hash, const HalfBits& features,
                   const py::array_t<std::uint64_t, py::array::c_style>& masks,
                   py::array_t<float, py::array::c_style> policies,
                   py::array_t<float, py::array::c_style> values) {
  const py::ssize_t rows = masks.size();
  if (features.size() != rows * kNumFeatures || policies.size() != rows * kNumActions ||
      values.size() != rows) {
    throw py::value_error("features, masks, policies and values differ in their rows");
  }
  const std::uint16_t* feature = features.data();
  const std::uint64_t* mask = masks.data();
  float* policy = policies.mutable_data();
  float* value = values.mutable_data();
  const GilRelease release;
  for (py::ssize_t row = 0; row < rows; ++row) {
    if (hash) {
      evaluate_hash(feature + row * kNumFeatures, mask[row], policy + row * kNumActions,
                    value + row);
    } else {
      evaluate_uniform(mask[row], policy + row * kNumActions, value + row);
    }
  }
}

/// Plays `num_rounds` rounds in one thread with the uniform evaluator: the search alone.
py::dict bench_search(const PlaySettings& settings, std::uint32_t lanes, std::uint64_t num_rounds) {
  check_play(settings);
  check_range("lanes", lanes, 1, 1'000'000);
  check_range("num_rounds", static_cast<long long>(std::min(num_rounds, std::uint64_t{INT64_MAX})),
              0, 100'000'000);
  UnitQueue queue;
  for (std::uint64_t unit = 0; unit < num_rounds; ++unit) queue.waiting.push_back({unit});
  LaneGroup group(settings, queue);
  group.set_num_lanes(lanes);
  LocalRows rows;
  const RowView view = rows.reserve(lanes * group.rows_per_lane());
  std::vector<float> policies(static_cast<std::size_t>(view.capacity) * kNumActions);
  std::vector<float> values(view.capacity);
  std::uint64_t evaluate_ns = 0;
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto start = now();
  {
    const GilRelease release;
    for (;;) {
      const std::uint32_t num_rows =
          group.step({.policies = policies.data(), .values = values.data(), .version = 0}, view);
      if (num_rows == 0) break;
      const auto before = now();
      for (std::size_t row = 0; row < num_rows; ++row) {
        evaluate_uniform(view.masks[row], policies.data() + row * kNumActions, &values[row]);
      }
      evaluate_ns += static_cast<std::uint64_t>((now() - before).count());
    }
  }
  py::dict d = counters_dict(queue.counters);
  d["total_ns"] = (now() - start).count();
  d["evaluator_ns"] = evaluate_ns;
  return d;
}

py::dict decoded(const py::bytes& bytes) {
  const RoundRecord record = decode_record(bytes);
  const RoundSettings& settings = record.settings;
  static const char* const kTargets[] = {"visits", "improved", "policy"};
  py::dict d;
  d["id"] = record.id;
  d["players"] = settings.num_players;
  d["cards"] = settings.cards;
  d["trump"] =
      settings.trump == kNoTrump ? py::object(py::none()) : py::object(py::int_(settings.trump));
  d["dealer"] = settings.dealer;
  d["target"] = kTargets[static_cast<int>(record.target)];
  d["rivalry"] = record.rivalry;
  py::list hands;
  for (int s = 0; s < settings.num_players; ++s) {
    py::list hand;
    for_each_card(record.hands[s], [&](int card) { hand.append(card); });
    hands.append(hand);
  }
  d["hands"] = hands;
  d["actions"] = std::vector<int>(record.actions.begin(), record.actions.end());
  py::list searched;
  Round round = record.start();
  std::size_t ply = 0;
  for (const SearchedDecision& decision : record.searched) {
    for (; ply < decision.ply; ++ply) apply(round, record.actions[ply]);
    py::dict one, counts;
    const std::uint16_t* count = decision.counts;
    for_each_card(legal(round), [&](int action) { counts[py::int_(action)] = *count++; });
    one["ply"] = decision.ply;
    one["seat"] = round.seat;
    one["value"] = decision.value;
    one["version"] = decision.version;
    one["counts"] = counts;
    searched.append(one);
  }
  d["searched"] = searched;
  for (; ply < record.actions.size(); ++ply) apply(round, record.actions[ply]);
  std::vector<int> scores, totals;
  for (int s = 0; s < settings.num_players; ++s) {
    scores.push_back(score(round, s));
    totals.push_back(settings.game.totals[s]);
  }
  d["bids"] = std::vector<int>(round.bids, round.bids + settings.num_players);
  d["tricks_won"] = std::vector<int>(round.tricks_won, round.tricks_won + settings.num_players);
  d["scores"] = scores;
  d["round_of_game"] = settings.game.num_rounds == 0
                           ? py::object(py::none())
                           : py::object(py::int_(settings.game.rounds_played));
  d["rounds_of_game"] = settings.game.num_rounds;
  d["totals_before"] = totals;
  return d;
}

py::dict replay(const std::vector<py::bytes>& records, std::uint64_t seat_seed) {
  ReplayRows rows;
  {
    std::vector<std::string> owned(records.begin(), records.end());
    const GilRelease release;
    for (const std::string& bytes : owned) replay_record(decode_record(bytes), seat_seed, rows);
  }
  py::dict d;
  d["features"] = as_matrix(rows.features, kNumFeatures).attr("view")("float16");
  d["masks"] = as_array(rows.masks);
  d["policies"] = as_matrix(rows.policies, kNumActions);
  d["values"] = as_array(rows.values);
  d["root_values"] = as_array(rows.root_values);
  d["ids"] = as_array(rows.ids);
  d["plies"] = as_array(rows.plies);
  d["seats"] = as_array(rows.seats);
  d["versions"] = as_array(rows.versions);
  d["seat_features"] = as_matrix(rows.seat_features, kNumFeatures).attr("view")("float16");
  d["seat_values"] = as_array(rows.seat_values);
  return d;
}

}  // namespace

void check_search(const SearchConfig& config) {
  check_range("determinizations", config.determinizations, 1, 65'535);
  check_range("simulations", config.simulations, 0, 1'000'000);
  check_range("leaves_in_flight", config.leaves_in_flight, 1, 65'535);
  check_range("considered", config.considered, 1, kNumActions);
  check_range("solved_cards", config.solved_cards, 0, kNumCards);
  check_range("opponents", static_cast<int>(config.opponents), 0, 1);
  check_range("root", static_cast<int>(config.root), 0, 1);
  check_range("target", static_cast<int>(config.target), 0, 1);
  const std::pair<const char*, float> numbers[] = {
      {"c_puct", config.c_puct},
      {"fpu_reduction", config.fpu_reduction},
      {"improved_beta", config.improved_beta},
      {"noise_fraction", config.noise_fraction},
      {"noise_alpha", config.noise_alpha},
      {"temperature", config.temperature},
      {"final_temperature", config.final_temperature},
      {"rivalry", config.rivalry},
  };
  for (const auto& [name, value] : numbers) {
    if (!(std::abs(value) <= 1e6f)) {
      throw py::value_error(std::string(name) + " is " + std::to_string(value) +
                            "; allowed: finite numbers up to 1000000");
    }
  }
}

void check_play(const PlaySettings& settings) {
  check_search(settings.search);
  check_weighted("players", settings.players, kMinPlayers, kMaxPlayers);
  check_weighted("cards", settings.cards, 1, kNumCards / kMinPlayers);
  check_weighted("trump", settings.trumps, 0, kNoTrump);
  check_range("dealer", settings.dealer, -1, kMaxPlayers - 1);
  for (const auto& [bot, share] : settings.others) {
    if (!(share >= 0.0 && share <= 1.0)) {
      throw py::value_error("others has the share " + std::to_string(share) + "; allowed: 0 to 1");
    }
  }
  for (const auto& [players, weight] : settings.players) {
    if (weight <= 0.0) continue;
    const int most = kNumCards / players;
    bool any = false;
    for (const auto& [cards, share] : settings.cards) {
      if (cards > most || share <= 0.0) continue;
      any = true;
      if (!settings.games) continue;
      const auto sizes = settings.rules.hand_sizes(players, cards);
      check_range("rounds of a game", static_cast<long long>(sizes.size()), 1,
                  Lane::kMaxRoundsPerGame);
      for (const int size : sizes) check_range("cards in a game's sequence", size, 1, most);
    }
    if (!any) {
      throw py::value_error("players is " + std::to_string(players) + "; allowed with them: " +
                            "hands of at most " + std::to_string(most) + " cards");
    }
  }
}

void bind_search(py::module_& m) {
  py::enum_<Opponents>(m, "Opponents")
      .value("policy", Opponents::kPolicy)
      .value("maximise", Opponents::kMaximise);
  py::enum_<RootRule>(m, "RootRule")
      .value("puct", RootRule::kPuct)
      .value("halving", RootRule::kHalving);
  py::enum_<Target>(m, "Target")
      .value("visits", Target::kVisits)
      .value("improved", Target::kImproved);

  py::class_<SearchConfig>(m, "SearchConfig", "As shmzero.SearchConfig, checked there.")
      .def(py::init<>([] { return SearchConfig{}; }))
      .def_readwrite("determinizations", &SearchConfig::determinizations)
      .def_readwrite("simulations", &SearchConfig::simulations)
      .def_readwrite("leaves_in_flight", &SearchConfig::leaves_in_flight)
      .def_readwrite("c_puct", &SearchConfig::c_puct)
      .def_readwrite("fpu_reduction", &SearchConfig::fpu_reduction)
      .def_readwrite("opponents", &SearchConfig::opponents)
      .def_readwrite("root", &SearchConfig::root)
      .def_readwrite("target", &SearchConfig::target)
      .def_readwrite("improved_beta", &SearchConfig::improved_beta)
      .def_readwrite("considered", &SearchConfig::considered)
      .def_readwrite("known_hands", &SearchConfig::known_hands)
      .def_readwrite("noise_fraction", &SearchConfig::noise_fraction)
      .def_readwrite("noise_alpha", &SearchConfig::noise_alpha)
      .def_readwrite("temperature", &SearchConfig::temperature)
      .def_readwrite("temperature_decisions", &SearchConfig::temperature_decisions)
      .def_readwrite("final_temperature", &SearchConfig::final_temperature)
      .def_readwrite("rivalry", &SearchConfig::rivalry)
      .def_readwrite("solved_cards", &SearchConfig::solved_cards)
      .def_property_readonly("wave_leaves", &SearchConfig::wave_leaves)
      .def("rows_per_step", &SearchConfig::rows_per_step, py::arg("players"));

  py::class_<PlaySettings>(m, "PlaySettings", "What self-play plays; made by mcts/play.py.")
      .def(py::init<>())
      .def_readwrite("seed", &PlaySettings::seed)
      .def_readwrite("search", &PlaySettings::search)
      .def_readwrite("players", &PlaySettings::players)
      .def_readwrite("cards", &PlaySettings::cards)
      .def_readwrite("trumps", &PlaySettings::trumps)
      .def_readwrite("dealer", &PlaySettings::dealer)
      .def_readwrite("rules", &PlaySettings::rules)
      .def_readwrite("games", &PlaySettings::games)
      .def_readwrite("others", &PlaySettings::others)
      .def_property_readonly("most_players", &PlaySettings::most_players);

  py::class_<SearchRun>(m, "SearchRun")
      .def(py::init<const TrackedRound&, const SearchConfig&, std::uint64_t>(), py::arg("round"),
           py::arg("config"), py::arg("seed"))
      .def("step", &SearchRun::step)
      .def("answer", &SearchRun::answer, py::arg("policies"), py::arg("values"))
      .def("result", &SearchRun::result);

  py::class_<PlayRun>(m, "PlayRun")
      .def(py::init<const PlaySettings&, const std::vector<std::uint64_t>&, std::uint32_t>(),
           py::arg("settings"), py::arg("units"), py::arg("lanes"))
      .def("step", &PlayRun::step)
      .def("answer", &PlayRun::answer, py::arg("policies"), py::arg("values"))
      .def("askers", &PlayRun::askers)
      .def("finished", &PlayRun::finished)
      .def("counters", &PlayRun::counters);

  m.attr("NO_TRUMP") = kNoTrump;
  m.attr("MAX_ROUNDS_PER_GAME") = Lane::kMaxRoundsPerGame;
  m.attr("RECORD_VERSION") = kRecordVersion;
  const auto evaluator = [](bool hash) {
    return [hash](const HalfBits& features,
                  const py::array_t<std::uint64_t, py::array::c_style>& masks,
                  py::array_t<float, py::array::c_style> policies,
                  py::array_t<float, py::array::c_style> values) {
      evaluate_rows(hash, features, masks, policies, values);
    };
  };
  m.def("hash_evaluate", evaluator(true), py::arg("features").noconvert(),
        py::arg("masks").noconvert(), py::arg("policies").noconvert(),
        py::arg("values").noconvert());
  m.def("uniform_evaluate", evaluator(false), py::arg("features").noconvert(),
        py::arg("masks").noconvert(), py::arg("policies").noconvert(),
        py::arg("values").noconvert());
  m.def("bench_search", &bench_search, py::arg("settings"), py::arg("lanes"),
        py::arg("num_rounds"));
  m.def("decode_record", &decoded, py::arg("record"));
  m.def("replay", &replay, py::arg("records"), py::arg("seat_seed") = 0);
}

}  // namespace shmzero
