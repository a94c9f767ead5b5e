// One decision: determinized PUCT with one root over all worlds.
//
// Emits the rows it needs and takes their answers; knows no features, slots or processes. Reads:
// simulate (descend), expand, back up. The driver calls `begin`, then `advance` until it returns
// true, answering after each call every row that it emitted.
// Read next: play/lane.h, which plays rounds with it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "game/determinize.h"
#include "game/rules.h"
#include "search/root.h"
#include "search/row_cache.h"
#include "search/scratch.h"
#include "search/search_config.h"
#include "search/solver.h"
#include "search/tree.h"

namespace shmzero {

class Search {
 public:
  /// Starts a decision of the seat to act, which must have a choice. Every random number is keyed
  /// by (seed, id, ply); `noise` mixes Dirichlet noise into the priors that the root selects by.
  /// `progress` moves on with every wave.
  void begin(const Round& round, const SearchConfig& config, std::uint64_t seed, std::uint64_t id,
             std::uint64_t ply, bool noise, Progress* progress = nullptr) {
    config_ = &config;
    progress_ = progress;
    round_ = round;
    root_seat_ = round.seat;
    noise_ = noise && config.noise_fraction > 0.0f;
    noise_key_ = stream_key(seed, id, ply, Purpose::kNoise);
    search_key_ = stream_key(seed, id, ply, Purpose::kSearch);
    opponents_ = config.opponents;
    num_values_ = opponents_ == Opponents::kMaximise ? round.num_players : 1;
    nodes_.clear();
    edges_.clear();
    values_.clear();
    sims_.clear();
    // Room for a row of its own from every simulation: growing is rare.
    rows_.clear(1 + std::size_t{config.simulations} * config.worlds());
    hands_.clear();
    num_worlds_ = config.simulations > 0 ? config.worlds() : 0;
    if (num_worlds_ > 0 && config.known_hands) {
      add_world(round);
    } else if (num_worlds_ > 0) {
      const WorldSampler sampler(round, root_seat_);
      Rng rng(stream_key(seed, id, ply, Purpose::kWorlds));
      for (std::uint32_t world = 0; world < num_worlds_; ++world) add_world(sampler.sample(rng));
    }
    root_.begin(config, legal(round), num_worlds_);
    tops_.assign(std::size_t{num_worlds_} * root_.decision().num_actions, Top{});
    stage_ = Stage::kStart;
  }

  /// Goes on until every simulation of the wave waits for a row, or the decision is made.
  ///
  /// emit(round, seat, legal, row) asks for what `seat` sees in `round`: the mover's legal actions,
  /// or 0 where only the value is wanted. All emitted rows must be answered before the next call.
  /// Returns true when the decision is made.
  template <class Emit>
  bool advance(Emit&& emit) {
    if (stage_ == Stage::kDone) return true;
    if (stage_ == Stage::kStart) {
      request(round_, root_seat_, legal(round_), emit);
      stage_ = Stage::kRoot;
      return false;
    }
    if (stage_ == Stage::kRoot) {
      root_.expand(rows_.policy(0), rows_.value(0), noise_, Rng(noise_key_));
      stage_ = Stage::kWaves;
    }
    while (!root_.done()) {
      if (sims_.size() == 0) {
        start_wave(emit);
      } else {
        for (std::size_t at = 0; at < sims_.size(); ++at) {
          if (sims_[at].status != Status::kArrived) resume(at, emit);
        }
      }
      bool waiting = false;
      for (const Simulation& sim : sims_) waiting |= sim.status != Status::kArrived;
      if (waiting) return false;
      finish_wave();
      shmzero::advance(progress_);
    }
    root_.finish();
    root_.decision().evaluations = rows_.size();
    stage_ = Stage::kDone;
    return true;
  }

  /// Takes the answer to an emitted row; false where it cannot be used, see RowCache::answer.
  [[nodiscard]] bool answer(std::uint32_t row, const float* policy, float value) {
    return rows_.answer(row, policy, value);
  }

  const Decision& decision() const { return root_.decision(); }

  /// Visits in flight where they are counted; 0 between waves. For tests.
  std::uint64_t total_in_flight() const {
    std::uint64_t total = root_.in_flight();
    for (const Edge& edge : edges_) total += edge.in_flight;
    return total;
  }

 private:
  enum class Stage : std::uint8_t { kStart, kRoot, kWaves, kDone };
  enum class Status : std::uint8_t { kDescending, kWaitsForValue, kWaitsForPolicy, kArrived };

