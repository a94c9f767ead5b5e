// One decision: determinized PUCT with one root over all worlds.
//
// Emits the rows it needs and takes their answers; knows no features, slots or processes. Reads:
// simulate (descend), expand, back up. The driver calls `begin`, then `advance` until it returns
// true, answering after each call every row that it emitted.
// Read next: lane.h, which plays rounds with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "determinize.h"
#include "rules.h"
#include "tree.h"

namespace shmzero {

enum class Opponents : std::uint8_t { kPolicy, kMaximise };
enum class RootRule : std::uint8_t { kPuct, kHalving };
enum class Target : std::uint8_t { kVisits, kImproved };

/// See SearchConfig in config.py, which has the defaults and the checks.
struct SearchConfig {
  std::uint32_t determinizations;
  std::uint32_t simulations;  ///< In each world.
  std::uint32_t leaves_in_flight;
  float c_puct;
  float fpu_reduction;
  Opponents opponents;
  RootRule root;
  Target target;
  float improved_beta;
  std::uint32_t considered;
  bool known_hands;
  float noise_fraction;
  float noise_alpha;
  float temperature;
  std::uint32_t temperature_decisions;
  float final_temperature;
  float rivalry;

  /// Leaves per tree and wave: well below the simulations, or the first wave would be the search.
  std::uint32_t wave_leaves() const {
    return std::max(1u, std::min(leaves_in_flight, simulations / 4));
  }
  std::uint32_t worlds() const { return known_hands ? 1 : determinizations; }
  std::uint32_t rows_per_step(std::uint32_t players) const {
    if (simulations == 0) return 1;
    const std::uint32_t rows = opponents == Opponents::kMaximise ? players : 1;
    return worlds() * wave_leaves() * rows;
  }
};

/// A hand has at most 17 cards (three players), a bid at most 18 values.
inline constexpr int kMaxLegal = 18;

/// What a decision came to; the a-th entry is of the a-th legal action, lowest action first.
struct Decision {
  std::uint8_t num_actions;
  std::uint8_t actions[kMaxLegal];
  float prior[kMaxLegal];        ///< Without noise.
  std::uint32_t visits[kMaxLegal];  ///< Simulations, over all worlds.
  float q[kMaxLegal];            ///< Mean utility of the root seat; the root's value where untried.
  float policy[kMaxLegal];       ///< The target, sum 1; noise is taken out of it.
  std::uint16_t weights[kMaxLegal];  ///< The target as recorded: visits, or shares of 65535.
  float value;                   ///< Of the root seat.
  std::uint8_t best;             ///< Place of the action to play without temperature.
  std::uint32_t simulations;
  std::uint32_t evaluations;     ///< Rows asked: one for each (public actions, seat, hand).
  std::uint32_t terminals;       ///< Simulations that ended in a finished round.
};

class Search {
 public:
  /// Starts a decision of the seat to act, which must have a choice. Every random number is keyed
  /// by (seed, id, ply); `noise` mixes Dirichlet noise into the priors that the root selects by.
  void begin(const Round& root, const SearchConfig& config, std::uint64_t seed, std::uint64_t id,
             std::uint64_t ply, bool noise) {
    config_ = &config;
    root_ = root;
    root_seat_ = root.seat;
    noise_ = noise && config.noise_fraction > 0.0f;
    noise_key_ = stream_key(seed, id, ply, Purpose::kNoise);
    search_key_ = stream_key(seed, id, ply, Purpose::kSearch);
    num_values_ = config.opponents == Opponents::kMaximise ? root.num_players : 1;
    nodes_.clear();
    edges_.clear();
    values_.clear();
    entries_.clear();
    policies_.clear();
    sims_.clear();
    resize_table(512);
    decision_ = {};
    for_each_card(legal(root), [&](int action) {
      decision_.actions[decision_.num_actions++] = static_cast<std::uint8_t>(action);
    });
    std::fill_n(arms_, decision_.num_actions, Arm{});
    waves_started_ = waves_done_ = 0;
    worlds_.clear();
    if (config.simulations > 0) {
      if (config.known_hands) {
        worlds_.push_back(root);
      } else {
        const WorldSampler sampler(root, root_seat_);
        Rng rng(stream_key(seed, id, ply, Purpose::kWorlds));
        for (std::uint32_t d = 0; d < config.determinizations; ++d) {
          worlds_.push_back(sampler.sample(rng));
        }
      }
    }
    tops_.assign(worlds_.size() * decision_.num_actions, Top{});
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
      request(root_, root_seat_, legal(root_), emit);
      stage_ = Stage::kRoot;
      return false;
    }
    if (stage_ == Stage::kRoot) {
      expand_root();
      stage_ = Stage::kWaves;
    }
    while (waves_done_ < config_->simulations) {
      if (sims_.empty()) {
        start_wave(emit);
      } else {
        for (Simulation& sim : sims_) {
          if (sim.status != Status::kArrived) resume(sim, emit);
        }
      }
      bool waiting = false;
      for (const Simulation& sim : sims_) waiting |= sim.status != Status::kArrived;
      if (waiting) return false;
      finish_wave();
    }
    finish();
    stage_ = Stage::kDone;
    return true;
  }

