// Opponents that need no network: uniform random, a rule player, flat Monte-Carlo, determinized
// UCT. A bot sees what its seat sees; whatever it assumes of other hands it draws with
// WorldSampler. Read next: match.h, which plays them against each other and against networks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "game/determinize.h"
#include "game/rng.h"
#include "game/rules.h"
#include "search/search.h"
#include "search/solver.h"

namespace shmzero {

enum class BotKind : std::uint8_t { kRandom, kThreshold, kMonteCarlo, kUct };

struct BotConfig {
  BotKind kind = BotKind::kRandom;
  std::uint32_t playouts = 0;     ///< kMonteCarlo: for a decision, over all actions.
  std::uint32_t worlds = 0;       ///< kUct.
  std::uint32_t simulations = 0;  ///< kUct: in each world.
  /// kUct: leaves with at most so many cards in all hands are solved instead of played out.
  std::uint32_t solved_cards = 0;
};

inline int random_action(std::uint64_t actions, Rng& rng) {
  for (std::uint32_t skip = rng.below(static_cast<std::uint32_t>(count(actions))); skip > 0;
       --skip) {
    actions &= actions - 1;
  }
  return lowest(actions);
}

inline void play_out(Round& round, Rng& rng) {
  for (std::uint64_t actions = legal(round); actions != 0; actions = legal(round)) {
    apply(round, random_action(actions, rng));
  }
}

// --- the rule player ---------------------------------------------------------------------------

/// Bids the tricks that its cards are likely to win, then wins cheaply while it needs tricks and
/// ducks under with the highest loser when it does not.
class ThresholdBot {
 public:
  explicit ThresholdBot(const Round& round)
      : round_(round),
        hand_(round.hands[round.seat]),
        unseen_(kAllCards & ~round.played & ~round.hands[round.seat]) {}

  int choose() const {
    const std::uint64_t actions = legal(round_);
    if (round_.phase == Phase::kBidding) return bid(actions);
    const bool wants_trick = round_.bids[round_.seat] > round_.tricks_won[round_.seat];
    if (round_.trick_size == 0) return wants_trick ? strongest(actions) : weakest(actions);
    CardSet winners = 0;
    for_each_card(actions, [&](int card) {
      if (beats(card, round_.winning_card, round_.trump)) winners |= one_card(card);
    });
    const CardSet losers = actions & ~winners;
    const bool last = round_.trick_size + 1 == round_.num_players;
    if (wants_trick) {
      if (winners == 0) return weakest(losers);
      // A ruff and the last card of a trick win as they are; before others, the highest holds best.
      const bool ruff = suit_of(lowest(winners)) != suit_of(round_.trick[0]);
      return last || ruff ? weakest(winners) : strongest(winners);
    }
    if (losers != 0) return strongest(losers);
    return last ? strongest(winners) : weakest(winners);
  }

  /// Tricks that the hand is likely to win, before anybody has played.
  double expected_tricks() const {
    const double held_by_others = (round_.num_players - 1) * round_.cards;
    const double density = held_by_others / (kNumCards - round_.cards);  // of an unseen card
    double tricks = 0.0;
    for_each_card(hand_, [&](int card) { tricks += chance_to_win(card, density); });
    return tricks;
  }

 private:
  static constexpr double kLongTrump = 0.45;  ///< What a low trump wins by a ruff or at the end.

  CardSet higher_unseen(int card) const {
    const int suit = suit_of(card);
    return unseen_ & suit_cards(suit) & (~CardSet{1} << card);
  }

  double chance_to_win(int card, double density) const {
    const int suit = suit_of(card);
    const double top = std::pow(1.0 - density, count(higher_unseen(card)));
    const bool leads = round_.seat == round_.next_seat(round_.dealer);
    const int others = round_.num_players - 1;
    if (suit == round_.trump) {
      // With several cards some of the higher trumps fall on each other.
      if (round_.cards == 1) return top;
      const double ruff = kLongTrump * 3.0 / others * std::min(1.0, round_.cards / 5.0);
      return top + (1.0 - top) * std::min(ruff, 0.8) * (1.0 - density);
    }
    if (round_.cards == 1) {
      const double trumps = round_.trump == kNoTrump ? 0.0 : kNumRanks;
      return leads ? top * std::pow(1.0 - density, trumps) : 0.0;
    }
    // Nobody may be void in the suit and hold a trump; deeper cards of a suit meet more voids.
    const int above = count(hand_ & suit_cards(suit) & (~CardSet{1} << card));
    const double in_suit = count(unseen_ & suit_cards(suit)) - others * above;
    const double share = std::max(0.0, in_suit) / (kNumCards - round_.cards);
    const double is_void = std::pow(1.0 - std::min(1.0, share), round_.cards);
    const double ruffs =
        round_.trump == kNoTrump ? 0.0 : is_void * (1.0 - std::pow(0.75, round_.cards));
    return top * std::pow(1.0 - ruffs, others);
  }

