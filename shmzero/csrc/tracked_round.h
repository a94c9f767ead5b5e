// A round together with the actions that led to it: what Python holds. The search needs no history.
#pragma once

#include <cstdint>
#include <vector>

#include "rules.h"

namespace shmzero {

struct TrackedRound {
  Round state;
  std::vector<std::uint8_t> actions;  ///< Bids, then cards, in order.
};

}  // namespace shmzero