  /// The answer to a row: the policy over its legal actions in ascending order (ignored for a row
  /// that asked for a value alone) and the expected utility of the row's seat.
  void answer(std::uint32_t row, const float* policy, float value) {
    Entry& entry = entries_[row];
    entry.value = value;
    entry.answered = true;
    float sum = 0.0f;
    for (int i = 0; i < entry.num_actions; ++i) sum += policy[i];
    const bool has_mass = sum > 0.0f || entry.num_actions == 0;
    if (!has_mass || !std::isfinite(sum) || !std::isfinite(value)) {
      throw std::runtime_error("the evaluator gave a policy without mass, or a number that is not finite");
    }
    const float scale = 1.0f / sum;
    for (int i = 0; i < entry.num_actions; ++i) policies_[entry.first_policy + i] = policy[i] * scale;
  }

  const Decision& decision() const { return decision_; }
  std::uint8_t num_actions_of(std::uint32_t row) const { return entries_[row].num_actions; }

  /// Visits in flight anywhere; 0 between waves. For tests.
  std::uint64_t total_in_flight() const {
    std::uint64_t total = 0;
    for (const Edge& edge : edges_) total += edge.in_flight;
    for (int a = 0; a < decision_.num_actions; ++a) total += arms_[a].in_flight;
    return total;
  }

 private:
  enum class Stage : std::uint8_t { kStart, kRoot, kWaves, kDone };
  enum class Status : std::uint8_t { kDescending, kWaitsForValue, kWaitsForPolicy, kArrived };

  /// A root action, pooled over worlds. Counts are waves: one visit is one simulation a world.
  struct Arm {
    double value_sum = 0.0;  ///< Of the root seat, over all simulations that went this way.
    std::uint32_t tried = 0;   ///< Waves that went this way.
    std::uint32_t visits = 0;  ///< Waves that PUCT gave it: those that it is solved for go elsewhere.
    std::uint32_t in_flight = 0;  ///< Visits to come.
    float prior = 0.0f;     ///< With noise, where there is any.
    float perturbed = 0.0f;  ///< Log prior plus Gumbel noise (halving).
    bool considered = true;
  };

  /// A root action in one world.
  struct Top {
    std::uint32_t node = kNone;  ///< Where it leads, kNone until first tried.
    float value_sum = 0.0f;      ///< This world's part of the arm's.
  };

  struct Simulation {
    Round state;
    std::uint32_t node;
    std::uint32_t entry;  ///< Row it waits for, as kWaitsForPolicy.
    std::uint16_t world;
    std::uint8_t arm;      ///< Root action it went by.
    std::uint8_t visited;  ///< Root action it counts for.
    Status status;
  };