  /// A root action in one world.
  struct Top {
    std::uint32_t node = kNone;  ///< Where it leads, kNone until first tried.
    float value_sum = 0.0f;      ///< This world's part of the arm's.
    bool solved = false;
  };

  struct Simulation {
    std::uint32_t node;
    std::uint32_t row;  ///< That it waits for, as kWaitsForPolicy.
    std::uint16_t world;
    std::uint8_t arm;      ///< Root action it went by.
    std::uint8_t visited;  ///< Root action it counts for.
    Status status;
  };

  void add_world(const Round& world) {
    std::copy_n(world.hands, world.num_players, hands_.add(world.num_players));
  }

  /// The root's position with the hands of a world.
  Round in_world(std::size_t world) const {
    Round state = round_;
    const std::uint32_t players = round_.num_players;
    std::copy_n(hands_.data() + world * players, players, state.hands);
    return state;
  }

  /// The number of a row, emitted if it is new.
  template <class Emit>
  std::uint32_t request(const Round& state, int seat, std::uint64_t actions, Emit&& emit) {
    const std::uint32_t before = rows_.size();
    const std::uint32_t row = rows_.find_or_add(state, seat, actions);
    if (row == before) emit(state, seat, actions, row);
    return row;
  }

  // --- simulate ---------------------------------------------------------------------------------

  /// Selects for each leaf of the wave a root action, to be tried in every world.
  template <class Emit>
  void start_wave(Emit&& emit) {
    const std::uint32_t leaves = std::min(config_->wave_leaves(), root_.waves_left());
    states_.clear();
    states_.add(leaves * num_worlds_);
    for (std::uint32_t leaf = 0; leaf < leaves; ++leaf) {
      const auto [visited, tried] = root_.start_wave();
      for (std::uint32_t world = 0; world < num_worlds_; ++world) {
        Simulation& sim = *sims_.add();
        sim = {.node = kNone,
               .row = kNone,
               .world = static_cast<std::uint16_t>(world),
               .arm = static_cast<std::uint8_t>(tried),
               .visited = static_cast<std::uint8_t>(visited),
               .status = Status::kDescending};
        Top& top = this->top(world, tried);
        Round state = in_world(world);
        const std::uint64_t actions = play(state, root_.decision().actions[tried]);
        if (top.node == kNone) {
          top.node = sim.node = add_node(state, kNone, kNone);
          arrive(sim, state, actions, emit);
        } else {
          sim.node = top.node;
          descend(sim, state, actions, emit);
        }
        if (goes_on_from_state(sim)) states_[sims_.size() - 1] = state;
      }
    }
  }

  /// Plays an action and whatever is forced after it. Returns the legal actions then.
  static std::uint64_t play(Round& state, int action) {
    apply(state, action);
    std::uint64_t actions = legal(state);
    while (actions != 0 && (actions & (actions - 1)) == 0) {
      apply(state, lowest(actions));
      actions = legal(state);
    }
    return actions;
  }

  std::uint32_t add_node(const Round& state, std::uint32_t back_up_node,
                         std::uint32_t back_up_edge) {
    const bool over = state.phase == Phase::kDone;
    *nodes_.add() = {.back_up_edge = back_up_edge,
                     .back_up_node = back_up_node,
                     .first_edge = 0,
                     .started = 0,
                     .row = kNone,
                     .value = 0.0f,
                     .num_edges = 0,
                     .mover = state.seat,
                     .terminal = over,
                     .evaluated = false,
                     .expanded = false,
                     .proven = over};
    if (opponents_ == Opponents::kMaximise) values_.add(static_cast<std::uint32_t>(num_values_));
    return nodes_.size() - 1;
  }

  /// The utilities of a node: num_values_.
  float* values(std::uint32_t node) {
    if (opponents_ == Opponents::kPolicy) return &nodes_[node].value;
    return values_.data() + static_cast<std::size_t>(node) * static_cast<std::size_t>(num_values_);
  }
  Top& top(std::size_t world, int action) {
    return tops_[static_cast<std::size_t>(action) * num_worlds_ + world];
  }
  /// Place of a seat's utility among a node's values.
  std::size_t value_index(int seat) const {
    return opponents_ == Opponents::kPolicy ? 0 : static_cast<std::size_t>(seat);
  }
  /// Whose utility a node's value at a place is.
  int seat_of_value(int index) const {
    return opponents_ == Opponents::kPolicy ? root_seat_ : index;
  }
  bool maximises(const Node& node) const {
    return opponents_ == Opponents::kMaximise || node.mover == root_seat_;
  }

