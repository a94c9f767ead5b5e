// The reaper: what becomes of the slots of a process that is certainly dead, and which slots say
// that a living one is stuck. Knows no processes: who is dead, the caller knows.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/shm_layout.h"
#include "shm/slot.h"

namespace shmzero {

/// Whether every slot is in a state that there is, with rows that fit. Throws CorruptSegment. For a
/// server that takes over what another left behind, before it serves.
inline void check_slots(const Segment& segment) {
  const SegmentSizes& sizes = segment.sizes();
  for (std::uint32_t w = 0; w < sizes.num_workers; ++w) {
    for (std::uint32_t s = 0; s < sizes.slots_per_worker; ++s) {
      const SlotState state =
          SlotWord{segment.worker(w).words[s].load(std::memory_order_acquire)}.state();
      const std::uint32_t rows = segment.slot_header(w, s).num_rows;
      const bool requested = state == SlotState::kReady || state == SlotState::kTaken;
      if (!is_state(state) || (requested && (rows == 0 || rows > sizes.rows_per_slot))) {
        throw CorruptSegment("slot " + std::to_string(s) + " of block " + std::to_string(w) +
                             " is in state " + std::to_string(static_cast<int>(state)) + " with " +
                             std::to_string(rows) + " rows");
      }
    }
  }
}

/// By the reaper, once the worker is certainly dead: frees what it held, and gives what was free
/// another generation: rows written for the old one are not published. A slot that a server is
/// reading stays that server's until its batch is through.
inline void reclaim_worker(const Segment& segment, std::uint32_t worker) {
  segment.worker(worker).playing.store(0, std::memory_order_relaxed);  // a report
  for (std::uint32_t slot = 0; slot < segment.sizes().slots_per_worker; ++slot) {
    std::atomic<std::uint64_t>& cell = segment.worker(worker).words[slot];
    for (;;) {
      std::uint64_t seen = cell.load(std::memory_order_acquire);
      const SlotWord word{seen};
      if (word.state() == SlotState::kOrphaned) break;
      const SlotWord to =
          word.state() == SlotState::kTaken
              ? SlotWord::make(word.generation(), word.epoch(), SlotState::kOrphaned)
              : word.next(SlotState::kFree);
      // Against the server's ready -> taken and taken -> answered: look again where it was faster.
      if (cell.compare_exchange_strong(seen, to.bits, std::memory_order_acq_rel)) break;
    }
  }
}

/// By the reaper, once the server is certainly dead: what it had taken is ready again.
inline void reclaim_server(const Segment& segment, std::uint32_t server) {
  segment.for_each_slot(server, [](std::uint32_t, std::uint32_t, std::atomic<std::uint64_t>& cell) {
    for (;;) {
      std::uint64_t seen = cell.load(std::memory_order_acquire);
      const SlotWord word{seen};
      SlotWord to = word;
      if (word.state() == SlotState::kTaken) {
        to = word.with(SlotState::kReady);
      } else if (word.state() == SlotState::kOrphaned) {
        to = word.next(SlotState::kFree);
      } else {
        return true;
      }
      // Against a worker's cancel.
      if (cell.compare_exchange_strong(seen, to.bits, std::memory_order_acq_rel)) return true;
    }
  });
}

/// By the reaper of a service, once `identity` is certainly dead: frees the blocks it had.
inline void reap_client(Segment& segment, std::uint64_t identity) {
  for (std::uint32_t w = 0; w < segment.sizes().num_workers; ++w) {
    std::atomic<std::uint64_t>& owner = segment.worker(w).owner;
    std::uint64_t resting = identity | kResting;
    // Against a client that needs it: what rests is free, and may be another's at any moment.
    if (owner.compare_exchange_strong(resting, 0, std::memory_order_acq_rel) || resting != identity)
      continue;
    reclaim_worker(segment, w);
    std::uint64_t dead = identity;
    owner.compare_exchange_strong(dead, 0, std::memory_order_acq_rel);  // pairs with claim
  }
}

/// Whether a worker has nothing to do but to wait for its servers: they hold some of its slots, and
/// the others are free.
inline bool waits_for_servers(const Segment& segment, std::uint32_t worker) {
  bool waits = false;
  for (std::uint32_t slot = 0; slot < segment.sizes().slots_per_worker; ++slot) {
    const SlotState state =
        SlotWord{segment.worker(worker).words[slot].load(std::memory_order_acquire)}.state();
    if (!waits_for_server(state) && state != SlotState::kFree) return false;
    waits |= waits_for_server(state);
  }
  return waits;
}

/// A slot that waits for its server, see waits_for_server.
struct HeldSlot {
  std::uint32_t worker, slot, generation;
};

/// The slots of a server that only it can move on.
inline std::vector<HeldSlot> held_slots(const Segment& segment, std::uint32_t server) {
  std::vector<HeldSlot> held;
  segment.for_each_slot(server,
                        [&](std::uint32_t w, std::uint32_t s, std::atomic<std::uint64_t>& cell) {
                          const SlotWord word{cell.load(std::memory_order_acquire)};
                          if (waits_for_server(word.state()))
                            held.push_back({w, s, word.generation()});
                          return true;
                        });
  return held;
}

}  // namespace shmzero
