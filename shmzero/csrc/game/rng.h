// Counter-based random numbers: a stream is a pure function of its key, so that a round is the
// same whoever plays it and however often it is played again.
// Source: SplitMix64 (Steele, Lea, Flood 2014) over a Weyl sequence that starts at the key.
#pragma once

#include <cmath>
#include <cstdint>

namespace shmzero {

/// What a stream is for. Streams of different purposes share nothing, in particular a
/// determinization knows nothing of the deal's stream. Values are part of the records: append only.
enum class Purpose : std::uint64_t {
  kDeal = 1,
  kSettings = 2,
  kWorlds = 3,
  kSearch = 4,
  kNoise = 5,
  kChoice = 6,
  kDeterminize = 7,
  kReplay = 8,
  kOthers = 9,
  kRedeal = 10,
  kMatch = 11,  ///< Gives a match the seed that all its streams are keyed by.
  kBot = 16,
};

constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Key of the stream of one purpose at one ply of one round of one run.
constexpr std::uint64_t stream_key(std::uint64_t seed, std::uint64_t id, std::uint64_t ply,
                                   Purpose purpose) {
  std::uint64_t key = mix(seed + 0x9e3779b97f4a7c15u);
  key = mix(key ^ (id + 0xd1b54a32d192ed03u));
  key = mix(key ^ (ply + 0x8cb92ba72f3d8dd7u));
  return mix(key ^ (static_cast<std::uint64_t>(purpose) * 0xabc98388fb8fac03u));
}

/// A stream of 64-bit numbers.
struct Rng {
  explicit constexpr Rng(std::uint64_t key) : state(key) {}

  constexpr std::uint64_t next() {
    state += 0x9e3779b97f4a7c15u;
    return mix(state);
  }

  /// Uniform in 0..n-1, n >= 1, without bias (Lemire 2019, the rejection included).
  std::uint32_t below(std::uint32_t n) {
    std::uint64_t product = (next() >> 32) * n;
    std::uint32_t low = static_cast<std::uint32_t>(product);
    if (low < n) {
      const std::uint32_t threshold = static_cast<std::uint32_t>(-n) % n;
      while (low < threshold) {
        product = (next() >> 32) * n;
        low = static_cast<std::uint32_t>(product);
      }
    }
    return static_cast<std::uint32_t>(product >> 32);
  }

  /// Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

  /// Standard Gumbel.
  double gumbel() { return -std::log(-std::log(uniform() + 0x1.0p-54)); }

  /// Gamma(alpha, 1). Marsaglia and Tsang 2000, with the power trick below alpha = 1.
  double gamma(double alpha) {
    if (alpha < 1.0) {
      const double power = std::pow(uniform() + 0x1.0p-54, 1.0 / alpha);
      return gamma(alpha + 1.0) * power;
    }
    const double d = alpha - 1.0 / 3.0;
    const double c = 1.0 / std::sqrt(9.0 * d);
    for (;;) {
      const double radius = std::sqrt(-2.0 * std::log(uniform() + 0x1.0p-54));
      const double x = radius * std::cos(6.283185307179586 * uniform());
      const double v = (1.0 + c * x) * (1.0 + c * x) * (1.0 + c * x);
      if (v <= 0.0) continue;
      if (std::log(uniform() + 0x1.0p-54) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
    }
  }

  std::uint64_t state;
};

}  // namespace shmzero