  /// At a node of which the value is wanted: asks for it, or takes what is known already.
  template <class Emit>
  void arrive(Simulation& sim, const Round& state, std::uint64_t actions, Emit&& emit) {
    if (nodes_[sim.node].terminal) {
      float* value = values(sim.node);
      for (int i = 0; i < num_values_; ++i) {
        value[i] = utility(state, seat_of_value(i), config_->rivalry);
      }
      nodes_[sim.node].evaluated = true;
      sim.status = Status::kArrived;
      return;
    }
    if (state.phase == Phase::kPlaying &&
        static_cast<std::uint32_t>(count(state.held())) <= config_->solved_cards) {
      const PackedScores scores = shared_solver().solve(state, progress_).scores;
      for (int i = 0; i < num_values_; ++i) {
        values(sim.node)[i] = utility(scores, state, seat_of_value(i), config_->rivalry);
      }
      nodes_[sim.node].proven = true;  // in this world, as far as all play as max^n does
      set_evaluated(sim.node);
      sim.status = Status::kArrived;
      return;
    }
    bool known = true;
    for (int i = 0; i < num_values_; ++i) {
      const int seat = seat_of_value(i);
      const std::uint32_t row = request(state, seat, seat == state.seat ? actions : 0, emit);
      if (seat == root_seat_) nodes_[sim.node].row = row;
      known &= rows_.answered(row);
      if (rows_.answered(row)) values(sim.node)[i] = rows_.value(row);
    }
    if (known) {
      set_evaluated(sim.node);
      sim.status = Status::kArrived;
    } else {
      sim.status = Status::kWaitsForValue;
    }
  }

  void set_evaluated(std::uint32_t index) {
    Node& node = nodes_[index];
    node.evaluated = true;
    node.value = values(index)[value_index(node.mover)];
  }

  /// Whether a simulation that waits will need the position it stands at.
  bool goes_on_from_state(const Simulation& sim) const {
    return sim.status == Status::kWaitsForPolicy ||
           (sim.status == Status::kWaitsForValue && opponents_ == Opponents::kMaximise);
  }

  /// All rows of the last step are answered.
  template <class Emit>
  void resume(std::size_t at, Emit&& emit) {
    Simulation& sim = sims_[at];
    if (sim.status == Status::kWaitsForValue) {
      Node& leaf = nodes_[sim.node];
      const bool shared = leaf.evaluated;  // by another simulation of the wave, which came first
      if (!shared && opponents_ == Opponents::kPolicy) {
        leaf.value = rows_.value(leaf.row);
        leaf.evaluated = true;
      } else if (!shared) {
        arrive(sim, states_[at], legal(states_[at]), emit);  // asks nothing new
      }
      sim.status = Status::kArrived;
    } else {
      Round& state = states_[at];
      const std::uint64_t actions = legal(state);
      if (!nodes_[sim.node].expanded) expand(sim.node, sim.row, actions);
      descend(sim, state, actions, emit);
    }
  }

  /// From a node that was there before: expand it if need be, choose, play, until a new leaf, a
  /// terminal, or a row that is not answered yet.
  template <class Emit>
  void descend(Simulation& sim, Round& state, std::uint64_t actions, Emit&& emit) {
    for (;;) {
      const Node& here = nodes_[sim.node];
      if (here.proven) {
        sim.status = Status::kArrived;
        return;
      }
      if (!here.evaluated) {  // the leaf of another simulation of this wave: share its value
        sim.status = Status::kWaitsForValue;
        return;
      }
      if (!here.expanded) {
        const std::uint32_t row =
            here.mover == root_seat_ ? here.row : request(state, here.mover, actions, emit);
        if (!rows_.answered(row)) {
          sim.row = row;
          sim.status = Status::kWaitsForPolicy;
          return;
        }
        expand(sim.node, row, actions);
      }
      Node& node = nodes_[sim.node];
      Edge* edges = edges_.data() + node.first_edge;
      const std::uint32_t chosen =
          maximises(node) ? select_puct(node, edges, config_->c_puct, config_->fpu_reduction)
                          : select_by_policy(node, edges, search_key_ + sim.node);
      ++node.started;
      const std::uint32_t edge = node.first_edge + chosen;
      std::uint32_t owner = node.back_up_node, back_up_edge = node.back_up_edge;
      if (maximises(node)) {
        ++edges[chosen].in_flight;
        owner = sim.node;
        back_up_edge = edge;
      }
      actions = play(state, edges[chosen].action);
      if (edges[chosen].child == kNone) {
        sim.node = add_node(state, owner, back_up_edge);
        edges_[edge].child = sim.node;
        arrive(sim, state, actions, emit);
        return;
      }
      sim.node = edges[chosen].child;
    }
  }

