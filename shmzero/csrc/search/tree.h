// The trees of one decision: nodes and edges of all its worlds in two arenas, and the rules that
// choose an edge. Knows nothing of cards. Read next: search.h, which walks them.
//
// A node only moves on; its flags say how far it is. Who moves it is a function of search.h.
//
// from       to         by        when                                           flags then
// (none)     waiting    add_node  an edge is tried for the first time            none
// (none)     over       add_node  likewise, and the round is over there          terminal, proven
// over       evaluated  arrive    at once, by the scores                         + evaluated
// waiting    evaluated  arrive    another simulation has asked the same rows     evaluated
// waiting    evaluated  resume    the answers to its rows have come              evaluated
// waiting    solved     arrive    few cards are left: the solver knows them all  evaluated, proven
// evaluated  expanded   descend   a simulation goes on from it, by its policy    + expanded
// expanded   solved     solve     max^n: what follows every action is known      + proven
//
// A simulation that comes to a waiting node shares the value that is coming; one that comes to an
// evaluated node waits for the mover's policy, if that was not asked for with the value; one that
// comes to a proven node ends there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "game/rng.h"

namespace shmzero {

inline constexpr std::uint32_t kNone = 0xffffffffu;

/// One action at a node. `value_sum` is in the utility of the seat that chooses by it: the mover's
/// under max^n, the root seat's otherwise. It and the visits are kept where a seat chooses by them.
struct Edge {
  float prior;
  float value_sum;
  std::uint32_t visits;
  std::uint32_t child;  ///< kNone until first tried.
  std::uint16_t in_flight;
  std::uint8_t action;
  bool solved;  ///< What follows is known exactly (max^n): visits would bring nothing.
};
static_assert(sizeof(Edge) == 20);

struct Node {
  /// The edge nearest above of which visits and values are kept; kNone up to the root action.
  std::uint32_t back_up_edge;
  std::uint32_t back_up_node;  ///< Node that owns it.
  std::uint32_t first_edge;
  std::uint32_t started;  ///< Simulations that went on from here, those in flight included.
  std::uint32_t row;      ///< What the root seat sees here, once asked.
  float value;            ///< Once evaluated: the mover's under max^n, else the root seat's.
  std::uint8_t num_edges;
  std::uint8_t mover;
  bool terminal;
  bool evaluated;  ///< Its value is known.
  bool expanded;   ///< Its edges have priors.
  bool proven;     ///< Its values are exact: the round is over, or max^n has solved what follows.
};
static_assert(sizeof(Node) == 32);

/// PUCT with visits in flight counted as visits without a value (WU-UCT, Liu et al. 2020): they
/// spread the selections of one wave and leave Q alone.
inline double puct_score(double q, double prior, double parent_visits, double visits,
                         double c_puct) {
  return q + c_puct * prior * std::sqrt(parent_visits) / (1.0 + visits);
}

/// The edge that a maximising seat tries next, of those that are not solved; not all may be.
inline std::uint32_t select_puct(const Node& node, const Edge* edges, float c_puct,
                                 float fpu_reduction) {
  std::uint32_t visits = 0;
  float value_sum = node.value;
  for (int i = 0; i < node.num_edges; ++i) {
    visits += edges[i].visits;
    value_sum += edges[i].value_sum;
  }
  const float first_play = value_sum / static_cast<float>(1 + visits) - fpu_reduction;
  const float exploration = c_puct * std::sqrt(static_cast<float>(1 + node.started));
  std::uint32_t best = 0;
  float best_score = -1e30f;
  for (int i = 0; i < node.num_edges; ++i) {
    const Edge& edge = edges[i];
    if (edge.solved) continue;
    const float q = edge.visits > 0 ? edge.value_sum / static_cast<float>(edge.visits) : first_play;
    const float score =
        q + exploration * edge.prior / static_cast<float>(1 + edge.visits + edge.in_flight);
    if (score > best_score) {
      best_score = score;
      best = static_cast<std::uint32_t>(i);
    }
  }
  return best;
}

/// The edge that a seat which moves by its policy takes the `node.started`-th time: points of a
/// low-discrepancy sequence with a random start, through the inverse of the policy's distribution.
/// Every single visit follows the policy, and many follow it closely.
inline std::uint32_t select_by_policy(const Node& node, const Edge* edges, std::uint64_t key) {
  constexpr std::uint64_t kGoldenStep = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
  const std::uint64_t point = mix(key) + node.started * kGoldenStep;
  float left = static_cast<float>(point >> 40) * 0x1.0p-24f;
  std::uint32_t last = 0;
  for (std::uint32_t i = 0; i < node.num_edges; ++i) {
    const float prior = std::max(edges[i].prior, 0.0f);
    last = (left >= 0.0f) & (prior > 0.0f) ? i : last;
    left -= prior;
  }
  return last;
}

/// Visit counts at which sequential halving takes its candidates, one a simulation: in each of
/// ceil(log2 m) phases the better half goes on with twice the visits (Karnin et al. 2013; at the
/// root of a tree, Danihelka et al. 2022).
inline std::vector<std::uint32_t> halving_schedule(std::uint32_t num_considered,
                                                   std::uint32_t num_simulations) {
  std::vector<std::uint32_t> schedule;
  schedule.reserve(num_simulations);
  if (num_considered <= 1) {
    for (std::uint32_t i = 0; i < num_simulations; ++i) schedule.push_back(i);
    return schedule;
  }
  std::uint32_t phases = 0;
  while ((1u << phases) < num_considered) ++phases;
  std::vector<std::uint32_t> visits(num_considered, 0);
  std::uint32_t left = num_considered;
  while (schedule.size() < num_simulations) {
    const std::uint32_t extra = std::max(1u, num_simulations / (phases * left));
    for (std::uint32_t e = 0; e < extra && schedule.size() < num_simulations; ++e) {
      for (std::uint32_t i = 0; i < left && schedule.size() < num_simulations; ++i) {
        schedule.push_back(visits[i]++);
      }
    }
    left = std::max(2u, left / 2);
  }
  return schedule;
}

}  // namespace shmzero
