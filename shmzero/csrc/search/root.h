// The root of a decision: one for all its worlds. Which action to try next, what the tries came to,
// the action to play and the policy target. Knows no rounds and no trees. Read next: search.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "game/rng.h"
#include "search/search_config.h"
#include "search/tree.h"

namespace shmzero {

/// A root action, pooled over worlds. Counts are waves: one visit is one simulation a world.
struct Arm {
  double value_sum = 0.0;    ///< Of the root seat, over all simulations that went this way.
  std::uint32_t tried = 0;   ///< Waves that went this way.
  std::uint32_t visits = 0;  ///< Waves that PUCT gave it: those that it is solved for go elsewhere.
  std::uint32_t in_flight = 0;      ///< Visits to come.
  float prior = 0.0f;               ///< With noise, where there is any.
  float perturbed = 0.0f;           ///< Log prior plus Gumbel noise (halving).
  bool considered = true;           ///< Halving has not dropped it from the start.
  std::uint32_t solved_worlds = 0;  ///< In which max^n knows exactly what it comes to.
};

class Root {
 public:
  /// Starts a decision among the actions of `legal`, to be tried in `num_worlds` worlds a time.
  void begin(const SearchConfig& config, std::uint64_t legal, std::uint32_t num_worlds) {
    config_ = &config;
    num_worlds_ = num_worlds;
    decision_ = {};
    for (; legal != 0; legal &= legal - 1) {
      decision_.actions[decision_.num_actions++] =
          static_cast<std::uint8_t>(std::countr_zero(legal));
    }
    std::fill_n(arms_, decision_.num_actions, Arm{});
    started_ = done_ = 0;
  }

