// Python's face of the rules: Rules, Round, Game. Checks everything that the core assumes.
#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "bind/bind.h"
#include "game/determinize.h"
#include "game/encode.h"
#include "game/tracked_round.h"
#include "play/lane.h"

namespace py = pybind11;

namespace shmzero {
namespace {

std::string show(const std::vector<int>& values) {
  std::string text = "[";
  for (std::size_t i = 0; i < values.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(values[i]);
  }
  return text + "]";
}

std::vector<int> as_list(std::uint64_t bits) {
  std::vector<int> list;
  for_each_card(bits, [&](int bit) { list.push_back(bit); });
  return list;
}

int trump_index(std::optional<long long> trump) {
  if (!trump) return kNoTrump;
  check_range("trump", *trump, 0, kNumSuits - 1);
  return static_cast<int>(*trump);
}

py::object trump_object(int trump) {
  return trump == kNoTrump ? py::object(py::none()) : py::object(py::int_(trump));
}

void check_settings(long long players, long long cards, long long dealer) {
  check_range("players", players, kMinPlayers, kMaxPlayers);
  check_range("cards", cards, 1, kNumCards / players);
  check_range("dealer", dealer, 0, players - 1);
}

RoundRules round_rules(const Rules* rules) { return rules ? rules->round : RoundRules{}; }

constexpr long long kMostRoundsOfGame = Lane::kMaxRoundsPerGame;

int checked_seat(const Round& round, std::optional<long long> seat) {
  if (!seat) return round.seat;
  check_range("seat", *seat, 0, round.num_players - 1);
  return static_cast<int>(*seat);
}

/// The whole number that a Python object stands for by its `__index__`, as numpy's integers have
/// it.
py::int_ as_integer(const py::object& value) {
  auto number = py::reinterpret_steal<py::int_>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  return number;
}

void apply_checked(TrackedRound& self, const py::object& action_or_index) {
  const py::int_ value = as_integer(action_or_index);
  const std::uint64_t allowed = legal(self.state);
  const std::string shown = py::str(value);
  if (allowed == 0) {
    raise_error("IllegalAction", "action " + shown + ": the round is over, no action is allowed");
  }
  int overflow = 0;
  const long wide = PyLong_AsLongAndOverflow(value.ptr(), &overflow);
  const int action = overflow != 0 || wide < 0 || wide >= kNumActions ? -1 : static_cast<int>(wide);
  if (action < 0 || !(allowed >> action & 1)) {
    const bool bidding = self.state.phase == Phase::kBidding;
    raise_error("IllegalAction", std::string(bidding ? "bid " : "card ") + shown + " of seat " +
                                     std::to_string(self.state.seat) +
                                     " is not allowed; allowed: " + show(as_list(allowed)));
  }
  apply(self.state, action);
  self.actions.push_back(static_cast<std::uint8_t>(action));
}

TrackedRound from_hands(const std::vector<std::vector<long long>>& hands,
                        std::optional<long long> trump, long long dealer, const RoundRules& rules,
                        const GameContext& game) {
  const int players = static_cast<int>(hands.size());
  check_range("number of hands", players, kMinPlayers, kMaxPlayers);
  const int cards = static_cast<int>(hands[0].size());
  check_settings(players, cards, dealer);
  CardSet seen = 0;
  CardSet sets[kMaxPlayers] = {};
  for (int s = 0; s < players; ++s) {
    const auto& hand = hands[static_cast<std::size_t>(s)];
    if (static_cast<int>(hand.size()) != cards) {
      throw py::value_error("seat " + std::to_string(s) + " has " + std::to_string(hand.size()) +
                            " cards; seat 0 has " + std::to_string(cards));
    }
    for (const long long wide : hand) {
      check_range("card", wide, 0, kNumCards - 1);
      const int card = static_cast<int>(wide);
      if (seen & one_card(card)) {
        throw py::value_error("card " + std::to_string(card) + " is dealt twice");
      }
      seen |= one_card(card);
      sets[s] |= one_card(card);
    }
  }
  return {
      make_round({players, cards, trump_index(trump), static_cast<int>(dealer), rules, game}, sets),
      {}};
}

TrackedRound deal(long long players, long long cards, std::optional<long long> trump,
                  long long dealer, std::uint64_t seed, const Rules* rules) {
  check_settings(players, cards, dealer);
  return {deal_round({static_cast<int>(players),
                      static_cast<int>(cards),
                      trump_index(trump),
                      static_cast<int>(dealer),
                      round_rules(rules),
                      {}},
                     Rng(stream_key(seed, 0, 0, Purpose::kDeal))),
          {}};
}

const char* phase_name(Phase phase) {
  switch (phase) {
    case Phase::kBidding: return "bidding";
    case Phase::kPlaying: return "playing";
    case Phase::kDone: return "done";
  }
  return "";
}

void check_done(const Round& round, const char* what) {
  if (round.phase != Phase::kDone) {
    throw py::value_error(std::string(what) + " of a round that is still " +
                          phase_name(round.phase) + "; play it to the end first");
  }
}

std::string card_text(int card) { return {"SHCD"[suit_of(card)], "23456789TJQKA"[rank_of(card)]}; }

/// The items of `all`, each as `text(item)`, with `between` between them.
template <class Items, class Text>
std::string joined(const Items& all, const char* between, Text&& text) {
  std::string out;
  for (const auto& item : all) out += (out.empty() ? "" : between) + text(item);
  return out;
}

/// A round as a person reads it, in the notation of the README; hands are what is still held.
std::string text_of(const Round& round) {
  const auto seats = [&](auto&& text) {
    std::vector<int> all;
    for (int s = 0; s < round.num_players; ++s) all.push_back(s);
    return joined(all, " ", text);
  };
  std::vector<std::string> hands;
  for (int s = 0; s < round.num_players; ++s) {
    const std::string held = joined(as_list(round.hands[s]), " ", card_text);
    hands.push_back(held.empty() ? "-" : held);
  }
  std::string text = "<Round " + std::string(phase_name(round.phase));
  if (round.phase != Phase::kDone) text += ", seat " + std::to_string(round.seat) + " to act";
  text += ": " + joined(hands, " | ", [](const std::string& hand) { return hand; });
  text += ", trump " + (round.trump == kNoTrump ? "none" : std::string{"SHCD"[round.trump]});
  text += ", dealer " + std::to_string(round.dealer) + ", bids ";
  text += seats([&](int s) { return round.bids[s] < 0 ? "-" : std::to_string(round.bids[s]); });
  text += ", tricks " + seats([&](int s) { return std::to_string(round.tricks_won[s]); });
  if (round.trick_size > 0) {
    const std::vector<std::uint8_t> trick(round.trick, round.trick + round.trick_size);
    text +=
        ", trick " + joined(trick, " ", card_text) + " led by seat " + std::to_string(round.leader);
  }
  return text + ">";
}

const char* const kScoringNames[] = {"exact", "tricks", "penalty"};

using Numbers = std::vector<long long>;
using Trumps = std::vector<std::optional<long long>>;

std::optional<long long> hook_of(const Rules& rules) {
  if (rules.round.hook_from == kHookNever) return std::nullopt;
  return rules.round.hook_from;
}

std::string scoring_of(const Rules& rules) {
  return kScoringNames[static_cast<int>(rules.round.scoring)];
}

Trumps trumps_of(const Rules& rules) {
  Trumps trumps;
  for (const int trump : rules.trumps) {
    trumps.push_back(trump == kNoTrump ? std::nullopt : std::optional<long long>(trump));
  }
  return trumps;
}

/// What make_rules takes, which is also what is pickled.
using RulesState = std::tuple<std::optional<long long>, std::string, Numbers, Trumps>;

RulesState rules_state(const Rules& rules) {
  return {hook_of(rules), scoring_of(rules), Numbers(rules.sequence.begin(), rules.sequence.end()),
          trumps_of(rules)};
}

Rules make_rules(std::optional<long long> hook_from, const std::string& scoring,
                 const std::vector<long long>& sequence,
                 const std::vector<std::optional<long long>>& trumps) {
  Rules rules;
  if (hook_from) check_range("hook_from", *hook_from, 0, kNumCards);
  rules.round.hook_from = static_cast<std::uint8_t>(hook_from.value_or(kHookNever));
  int found = -1;
  for (int i = 0; i < 3; ++i) {
    if (scoring == kScoringNames[i]) found = i;
  }
  if (found < 0) {
    throw py::value_error("scoring is '" + scoring + "'; allowed: exact, tricks, penalty");
  }
  rules.round.scoring = static_cast<Scoring>(found);
  for (const long long cards : sequence) {
    check_range("hand size in the sequence", cards, 1, kNumCards / kMinPlayers);
    rules.sequence.push_back(static_cast<std::uint8_t>(cards));
  }
  if (trumps.empty()) throw py::value_error("trumps is empty; allowed: at least one of 0..3, None");
  rules.trumps.clear();
  for (const auto& trump : trumps) {
    rules.trumps.push_back(static_cast<std::uint8_t>(trump_index(trump)));
  }
  return rules;
}

/// What is pickled of a round: hands as dealt, trump, dealer, rules, game (rounds, rounds played,
/// next cards, totals), actions.
using RoundState =
    std::tuple<std::vector<Numbers>, std::optional<long long>, long long, Rules, Numbers, Numbers>;

RoundState round_state(const TrackedRound& round) {
  const Round& state = round.state;
  const auto dealt = round.dealt();
  std::vector<Numbers> hands;
  for (int s = 0; s < state.num_players; ++s) {
    const std::vector<int> hand = as_list(dealt[static_cast<std::size_t>(s)]);
    hands.emplace_back(hand.begin(), hand.end());
  }
  Numbers game = {state.game.num_rounds, state.game.rounds_played, state.game.next_cards};
  game.insert(game.end(), state.game.totals, state.game.totals + state.num_players);
  const auto trump = state.trump == kNoTrump ? std::nullopt : std::optional<long long>(state.trump);
  return {hands,        trump,
          state.dealer, Rules{state.rules, {}, {kNoTrump}},
          game,         Numbers(round.actions.begin(), round.actions.end())};
}

/// Throws ValueError, or IllegalAction, for a state that no round is ever in.
TrackedRound restored_round(const RoundState& state) {
  const auto& [hands, trump, dealer, rules, game, actions] = state;
  check_range("players of a pickled round", static_cast<long long>(hands.size()), kMinPlayers,
              kMaxPlayers);
  if (game.size() != 3 + hands.size()) {
    throw py::value_error("a pickled round has " + std::to_string(game.size()) +
                          " numbers of its game; wanted: " + std::to_string(3 + hands.size()));
  }
  GameContext context;
  check_range("rounds of a pickled round's game", game[0], 0, kMostRoundsOfGame);
  check_range("rounds played of a pickled round's game", game[1], 0, std::max(0LL, game[0] - 1));
  check_range("next cards of a pickled round's game", game[2], 0,
              game[0] == 0 ? 0 : kNumCards / kMinPlayers);
  context.num_rounds = static_cast<std::uint16_t>(game[0]);
  context.rounds_played = static_cast<std::uint16_t>(game[1]);
  context.next_cards = static_cast<std::uint8_t>(game[2]);
  for (std::size_t s = 0; s < hands.size(); ++s) {
    check_range("points of a pickled round's game", game[3 + s], game[0] == 0 ? 0 : INT16_MIN,
                game[0] == 0 ? 0 : INT16_MAX);
    context.totals[s] = static_cast<std::int16_t>(game[3 + s]);
  }
  TrackedRound round = from_hands(hands, trump, dealer, rules.round, context);
  for (const long long action : actions) apply_checked(round, py::int_(action));
  return round;
}

/// A game and the round at hand; the round is shared with Python, which plays it.
struct PyGame {
  Game game;
  std::uint64_t seed;
  std::shared_ptr<TrackedRound> round;

