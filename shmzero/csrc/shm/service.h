// How the server of a service comes and goes; its clients see it in the server's block.
#pragma once

#include <cstdint>

#include "shm/reaper.h"
#include "shm/shm_layout.h"

namespace shmzero {

/// By a server of a service that holds the life lock: takes the place of its dead predecessor,
/// whose requests are ready again. Returns the new epoch.
inline std::uint32_t open_service(Segment& segment, std::uint64_t identity) {
  check_slots(segment);
  reclaim_server(segment, 0);
  ServerBlock& block = segment.server(0);
  const std::uint64_t epoch = block.epoch.load(std::memory_order_relaxed) + 1;  // the lock orders
  block.epoch.store(epoch, std::memory_order_relaxed);
  block.owner.store(identity, std::memory_order_release);
  return static_cast<std::uint32_t>(epoch);
}

/// By a server that leaves on purpose. Release: pairs with RequestPort::service_closed.
inline void close_service(Segment& segment) {
  segment.server(0).closed.store(1, std::memory_order_release);
  for (std::uint32_t w = 0; w < segment.sizes().num_workers; ++w) segment.worker(w).bell.ring();
}

}  // namespace shmzero