  int bid(std::uint64_t bids) const {
    const double wanted = expected_tricks();
    int best = lowest(bids);
    for_each_card(bids, [&](int bid) {
      if (std::abs(bid - wanted) < std::abs(best - wanted)) best = bid;
    });
    return best;
  }

  /// Unseen cards that would beat this one if it were led: few means strong.
  int num_beaters(int card) const {
    const int suit = suit_of(card);
    int beaters = count(higher_unseen(card));
    if (round_.trump != kNoTrump && suit != round_.trump) {
      beaters += count(unseen_ & suit_cards(round_.trump));
    }
    return beaters;
  }
  int strongest(CardSet cards) const {
    int best = lowest(cards);
    for_each_card(cards, [&](int card) {
      if (num_beaters(card) < num_beaters(best)) best = card;
    });
    return best;
  }
  int weakest(CardSet cards) const {
    int best = lowest(cards);
    for_each_card(cards, [&](int card) {
      if (num_beaters(card) > num_beaters(best)) best = card;
    });
    return best;
  }

  const Round& round_;
  CardSet hand_;
  CardSet unseen_;  ///< In other hands or undealt.
};

// --- flat Monte-Carlo --------------------------------------------------------------------------

/// The action of the highest mean utility over random playouts of uniform worlds; the lowest of
/// equals. Every world is tried with every action in turn.
inline int choose_monte_carlo(const Round& round, std::uint32_t playouts, Rng& rng,
                              Progress* progress) {
  std::uint8_t actions[kMaxLegal];
  double sums[kMaxLegal] = {};
  std::uint32_t counts[kMaxLegal] = {};
  int num_actions = 0;
  for_each_card(legal(round),
                [&](int a) { actions[num_actions++] = static_cast<std::uint8_t>(a); });
  const WorldSampler sampler(round, round.seat);
  for (std::uint32_t played = 0; played < playouts;) {
    const Round world = sampler.sample(rng);
    advance(progress);
    for (int a = 0; a < num_actions && played < playouts; ++a, ++played) {
      Round playout = world;
      apply(playout, actions[a]);
      play_out(playout, rng);
      sums[a] += utility(playout, round.seat, 0.0f);
      ++counts[a];
    }
  }
  int best = 0;
  for (int a = 1; a < num_actions; ++a) {
    if (counts[a] > 0 && sums[a] / counts[a] > sums[best] / counts[best]) best = a;
  }
  return actions[best];
}

// --- determinized UCT --------------------------------------------------------------------------

/// UCT (Kocsis and Szepesvari 2006) with random playouts, one root over all worlds as in
/// search/search.h: each step tries one root action in every world. Below the root every seat
/// maximises its own utility (max^n) in its world's tree.
class UctBot {
 public:
  int choose(const Round& round, const BotConfig& config, Rng& rng, Progress* progress) {
    progress_ = progress;
    nodes_.clear();
    edges_.clear();
    worlds_.clear();
    if (config.solved_cards > 0 && !solver_) solver_.emplace(kCacheBits);
    const WorldSampler sampler(round, round.seat);
    for (std::uint32_t w = 0; w < config.worlds; ++w) worlds_.push_back(sampler.sample(rng));
    // Node 0 is the root of all worlds; an edge of it leads to config.worlds trees.
    add_node(round);
    const Node root = nodes_[0];
    tops_.assign(root.num_edges * worlds_.size(), kNone);
    for (std::uint32_t step = 0; step < config.simulations; ++step) {
      const std::uint32_t arm = select(0, rng);
      double value = 0.0;
      for (std::size_t w = 0; w < worlds_.size(); ++w) {
        Round state = worlds_[w];
        apply(state, edges_[arm].action);
        std::uint32_t top = tops_[(arm - root.first_edge) * worlds_.size() + w];
        simulate(state, top, config, rng);
        tops_[(arm - root.first_edge) * worlds_.size() + w] = top;
        value += utility_[round.seat];
      }
      edges_[arm].value_sum += value / static_cast<double>(worlds_.size());
      ++edges_[arm].visits;
      ++nodes_[0].visits;
    }
    std::uint32_t best = root.first_edge;
    for (std::uint32_t e = best + 1; e < root.first_edge + root.num_edges; ++e) {
      const Edge &edge = edges_[e], &leader = edges_[best];
      const bool better = edge.value_sum * leader.visits > leader.value_sum * edge.visits;
      if (edge.visits > leader.visits || (edge.visits == leader.visits && better)) best = e;
    }
    return edges_[best].action;
  }

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  static constexpr double kExploration = 0.7;
  static constexpr int kCacheBits = 14;