  /// A row of this decision, asked once however many worlds and simulations need it.
  struct Entry {
    std::uint64_t key;
    std::uint32_t first_policy;
    float value;
    std::uint8_t num_actions;
    bool answered;
  };

  // --- rows -------------------------------------------------------------------------------------

  void resize_table(std::size_t size) { table_.assign(size, 0); }

  /// The entry of a row, emitted if it is new. The key names the row: public actions, whose view,
  /// and the hand seen; all else follows from the root.
  template <class Emit>
  std::uint32_t request(const Round& state, int seat, std::uint64_t actions, Emit&& emit) {
    const std::uint64_t key =
        mix(state.history_hash ^ mix(state.hands[seat] * 8 + static_cast<std::uint64_t>(seat)));
    std::size_t place = key & (table_.size() - 1);
    while (table_[place] != 0) {
      const std::uint32_t found = table_[place] - 1;
      if (entries_[found].key == key) return found;
      place = (place + 1) & (table_.size() - 1);
    }
    const auto row = static_cast<std::uint32_t>(entries_.size());
    const int num_actions = count(actions);
    entries_.push_back({key, static_cast<std::uint32_t>(policies_.size()), 0.0f,
                        static_cast<std::uint8_t>(num_actions), false});
    policies_.resize(policies_.size() + static_cast<std::size_t>(num_actions));
    table_[place] = row + 1;
    if (2 * entries_.size() > table_.size()) grow_table();
    emit(state, seat, actions, row);
    return row;
  }

  void grow_table() {
    resize_table(2 * table_.size());
    for (std::uint32_t row = 0; row < entries_.size(); ++row) {
      std::size_t place = entries_[row].key & (table_.size() - 1);
      while (table_[place] != 0) place = (place + 1) & (table_.size() - 1);
      table_[place] = row + 1;
    }
  }

  // --- root -------------------------------------------------------------------------------------

  void expand_root() {
    const Entry& entry = entries_[0];
    root_value_ = entry.value;
    const int num_actions = decision_.num_actions;
    for (int a = 0; a < num_actions; ++a) {
      decision_.prior[a] = arms_[a].prior = policies_[static_cast<std::size_t>(a)];
    }
    Rng rng(noise_key_);
    if (noise_) {
      double noise[kMaxLegal];
      double sum = 0.0;
      for (int a = 0; a < num_actions; ++a) sum += noise[a] = rng.gamma(config_->noise_alpha);
      const double share = config_->noise_fraction;
      if (sum > 0.0) {
        for (int a = 0; a < num_actions; ++a) {
          arms_[a].prior =
              static_cast<float>((1.0 - share) * arms_[a].prior + share * noise[a] / sum);
        }
      }
    }
    if (config_->root != RootRule::kHalving) return;
    float ranked[kMaxLegal];
    for (int a = 0; a < num_actions; ++a) {
      const double gumbel = noise_ ? rng.gumbel() : 0.0;
      arms_[a].perturbed =
          static_cast<float>(std::log(std::max(decision_.prior[a], 1e-12f)) + gumbel);
      ranked[a] = arms_[a].perturbed;
    }
    const auto considered = std::min<std::uint32_t>(config_->considered, decision_.num_actions);
    std::nth_element(ranked, ranked + considered - 1, ranked + num_actions, std::greater<>());
    std::uint32_t left = considered;
    for (int pass = 0; pass < 2; ++pass) {  // those above the last place first, then its ties
      for (int a = 0; a < num_actions; ++a) {
        const bool above = arms_[a].perturbed > ranked[considered - 1];
        const bool tied = arms_[a].perturbed == ranked[considered - 1];
        if (pass == 0) arms_[a].considered = above;
        if ((pass == 0 ? above : tied) && left > 0) {
          arms_[a].considered = true;
          --left;
        }
      }
    }
    schedule_ = halving_schedule(considered, config_->simulations);
  }