  /// Takes the network's view of the root: `policy` over the legal actions, and its value. `noise`:
  /// mix in what `rng` draws, Dirichlet noise or Gumbel perturbations.
  void expand(const float* policy, float value, bool noise, Rng rng) {
    value_ = value;
    noise_ = noise;
    const int num_actions = decision_.num_actions;
    for (int a = 0; a < num_actions; ++a) {
      decision_.prior[a] = arms_[a].prior = policy[a];
    }
    if (noise_) {
      double draws[kMaxLegal];
      double sum = 0.0;
      for (int a = 0; a < num_actions; ++a) sum += draws[a] = rng.gamma(config_->noise_alpha);
      const double share = config_->noise_fraction;
      if (sum > 0.0) {
        for (int a = 0; a < num_actions; ++a) {
          arms_[a].prior =
              static_cast<float>((1.0 - share) * arms_[a].prior + share * draws[a] / sum);
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

  /// Chooses the action that the next wave counts for. What is solved counts without work: that is
  /// spent on the second, the best of those about which there is something to learn.
  std::pair<int, int> start_wave() {
    const int visited =
        config_->root == RootRule::kHalving ? select_by_halving() : select_by_puct(false);
    const int unsolved = solved(arms_[visited]) ? select_by_puct(true) : visited;
    ++arms_[visited].in_flight;
    ++started_;
    return {visited, unsolved < 0 ? visited : unsolved};
  }

  /// A wave that counted for `visited` and went by `tried` is over in all worlds.
  void finish_wave(int visited, int tried) {
    ++arms_[tried].tried;
    ++arms_[visited].visits;
    --arms_[visited].in_flight;
    ++done_;
  }

  Arm& arm(int action) { return arms_[action]; }
  std::uint32_t waves_left() const { return config_->simulations - started_; }
  bool done() const { return done_ >= config_->simulations; }
  std::uint32_t in_flight() const {
    std::uint32_t total = 0;
    for (int a = 0; a < decision_.num_actions; ++a) total += arms_[a].in_flight;
    return total;
  }
  Decision& decision() { return decision_; }
  const Decision& decision() const { return decision_; }

  /// Sums up: everything of the decision but `evaluations` and `terminals`.
  void finish() {
    const int num_actions = decision_.num_actions;
    decision_.simulations = done_ * num_worlds_;
    double visits = 0.0, value = 0.0;
    for (int a = 0; a < num_actions; ++a) {
      const Arm& arm = arms_[a];
      decision_.visits[a] = arm.visits * num_worlds_;
      decision_.q[a] = static_cast<float>(arm.tried > 0 ? mean(arm) : root_mean());
      visits += arm.visits;
      value += arm.visits > 0 ? arm.visits * mean(arm) : 0.0;
    }
    decision_.value = static_cast<float>(visits > 0.0 ? value / visits : value_);
    set_policy();
    decision_.best = static_cast<std::uint8_t>(choose());
  }

 private:
  double mean(const Arm& arm) const {
    return arm.value_sum / (static_cast<double>(arm.tried) * num_worlds_);
  }

  /// The root's value as far as it is known: the network's, counted once, and the simulations'.
  double root_mean() const {
    double sum = value_;
    double visits = 1.0;
    for (int a = 0; a < decision_.num_actions; ++a) {
      sum += arms_[a].value_sum / num_worlds_;
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
    if (prior <= 0.0) return value_;
    return (value_ + visits * weighted / prior) / (1.0 + visits);
  }

  int select_by_halving() const {
    const std::uint32_t wanted = schedule_[started_];
    const double untried = mixed_value();
    int best = 0;
    double best_score = -1e300;
    for (int a = 0; a < decision_.num_actions; ++a) {
      const Arm& arm = arms_[a];
      if (!arm.considered || arm.visits + arm.in_flight != wanted) continue;
      const double score =
          arm.perturbed + config_->improved_beta * (arm.tried > 0 ? mean(arm) : untried);
      if (score > best_score) best_score = score, best = a;
    }
    return best;
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
      if (unsolved && solved(arm)) continue;
      const double score = puct_score(arm.tried > 0 ? mean(arm) : first_play, arm.prior, started,
                                      arm.visits + arm.in_flight, config_->c_puct);
      if (score > best_score) best_score = score, best = a;
    }
    return best;
  }

  bool solved(const Arm& arm) const { return num_worlds_ > 0 && arm.solved_worlds == num_worlds_; }

  /// The action to play: most visits, then higher q, then lower action; where no simulation was
  /// made the most probable; after halving the best of those that reached the last phase. Where
  /// max^n has solved every action, visits say nothing that q does not say exactly.
  int choose() const {
    bool exact = config_->simulations > 0 && config_->root == RootRule::kPuct;
    for (int a = 0; a < decision_.num_actions && exact; ++a) exact = solved(arms_[a]);
    int best = 0;
    for (int a = 1; a < decision_.num_actions; ++a) {
      if (config_->simulations == 0) {
        if (decision_.prior[a] > decision_.prior[best]) best = a;
        continue;
      }
      const std::uint32_t ahead = decision_.visits[a], behind = decision_.visits[best];
      const bool halving = config_->root == RootRule::kHalving;
      const double gain = halving
                              ? arms_[a].perturbed - arms_[best].perturbed +
                                    config_->improved_beta * (decision_.q[a] - decision_.q[best])
                              : decision_.q[a] - decision_.q[best];
      if (exact ? gain > 0.0 : ahead > behind || (ahead == behind && gain > 0.0)) best = a;
    }
    return best;
  }

  void set_policy() {
    const int num_actions = decision_.num_actions;
    float* policy = decision_.policy;
    double weights[kMaxLegal] = {};
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
      if (noise_) count_without_noise(weights);
    }
    double sum = 0.0;
    for (int a = 0; a < num_actions; ++a) sum += weights[a];
    const double unit = are_counts && sum * num_worlds_ <= 65535.0 ? num_worlds_ : 65535.0 / sum;
    for (int a = 0; a < num_actions; ++a) {
      policy[a] = static_cast<float>(weights[a] / sum);
      decision_.counts[a] = static_cast<std::uint16_t>(std::lround(weights[a] * unit));
    }
  }

  /// The visits that PUCT would give under the clean prior, had every action been worth from the
  /// start what it came to: what the noise found out stays, where it led does not.
  void count_without_noise(double* visits) const {
    const int num_actions = decision_.num_actions;
    double sum = value_;
    std::fill_n(visits, num_actions, 0.0);
    for (std::uint32_t wave = 0; wave < done_; ++wave) {
      const double exploration = config_->c_puct * std::sqrt(1.0 + wave);
      const double first_play = sum / (1.0 + wave) - config_->fpu_reduction;
      const auto worth = [&](int a) { return arms_[a].tried > 0 ? mean(arms_[a]) : first_play; };
      int best = 0;
      double best_score = -1e300;
      for (int a = 0; a < num_actions; ++a) {
        const double q = visits[a] > 0.0 ? worth(a) : first_play;
        const double score = q + exploration * decision_.prior[a] / (1.0 + visits[a]);
        if (score > best_score) best_score = score, best = a;
      }
      visits[best] += 1.0;
      sum += worth(best);
    }
  }

  const SearchConfig* config_ = nullptr;
  std::uint32_t num_worlds_ = 0;
  std::uint32_t started_ = 0;  ///< Waves.
  std::uint32_t done_ = 0;
  float value_ = 0.0f;  ///< The network's.
  bool noise_ = false;
  Arm arms_[kMaxLegal];
  Decision decision_ = {};
  std::vector<std::uint32_t> schedule_;  ///< Of halving.
};

}  // namespace shmzero