  TrackedRound dealt() const {
    const Rng rng(
        stream_key(seed, static_cast<std::uint64_t>(game.round_index), 0, Purpose::kDeal));
    return {deal_round(game.settings(), rng), {}};
  }
  void deal_next() { round = std::make_shared<TrackedRound>(dealt()); }

  bool operator==(const PyGame& other) const {
    return game == other.game && seed == other.seed && *round == *other.round;
  }
  PyGame copy() const { return {game, seed, std::make_shared<TrackedRound>(*round)}; }
};

PyGame make_game(long long players, long long cards, const Rules& rules, long long dealer,
                 std::uint64_t seed) {
  check_settings(players, cards, dealer);
  const auto sizes = rules.hand_sizes(static_cast<int>(players), static_cast<int>(cards));
  check_range("number of rounds in the sequence", static_cast<long long>(sizes.size()), 1,
              kMostRoundsOfGame);
  for (const int size : sizes) {
    check_range("hand size in the sequence", size, 1, kNumCards / players);
  }
  PyGame game{
      Game(static_cast<int>(players), static_cast<int>(cards), rules, static_cast<int>(dealer)),
      seed, nullptr};
  game.deal_next();
  return game;
}

/// What is pickled of a game: players, cards of the first round, rules, dealer, seed, index of the
/// round at hand, totals, that round. The round is pickled as the object that it is, so that who
/// holds both still has the game's own afterwards.
using GameState = std::tuple<long long, long long, Rules, long long, std::uint64_t, long long,
                             Numbers, std::shared_ptr<TrackedRound>>;

GameState game_state(const PyGame& self) {
  const Game& game = self.game;
  Numbers totals(game.totals.begin(), game.totals.begin() + game.num_players);
  return {game.num_players, game.sizes[0],    game.rules, game.dealer,
          self.seed,        game.round_index, totals,     self.round};
}

/// Throws ValueError for a state that no game is ever in.
PyGame restored_game(const GameState& state) {
  const auto& [players, cards, rules, dealer, seed, index, totals, round] = state;
  PyGame self = make_game(players, cards, rules, dealer, seed);
  Game& game = self.game;
  const auto num_rounds = static_cast<long long>(game.sizes.size());
  check_range("round of a pickled game", index, 0, num_rounds);
  if (static_cast<long long>(totals.size()) != players) {
    throw py::value_error("a pickled game has " + std::to_string(totals.size()) +
                          " totals; wanted: " + std::to_string(players));
  }
  if (!round) throw py::value_error("a pickled game has no round");
  for (std::size_t s = 0; s < totals.size(); ++s) {
    check_range("points of a pickled game", totals[s], index == 0 ? 0 : INT16_MIN,
                index == 0 ? 0 : INT16_MAX);
    game.totals[s] = static_cast<int>(totals[s]);
  }
  game.round_index = static_cast<int>(index);
  // What the round at hand must be: the deal of its number with the same actions. Of a game that is
  // over it is the last, whose points are in the totals.
  PyGame before = self;
  if (game.done()) {
    check_done(round->state, "the last round of a pickled game");
    --before.game.round_index;
    for (int s = 0; s < game.num_players; ++s) {
      before.game.totals[static_cast<std::size_t>(s)] -= score(round->state, s);
    }
  }
  TrackedRound expected = before.dealt();
  if (expected.dealt() == round->dealt()) {  // only then are its actions any of this deal's
    for (const std::uint8_t action : round->actions) apply(expected.state, action);
    expected.actions = round->actions;
  }
  if (!(expected == *round)) {
    throw py::value_error("round " + std::to_string(before.game.round_index) +
                          " of a pickled game is not the one that its seed deals");
  }
  self.round = round;
  return self;
}

}  // namespace

void bind_game(py::module_& m) {
  m.attr("NUM_FEATURES") = kNumFeatures;
  m.attr("NUM_ACTIONS") = kNumActions;
  m.attr("FEATURE_VERSION") = kFeatureVersion + (fixed_suits() ? 1000 : 0);
  m.attr("MIN_PLAYERS") = kMinPlayers;
  m.attr("MAX_PLAYERS") = kMaxPlayers;
  m.attr("NUM_CARDS") = kNumCards;
  m.attr("PLAYING_FEATURE") = static_cast<int>(feature::kIsPlaying);

  py::class_<Rules>(m, "Rules", "Rules of a round and of a game, as data.")
      .def(py::init(&make_rules), py::arg("hook_from") = 0, py::arg("scoring") = "exact",
           py::arg("sequence") = std::vector<long long>{},
           py::arg("trumps") = std::vector<std::optional<long long>>{0, 1, 2, 3, std::nullopt})
      .def_property_readonly("hook_from", &hook_of)
      .def_property_readonly("scoring", &scoring_of)
      .def_property_readonly(
          "sequence",
          [](const Rules& self) { return Numbers(self.sequence.begin(), self.sequence.end()); })
      .def_property_readonly("trumps", &trumps_of)
      .def(
          "hand_sizes",
          [](const Rules& self, long long players, long long cards) {
            check_settings(players, cards, 0);
            const auto sizes = self.hand_sizes(static_cast<int>(players), static_cast<int>(cards));
            return std::vector<int>(sizes.begin(), sizes.end());
          },
          py::arg("players"), py::arg("cards"))
      .def("__copy__", [](const Rules& self) { return self; })
      .def("__deepcopy__", [](const Rules& self, const py::dict&) { return self; })
      .def(py::self == py::self)
      .def("__hash__", [](const Rules& self) { return py::hash(py::repr(py::cast(self))); })
      .def("__repr__",
           [](const Rules& self) {
             const auto [hook, scoring, sequence, trumps] = rules_state(self);
             return py::str("Rules(hook_from={!r}, scoring={!r}, sequence={!r}, trumps={!r})")
                 .format(hook, scoring, sequence, trumps);
           })
      .def(py::pickle(&rules_state, [](const RulesState& state) {
        const auto& [hook, scoring, sequence, trumps] = state;
        return make_rules(hook, scoring, sequence, trumps);
      }));

  py::class_<TrackedRound, std::shared_ptr<TrackedRound>>(m, "Round", "One round of Blob.")
      .def_static("deal", &deal, py::arg("players") = 4, py::arg("cards") = 5,
                  py::arg("trump") = py::none(), py::arg("dealer") = 0, py::arg("seed") = 0,
                  py::arg("rules") = nullptr)
      .def_static(
          "from_hands",
          [](const std::vector<Numbers>& hands, std::optional<long long> trump, long long dealer,
             const Rules* rules) {
            return from_hands(hands, trump, dealer, round_rules(rules), {});
          },
          py::arg("hands"), py::arg("trump") = py::none(), py::arg("dealer") = 0,
          py::arg("rules") = nullptr)
      .def("apply", &apply_checked, py::arg("action"))
      .def("copy", [](const TrackedRound& self) { return self; })
      .def("__copy__", [](const TrackedRound& self) { return self; })
      .def("__deepcopy__", [](const TrackedRound& self, const py::dict&) { return self; })
      .def("legal_actions", [](const TrackedRound& self) { return as_list(legal(self.state)); })
      .def_property_readonly("phase",
                             [](const TrackedRound& self) { return phase_name(self.state.phase); })
      .def_property_readonly("players",
                             [](const TrackedRound& self) { return self.state.num_players; })
      .def_property_readonly("cards", [](const TrackedRound& self) { return self.state.cards; })
      .def_property_readonly(
          "trump", [](const TrackedRound& self) { return trump_object(self.state.trump); })
      .def_property_readonly("dealer", [](const TrackedRound& self) { return self.state.dealer; })
      .def_property_readonly("seat", [](const TrackedRound& self) { return self.state.seat; })
      .def_property_readonly("leader", [](const TrackedRound& self) { return self.state.leader; })
      .def_property_readonly("actions",
                             [](const TrackedRound& self) {
                               return std::vector<int>(self.actions.begin(), self.actions.end());
                             })
      .def_property_readonly("played",
                             [](const TrackedRound& self) {
                               const auto first = self.actions.begin() + self.state.bids_made;
                               return std::vector<int>(first, self.actions.end());
                             })
      .def_property_readonly("hands",
                             [](const TrackedRound& self) {
                               std::vector<std::vector<int>> hands;
                               for (int s = 0; s < self.state.num_players; ++s) {
                                 hands.push_back(as_list(self.state.hands[s]));
                               }
                               return hands;
                             })
      .def_property_readonly("bids",
                             [](const TrackedRound& self) {
                               std::vector<std::optional<int>> bids;
                               for (int s = 0; s < self.state.num_players; ++s) {
                                 const int bid = self.state.bids[s];
                                 bids.push_back(bid < 0 ? std::nullopt : std::optional<int>(bid));
                               }
                               return bids;
                             })
      .def_property_readonly("tricks_won",
                             [](const TrackedRound& self) {
                               return std::vector<int>(
                                   self.state.tricks_won,
                                   self.state.tricks_won + self.state.num_players);
                             })
      .def_property_readonly("trick",
                             [](const TrackedRound& self) {
                               std::vector<std::pair<int, int>> trick;
                               for (int i = 0; i < self.state.trick_size; ++i) {
                                 trick.emplace_back(
                                     (self.state.leader + i) % self.state.num_players,
                                     self.state.trick[i]);
                               }
                               return trick;
                             })
      .def_property_readonly("voids",
                             [](const TrackedRound& self) {
                               std::vector<std::vector<int>> voids;
                               for (int s = 0; s < self.state.num_players; ++s) {
                                 voids.push_back(as_list(self.state.voids[s]));
                               }
                               return voids;
                             })
      .def("scores",
           [](const TrackedRound& self) {
             check_done(self.state, "scores");
             std::vector<int> scores;
             for (int s = 0; s < self.state.num_players; ++s)
               scores.push_back(score(self.state, s));
             return scores;
           })
      .def(
          "utilities",
          [](const TrackedRound& self, float rivalry) {
            check_done(self.state, "utilities");
            std::vector<float> utilities;
            for (int s = 0; s < self.state.num_players; ++s) {
              utilities.push_back(utility(self.state, s, rivalry));
            }
            return utilities;
          },
          py::arg("rivalry") = 0.0f)
      .def(
          "features",
          [](const TrackedRound& self, std::optional<long long> seat) {
            std::uint16_t halves[kNumFeatures];
            encode(self.state, checked_seat(self.state, seat), halves);
            py::array_t<float> features(kNumFeatures);
            float* out = features.mutable_data();
            for (int i = 0; i < kNumFeatures; ++i) out[i] = half_value(halves[i]);
            return features;
          },
          py::arg("seat") = py::none())
      .def(
          "mask",
          [](const TrackedRound& self, std::optional<long long> seat) {
            const int ego = checked_seat(self.state, seat);
            const std::uint64_t actions = ego == self.state.seat ? legal(self.state) : 0;
            const std::uint64_t bits =
                canonical_mask(self.state, actions, suit_order(self.state, ego));
            py::array_t<bool> mask(kNumActions);
            bool* out = mask.mutable_data();
            for (int a = 0; a < kNumActions; ++a) out[a] = bits >> a & 1;
            return mask;
          },
          py::arg("seat") = py::none())
      .def(
          "suit_order",
          [](const TrackedRound& self, std::optional<long long> seat) {
            const SuitOrder order = suit_order(self.state, checked_seat(self.state, seat));
            return std::vector<int>(order.from_canonical, order.from_canonical + kNumSuits);
          },
          py::arg("seat") = py::none())
      .def(
          "action_from_canonical",
          [](const TrackedRound& self, int action) {
            check_range("action", action, 0, kNumActions - 1);
            return action_from_canonical(self.state, action,
                                         suit_order(self.state, self.state.seat));
          },
          py::arg("action"))
      .def(
          "action_to_canonical",
          [](const TrackedRound& self, int action) {
            check_range("action", action, 0, kNumActions - 1);
            return action_to_canonical(self.state, action, suit_order(self.state, self.state.seat));
          },
          py::arg("action"))
      .def(
          "determinize",
          [](const TrackedRound& self, std::uint64_t seed) {
            if (self.state.phase == Phase::kDone) return self;  // nothing is hidden any more
            Rng rng(stream_key(seed, 0, 0, Purpose::kDeterminize));
            return TrackedRound{WorldSampler(self.state, self.state.seat).sample(rng),
                                self.actions};
          },
          py::arg("seed"))
      .def(py::self == py::self)  // and no hash: a round is played on
      .def(py::pickle(&round_state, &restored_round))
      .def("__repr__", [](const TrackedRound& self) { return text_of(self.state); });

  py::class_<PyGame>(m, "Game", "A sequence of rounds; the dealer moves on and trump rotates.")
      .def(py::init([](long long players, long long cards, const Rules* rules, long long dealer,
                       std::uint64_t seed) {
             return make_game(players, cards, rules ? *rules : Rules{}, dealer, seed);
           }),
           py::arg("players") = 4, py::arg("cards") = 5, py::arg("rules") = nullptr,
           py::arg("dealer") = 0, py::arg("seed") = 0)
      .def_property_readonly("round", [](const PyGame& self) { return self.round; })
      .def_property_readonly("round_index",
                             [](const PyGame& self) { return self.game.round_index; })
      .def_property_readonly("num_rounds",
                             [](const PyGame& self) { return self.game.sizes.size(); })
      .def_property_readonly("totals",
                             [](const PyGame& self) {
                               return std::vector<int>(
                                   self.game.totals.begin(),
                                   self.game.totals.begin() + self.game.num_players);
                             })
      .def_property_readonly("done", [](const PyGame& self) { return self.game.done(); })
      .def("next_round",
           [](PyGame& self) {
             if (self.game.done()) throw py::value_error("next_round: the game is over");
             check_done(self.round->state, "next_round");
             self.game.finish(self.round->state);
             if (!self.game.done()) self.deal_next();
           })
      .def("__copy__", &PyGame::copy)
      .def("__deepcopy__",
           [](const PyGame& self, const py::dict& memo) {
             // By way of the memo: who holds the game's round as well gets the copy's own.
             const py::object copied =
                 py::module_::import("copy").attr("deepcopy")(self.round, memo);
             return PyGame{self.game, self.seed, copied.cast<std::shared_ptr<TrackedRound>>()};
           })
      .def(py::self == py::self)  // and no hash: a game is played on
      .def(py::pickle(&game_state, &restored_game))
      .def("__repr__", [](const PyGame& self) {
        const Game& game = self.game;
        const int at = game.done() ? game.round_index : game.round_index + 1;
        std::vector<int> totals(game.totals.begin(), game.totals.begin() + game.num_players);
        return "<Game " + std::string(game.done() ? "over after round " : "in round ") +
               std::to_string(at) + " of " + std::to_string(game.sizes.size()) + ", totals " +
               show(totals) + ", seed " + std::to_string(self.seed) + ": " +
               text_of(self.round->state) + ">";
      });
}

}  // namespace shmzero