  double mean(const Arm& arm) const {
    return arm.value_sum / (static_cast<double>(arm.tried) * static_cast<double>(worlds_.size()));
  }

  /// The root's value as far as it is known: the network's, counted once, and the simulations'.
  double root_mean() const {
    double sum = root_value_;
    double visits = 1.0;
    for (int a = 0; a < decision_.num_actions; ++a) {
      sum += arms_[a].value_sum / static_cast<double>(worlds_.size());
      visits += arms_[a].tried;
    }
    return sum / visits;
  }

  /// Value of an untried action: the network's and the tried actions' means weighted by prior
  /// (Danihelka et al. 2022, appendix D).
  double mixed_value() const {
    double visits = 0.0, prior = 0.0, weighted = 0.0;
    for (int a = 0; a < decision_.num_actions; ++a) {
      if (arms_[a].tried == 0) continue;
      visits += arms_[a].tried;
      prior += decision_.prior[a];
      weighted += decision_.prior[a] * mean(arms_[a]);
    }
    if (prior <= 0.0) return root_value_;
    return (root_value_ + visits * weighted / prior) / (1.0 + visits);
  }

  int select_arm() const {
    const int num_actions = decision_.num_actions;
    int best = 0;
    double best_score = -1e300;
    if (config_->root == RootRule::kHalving) {
      const std::uint32_t wanted = schedule_[waves_started_];
      const double untried = mixed_value();
      for (int a = 0; a < num_actions; ++a) {
        const Arm& arm = arms_[a];
        if (!arm.considered || arm.visits + arm.in_flight != wanted) continue;
        const double score =
            arm.perturbed + config_->improved_beta * (arm.tried > 0 ? mean(arm) : untried);
        if (score > best_score) best_score = score, best = a;
      }
      return best;
    }
    return select_by_puct(false);
  }

  /// The arm of the highest PUCT score, of all or of those that are not solved (-1: all are).
  int select_by_puct(bool unsolved) const {
    double started = 1.0;
    for (int a = 0; a < decision_.num_actions; ++a) started += arms_[a].visits + arms_[a].in_flight;
    const double first_play = root_mean() - config_->fpu_reduction;
    int best = -1;
    double best_score = -1e300;
    for (int a = 0; a < decision_.num_actions; ++a) {
      const Arm& arm = arms_[a];
      if (unsolved && solved(a)) continue;
      const double score = puct_score(arm.tried > 0 ? mean(arm) : first_play, arm.prior, started,
                                      arm.visits + arm.in_flight, config_->c_puct);
      if (score > best_score) best_score = score, best = a;
    }
    return best;
  }

  /// Whether max^n knows exactly what a root action comes to in every world.
  bool solved(int action) const {
    if (num_values_ == 1) return false;
    for (std::size_t world = 0; world < worlds_.size(); ++world) {
      const std::uint32_t node = tops_[world * decision_.num_actions + static_cast<std::size_t>(action)].node;
      if (node == kNone || !nodes_[node].proven) return false;
    }
    return true;
  }

  // --- simulate ---------------------------------------------------------------------------------