  // --- expand -----------------------------------------------------------------------------------

  void expand(std::uint32_t index, std::uint32_t row, std::uint64_t actions) {
    Node& node = nodes_[index];
    node.first_edge = edges_.size();
    node.num_edges = static_cast<std::uint8_t>(count(actions));
    node.expanded = true;
    const float* policy = rows_.policy(row);
    Edge* edge = edges_.add(node.num_edges);
    for_each_card(actions, [&](int action) {
      *edge++ = {.prior = *policy++,
                 .value_sum = 0.0f,
                 .visits = 0,
                 .child = kNone,
                 .in_flight = 0,
                 .action = static_cast<std::uint8_t>(action),
                 .solved = false};
    });
  }

  // --- back up ----------------------------------------------------------------------------------

  void finish_wave() {
    for (const Simulation& sim : sims_) {
      const float* value = values(sim.node);
      root_.decision().terminals += nodes_[sim.node].terminal;
      std::uint32_t at = sim.node;
      for (; nodes_[at].back_up_node != kNone; at = nodes_[at].back_up_node) {
        const Node& node = nodes_[at];
        const std::size_t chooser = value_index(nodes_[node.back_up_node].mover);
        Edge& edge = edges_[node.back_up_edge];
        ++edge.visits;
        --edge.in_flight;
        // Exact values replace the mean of what was thought before.
        edge.value_sum = node.proven && edge.child == at
                             ? value[chooser] * static_cast<float>(edge.visits)
                             : edge.value_sum + value[chooser];
        if (opponents_ == Opponents::kMaximise) {
          edge.solved = node.proven;
          value = solve(node.back_up_node, edge, value);
        }
      }
      Arm& arm = root_.arm(sim.arm);
      Top& top = this->top(sim.world, sim.arm);
      const float before = top.value_sum;
      const float here = value[value_index(root_seat_)];
      const bool exact = at == top.node && nodes_[at].proven;
      top.value_sum = exact ? here * static_cast<float>(arm.tried + 1) : before + here;
      arm.value_sum += static_cast<double>(top.value_sum) - before;
      if (opponents_ == Opponents::kMaximise && exact && !top.solved) {
        top.solved = true;
        ++arm.solved_worlds;
      }
      if (sim.world + 1u == num_worlds_) root_.finish_wave(sim.visited, sim.arm);
    }
    sims_.clear();
  }

  /// Under max^n: what a node hands up after `value` came back by `tried`. That, unless the mover
  /// does better by an action whose outcome is known; and once all are known, exactly the outcome
  /// of its best action, the lowest of equals (after MCTS-Solver, Winands et al. 2008).
  const float* solve(std::uint32_t index, const Edge& tried, const float* value) {
    Node& node = nodes_[index];
    const float* best = nullptr;
    bool all = true;
    for (std::uint32_t i = 0; i < node.num_edges; ++i) {
      const Edge& edge = edges_[node.first_edge + i];
      all &= edge.solved;
      if (!edge.solved) continue;
      const float* outcome = values(edge.child);
      if (best == nullptr || outcome[node.mover] > best[node.mover]) best = outcome;
    }
    if (best == nullptr) return value;
    if (all) {
      std::copy(best, best + num_values_, values(index));
      node.value = best[node.mover];
      node.proven = true;
      return values(index);
    }
    const bool better = best[node.mover] * static_cast<float>(tried.visits) > tried.value_sum;
    return better || tried.solved ? best : value;
  }

  const SearchConfig* config_ = nullptr;
  Progress* progress_ = nullptr;
  Round round_;  ///< At the root.
  int root_seat_ = 0;
  Opponents opponents_ = Opponents::kPolicy;
  int num_values_ = 1;  ///< Utilities a leaf carries: the root seat's, or every seat's under max^n.
  bool noise_ = false;
  Stage stage_ = Stage::kDone;
  std::uint64_t noise_key_ = 0;
  std::uint64_t search_key_ = 0;
  Root root_;
  RowCache rows_;
  std::uint32_t num_worlds_ = 0;
  Scratch<CardSet> hands_;  ///< By world, then seat.
  std::vector<Top> tops_;   ///< By root action, then world.
  Scratch<Node> nodes_;
  Scratch<Edge> edges_;
  Scratch<float> values_;     ///< Under max^n: num_values_ a node.
  Scratch<Simulation> sims_;  ///< Of the wave at hand, in selection order.
  Scratch<Round> states_;     ///< Where those of sims_ that goes_on_from_state() stand.
};

}  // namespace shmzero