  struct Node {
    std::uint32_t first_edge;
    std::uint32_t visits;
    std::uint8_t num_edges;
    std::uint8_t mover;
  };
  struct Edge {
    double value_sum;  ///< Of the mover.
    std::uint32_t visits;
    std::uint32_t child;
    std::uint8_t action;
  };

  std::uint32_t add_node(const Round& state) {
    const auto index = static_cast<std::uint32_t>(nodes_.size());
    const std::uint64_t actions = legal(state);
    nodes_.push_back({.first_edge = static_cast<std::uint32_t>(edges_.size()),
                      .visits = 0,
                      .num_edges = static_cast<std::uint8_t>(count(actions)),
                      .mover = state.seat});
    for_each_card(actions, [&](int action) {
      edges_.push_back({.value_sum = 0.0,
                        .visits = 0,
                        .child = kNone,
                        .action = static_cast<std::uint8_t>(action)});
    });
    return index;
  }

  /// The edge to try: an untried one at random, else the highest upper confidence bound.
  std::uint32_t select(std::uint32_t index, Rng& rng) {
    const Node& node = nodes_[index];
    std::uint32_t num_untried = 0;
    for (std::uint32_t i = 0; i < node.num_edges; ++i) {
      num_untried += edges_[node.first_edge + i].visits == 0;
    }
    if (num_untried > 0) {
      std::uint32_t skip = rng.below(num_untried);
      for (std::uint32_t e = node.first_edge;; ++e) {
        if (edges_[e].visits == 0 && skip-- == 0) return e;
      }
    }
    const double log_visits = std::log(static_cast<double>(node.visits));
    std::uint32_t best = node.first_edge;
    double best_bound = -1.0;
    for (std::uint32_t e = node.first_edge; e < node.first_edge + node.num_edges; ++e) {
      const Edge& edge = edges_[e];
      const double bound =
          edge.value_sum / edge.visits + kExploration * std::sqrt(log_visits / edge.visits);
      if (bound > best_bound) best_bound = bound, best = e;
    }
    return best;
  }

  /// One simulation below `top`, which it makes where there is none; leaves the utilities of all
  /// seats in utility_.
  void simulate(Round& state, std::uint32_t& top, const BotConfig& config, Rng& rng) {
    path_.clear();
    std::uint32_t index = top;
    if (index == kNone) {
      if (state.phase != Phase::kDone) top = add_node(state);
    } else {
      for (;;) {
        const std::uint32_t edge = select(index, rng);
        path_.push_back({index, edge});
        apply(state, edges_[edge].action);
        if (state.phase == Phase::kDone) break;
        if (edges_[edge].child == kNone) {
          const std::uint32_t child = add_node(state);
          edges_[edge].child = child;
          break;
        }
        index = edges_[edge].child;
      }
    }
    evaluate(state, config, rng);
    advance(progress_);
    for (const auto& [node, edge] : path_) {
      ++nodes_[node].visits;
      ++edges_[edge].visits;
      edges_[edge].value_sum += utility_[nodes_[node].mover];
    }
  }

  void evaluate(Round& state, const BotConfig& config, Rng& rng) {
    const bool few = state.phase == Phase::kPlaying &&
                     static_cast<std::uint32_t>(count(state.held())) <= config.solved_cards;
    if (few) {
      const PackedScores scores = solver_->solve(state, progress_).scores;
      for (int s = 0; s < state.num_players; ++s) {
        utility_[s] = scores.of(s) / static_cast<double>(10 + state.cards);
      }
      return;
    }
    play_out(state, rng);
    for (int s = 0; s < state.num_players; ++s) utility_[s] = utility(state, s, 0.0f);
  }

  std::vector<Round> worlds_;
  std::vector<std::uint32_t> tops_;  ///< First node of each (root action, world).
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> path_;  ///< (node, edge) of one simulation.
  double utility_[kMaxPlayers] = {};
  std::optional<Solver> solver_;
  Progress* progress_ = nullptr;
};

/// The bot's action, which must have a choice. `key` names the stream of its random numbers;
/// `progress` moves on with every world or simulation, for a decision may take minutes.
inline int choose_action(const Round& round, const BotConfig& config, UctBot& uct,
                         std::uint64_t key, Progress* progress = nullptr) {
  Rng rng(key);
  switch (config.kind) {
    case BotKind::kRandom: return random_action(legal(round), rng);
    case BotKind::kThreshold: return ThresholdBot(round).choose();
    case BotKind::kMonteCarlo: return choose_monte_carlo(round, config.playouts, rng, progress);
    case BotKind::kUct: return uct.choose(round, config, rng, progress);
  }
  throw std::logic_error("bots: unknown kind");
}

}  // namespace shmzero