  /// Selects for each leaf of the wave a root action, to be tried in every world.
  template <class Emit>
  void start_wave(Emit&& emit) {
    const std::uint32_t leaves =
        std::min(config_->wave_leaves(), config_->simulations - waves_started_);
    sims_.reserve(leaves * worlds_.size());
    for (std::uint32_t leaf = 0; leaf < leaves; ++leaf) {
      const int visited = select_arm();
      ++arms_[visited].in_flight;
      ++waves_started_;
      // A visit of what is solved counts as one; its work is spent where there is something to learn.
      const int other = solved(visited) ? select_by_puct(true) : visited;
      const int a = other < 0 ? visited : other;
      for (std::size_t world = 0; world < worlds_.size(); ++world) {
        sims_.emplace_back();
        Simulation& sim = sims_.back();
        sim.state = worlds_[world];
        sim.arm = static_cast<std::uint8_t>(a);
        sim.visited = static_cast<std::uint8_t>(visited);
        sim.world = static_cast<std::uint16_t>(world);
        Top& top = this->top(world, a);
        const std::uint64_t actions = play(sim.state, decision_.actions[a]);
        if (top.node == kNone) {
          top.node = sim.node = add_node(sim.state, kNone, kNone);
          arrive(sim, actions, emit);
        } else {
          sim.node = top.node;
          descend(sim, actions, emit);
        }
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

  std::uint32_t add_node(const Round& state, std::uint32_t parent, std::uint32_t parent_edge) {
    const auto index = static_cast<std::uint32_t>(nodes_.size());
    nodes_.push_back({parent_edge, parent, 0, 0, 0.0f, 0, state.seat,
                      state.phase == Phase::kDone, false, false, state.phase == Phase::kDone});
    values_.resize(values_.size() + static_cast<std::size_t>(num_values_));
    return index;
  }

  float* values(std::uint32_t node) {
    return values_.data() + static_cast<std::size_t>(node) * static_cast<std::size_t>(num_values_);
  }
  Top& top(std::size_t world, int action) {
    return tops_[world * decision_.num_actions + static_cast<std::size_t>(action)];
  }
  /// Place of a seat's utility among a node's values.
  std::size_t value_index(int seat) const {
    return num_values_ == 1 ? 0 : static_cast<std::size_t>(seat);
  }
  bool maximises(const Node& node) const {
    return num_values_ > 1 || node.mover == root_seat_;
  }

  /// At a node of which the value is wanted: asks for it, or takes what is known already.
  template <class Emit>
  void arrive(Simulation& sim, std::uint64_t actions, Emit&& emit) {
    if (nodes_[sim.node].terminal) {
      float* value = values(sim.node);
      if (num_values_ == 1) {
        value[0] = utility(sim.state, root_seat_, config_->rivalry);
      } else {
        for (int s = 0; s < num_values_; ++s) value[s] = utility(sim.state, s, config_->rivalry);
      }
      nodes_[sim.node].evaluated = true;
      sim.status = Status::kArrived;
      return;
    }
    bool known = true;
    for (int i = 0; i < num_values_; ++i) {
      const int seat = num_values_ == 1 ? root_seat_ : i;
      const std::uint32_t row =
          request(sim.state, seat, seat == sim.state.seat ? actions : 0, emit);
      known &= entries_[row].answered;
      if (entries_[row].answered) values(sim.node)[i] = entries_[row].value;
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

  template <class Emit>
  void resume(Simulation& sim, Emit&& emit) {
    if (sim.status == Status::kWaitsForValue) {
      if (!nodes_[sim.node].evaluated) {
        // All rows of the last step are answered: this asks nothing new.
        arrive(sim, legal(sim.state), emit);
      }
      if (nodes_[sim.node].evaluated) sim.status = Status::kArrived;
    } else if (entries_[sim.entry].answered) {
      descend(sim, legal(sim.state), emit);
    }
  }

  /// From a node that was there before: expand it if need be, choose, play, until a new leaf, a
  /// terminal, or a row that is not answered yet.
  template <class Emit>
  void descend(Simulation& sim, std::uint64_t actions, Emit&& emit) {
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
        const std::uint32_t row = request(sim.state, here.mover, actions, emit);
        if (!entries_[row].answered) {
          sim.entry = row;
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
      ++edges[chosen].in_flight;
      const std::uint32_t parent = sim.node;
      const std::uint32_t edge = node.first_edge + chosen;
      actions = play(sim.state, edges[chosen].action);
      if (edges[chosen].child == kNone) {
        sim.node = add_node(sim.state, parent, edge);
        edges_[edge].child = sim.node;
        arrive(sim, actions, emit);
        return;
      }
      sim.node = edges[chosen].child;
    }
  }

  // --- expand -----------------------------------------------------------------------------------

  void expand(std::uint32_t index, std::uint32_t row, std::uint64_t actions) {
    Node& node = nodes_[index];
    node.first_edge = static_cast<std::uint32_t>(edges_.size());
    const float* policy = policies_.data() + entries_[row].first_policy;
    for_each_card(actions, [&](int action) {
      edges_.push_back({*policy++, 0.0f, 0, kNone, 0, static_cast<std::uint8_t>(action), false});
    });
    node.num_edges = static_cast<std::uint8_t>(edges_.size() - node.first_edge);
    node.expanded = true;
  }

  // --- back up ----------------------------------------------------------------------------------

  void finish_wave() {
    const std::size_t num_worlds = worlds_.size();
    for (const Simulation& sim : sims_) {
      const float* value = values(sim.node);
      decision_.terminals += nodes_[sim.node].terminal;
      std::uint32_t at = sim.node;
      for (; nodes_[at].parent != kNone; at = nodes_[at].parent) {
        const Node& node = nodes_[at];
        const std::size_t chooser = value_index(nodes_[node.parent].mover);
        Edge& edge = edges_[node.parent_edge];
        ++edge.visits;
        --edge.in_flight;
        // Exact values replace the mean of what was thought before.
        edge.value_sum = node.proven ? value[chooser] * static_cast<float>(edge.visits)
                                     : edge.value_sum + value[chooser];
        if (num_values_ > 1) {
          edge.solved = node.proven;
          value = solve(node.parent, edge, value);
        }
      }
      Arm& arm = arms_[sim.arm];
      Top& top = this->top(sim.world, sim.arm);
      const float before = top.value_sum;
      const float here = value[value_index(root_seat_)];
      top.value_sum = nodes_[at].proven ? here * static_cast<float>(arm.tried + 1) : before + here;
      arm.value_sum += static_cast<double>(top.value_sum) - before;
      if (sim.world + 1u == num_worlds) {
        ++arm.tried;
        ++arms_[sim.visited].visits;
        --arms_[sim.visited].in_flight;
        ++waves_done_;
      }
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

  void finish() {
    const int num_actions = decision_.num_actions;
    const auto num_worlds = static_cast<std::uint32_t>(worlds_.size());
    decision_.evaluations = static_cast<std::uint32_t>(entries_.size());
    decision_.simulations = waves_done_ * num_worlds;
    double visits = 0.0, value = 0.0;
    for (int a = 0; a < num_actions; ++a) {
      const Arm& arm = arms_[a];
      decision_.visits[a] = arm.visits * num_worlds;
      decision_.q[a] = static_cast<float>(arm.tried > 0 ? mean(arm) : root_mean());
      visits += arm.visits;
      value += arm.visits > 0 ? arm.visits * mean(arm) : 0.0;
    }
    decision_.value = static_cast<float>(visits > 0.0 ? value / visits : root_value_);
    set_policy();
    decision_.best = static_cast<std::uint8_t>(choose());
  }

  /// The action to play: most visits, then higher q, then lower action; where no simulation was
  /// made the most probable; after halving the best of those that reached the last phase. Where
  /// max^n has solved every action, visits say nothing that q does not say exactly.
  int choose() const {
    bool exact = config_->simulations > 0 && config_->root == RootRule::kPuct;
    for (int a = 0; a < decision_.num_actions && exact; ++a) exact = solved(a);
    int best = 0;
    for (int a = 1; a < decision_.num_actions; ++a) {
      if (config_->simulations == 0) {
        if (decision_.prior[a] > decision_.prior[best]) best = a;
        continue;
      }
      const std::uint32_t ahead = decision_.visits[a], behind = decision_.visits[best];
      const bool halving = config_->root == RootRule::kHalving;
      const double gain = halving ? arms_[a].perturbed - arms_[best].perturbed +
                                        config_->improved_beta * (decision_.q[a] - decision_.q[best])
                                  : decision_.q[a] - decision_.q[best];
      if (exact ? gain > 0.0 : ahead > behind || (ahead == behind && gain > 0.0)) best = a;
    }
    return best;
  }

  void set_policy() {
    const int num_actions = decision_.num_actions;
    float* policy = decision_.policy;
    double weights[kMaxLegal];
    bool are_counts = false;
    if (config_->simulations == 0) {
      std::copy(decision_.prior, decision_.prior + num_actions, weights);
    } else if (config_->target == Target::kImproved) {
      const double untried = mixed_value();
      double highest = -1e300;
      for (int a = 0; a < num_actions; ++a) {
        const double q = arms_[a].tried > 0 ? mean(arms_[a]) : untried;
        weights[a] = std::log(std::max(decision_.prior[a], 1e-12f)) + config_->improved_beta * q;
        highest = std::max(highest, weights[a]);
      }
      for (int a = 0; a < num_actions; ++a) weights[a] = std::exp(weights[a] - highest);
    } else {
      are_counts = true;
      for (int a = 0; a < num_actions; ++a) weights[a] = arms_[a].visits;
      if (noise_ && config_->root == RootRule::kPuct) prune_noise(weights);
    }
    double sum = 0.0;
    for (int a = 0; a < num_actions; ++a) sum += weights[a];
    const double num_worlds = static_cast<double>(worlds_.size());
    const double unit = are_counts && sum * num_worlds <= 65535.0 ? num_worlds : 65535.0 / sum;
    for (int a = 0; a < num_actions; ++a) {
      policy[a] = static_cast<float>(weights[a] / sum);
      decision_.weights[a] = static_cast<std::uint16_t>(std::lround(weights[a] * unit));
    }
  }

  /// Takes back visits that only the noise in the prior explains: an action keeps no more than would
  /// have let PUCT, under the clean prior and the final values, prefer it to the most visited one,
  /// which gets the rest (after Wu 2019, "policy target pruning").
  void prune_noise(double* visits) const {
    const int num_actions = decision_.num_actions;
    int best = 0;
    double total = 1.0;
    for (int a = 0; a < num_actions; ++a) {
      total += visits[a];
      if (visits[a] > visits[best]) best = a;
    }
    const double score = puct_score(mean(arms_[best]), decision_.prior[best], total, visits[best],
                                    config_->c_puct);
    for (int a = 0; a < num_actions; ++a) {
      if (a == best || visits[a] == 0.0) continue;
      const double gap = score - mean(arms_[a]);
      if (gap <= 0.0) continue;
      const double justified =
          std::ceil(config_->c_puct * decision_.prior[a] * std::sqrt(total) / gap - 1.0);
      const double kept = std::clamp(justified, 0.0, visits[a]);
      visits[best] += visits[a] - kept;
      visits[a] = kept;
    }
  }

  const SearchConfig* config_ = nullptr;
  Round root_;
  int root_seat_ = 0;
  int num_values_ = 1;  ///< Utilities a leaf carries: the root seat's, or every seat's under max^n.
  bool noise_ = false;
  Stage stage_ = Stage::kDone;
  std::uint64_t noise_key_ = 0;
  std::uint64_t search_key_ = 0;
  float root_value_ = 0.0f;
  std::uint32_t waves_started_ = 0;
  std::uint32_t waves_done_ = 0;
  Arm arms_[kMaxLegal];
  Decision decision_ = {};
  std::vector<Round> worlds_;
  std::vector<Top> tops_;  ///< By world, then root action.
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::vector<float> values_;  ///< num_values_ a node.
  std::vector<Simulation> sims_;  ///< Of the wave at hand, in selection order.
  std::vector<Entry> entries_;
  std::vector<float> policies_;
  std::vector<std::uint32_t> table_;  ///< Hash table of entries: row + 1, 0 empty.
  std::vector<std::uint32_t> schedule_;
};

}  // namespace shmzero
