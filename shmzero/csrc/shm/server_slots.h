// A server's side of the slot protocol: takes requests, hands answered slots back, mends words that
// nobody may have left. The protocol is told in slot.h. Knows no batches. Read next: server_port.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "shm/server_stats.h"
#include "shm/shm_layout.h"
#include "shm/slot.h"

namespace shmzero {

/// Who asks: workers, of whom a server knows when more is coming, or clients, of whom it does not.
enum class Peers { kWorkers, kClients };

/// A request that a server has taken.
struct TakenSlot {
  std::uint32_t worker, slot;
  std::uint64_t word;  ///< As this server wrote it.
  std::uint64_t request_ns;
  std::uint32_t num_rows;
};

/// Writes a message into a slot that this server has taken (UTF-8, cut to the header's room).
inline void write_message(SlotHeader& header, const std::string& message) {
  std::size_t bytes = std::min(message.size(), kMessageBytes - 1);
  if (bytes < message.size()) {
    while (bytes > 0 && (static_cast<unsigned char>(message[bytes]) & 0xc0) == 0x80)
      --bytes;  // within a character
  }
  std::memcpy(header.message, message.data(), bytes);
  header.message[bytes] = 0;
}

class ServerSlots {
 public:
  /// `epoch` is new for each process that serves in this block's place.
  ServerSlots(Segment& segment, std::uint32_t server, std::uint32_t epoch, Peers peers,
              ServerStats& stats)
      : segment_(segment),
        server_(server),
        epoch_(epoch),
        peers_(peers),
        stats_(stats),
        held_(std::size_t{segment.sizes().num_workers} * segment.sizes().slots_per_worker) {}

  SlotRows rows(const TakenSlot& taken) const {
    return slot_rows(segment_, taken.worker, taken.slot);
  }

  /// Takes every ready slot and shows it to `found(taken)`. Returns whether a worker is filling
  /// one.
  template <class Found>
  bool sweep(Found&& found) {
    bool filling = false;
    segment_.for_each_slot(server_,
                           [&](std::uint32_t w, std::uint32_t s, std::atomic<std::uint64_t>& cell) {
                             // Acquire: pairs with the release in WorkerPort::publish; the rows are
                             // visible.
                             const SlotWord word{cell.load(std::memory_order_acquire)};
                             switch (word.state()) {
                               case SlotState::kFree:
                               case SlotState::kAnswered: break;
                               case SlotState::kFilling:
                                 if (peers_ == Peers::kClients) {
                                   mend(w, s, cell, word);
                                 } else {
                                   filling = true;
                                 }
                                 break;
                               case SlotState::kReady: take(w, s, cell, word, found); break;
                               default: mend(w, s, cell, word);
                             }
                             return true;
                           });
    return filling;
  }

  /// Whether a slot is ready, and whether one is being filled, as far as it was looked for: the
  /// look ends at the first ready one.
  struct Look {
    bool ready = false, filling = false;
  };
  Look look() const {
    Look seen;
    segment_.for_each_slot(
        server_, [&](std::uint32_t, std::uint32_t, std::atomic<std::uint64_t>& cell) {
          const SlotState state = SlotWord{cell.load(std::memory_order_acquire)}.state();
          seen.filling |= state == SlotState::kFilling;
          seen.ready = state == SlotState::kReady;
          return !seen.ready;
        });
    return seen;
  }

  /// Whether the answer area may be written: the request was not given up, nor written over.
  /// Relaxed: `hand_back` decides.
  bool is_wanted(const TakenSlot& taken) const {
    return cell_of(taken).load(std::memory_order_relaxed) == taken.word;
  }

  /// Hands an answered slot back to its worker, or frees it where the worker gave it up.
  void hand_back(const TakenSlot& taken) {
    held_[number_of(taken.worker, taken.slot)] = false;
    std::atomic<std::uint64_t>& cell = cell_of(taken);
    std::uint64_t expected = taken.word;
    const SlotWord mine{taken.word};
    // Release: pairs with the acquire in WorkerPort::answered.
    if (cell.compare_exchange_strong(expected, mine.with(SlotState::kAnswered).bits,
                                     std::memory_order_acq_rel)) {
      return;
    }
    const SlotWord orphan = SlotWord::make(mine.generation(), epoch_, SlotState::kOrphaned);
    if (expected != orphan.bits ||
        // Release: pairs with the acquire in RequestPort::claim and in WorkerPort::begin.
        !cell.compare_exchange_strong(expected, orphan.next(SlotState::kFree).bits,
                                      std::memory_order_acq_rel)) {
      stats_.count_refused();  // written over: what it is now is the next sweep's matter
    }
  }

  void wake(std::uint32_t worker) { segment_.worker(worker).bell.ring(); }

 private:
  template <class Found>
  void take(std::uint32_t w, std::uint32_t s, std::atomic<std::uint64_t>& cell, SlotWord word,
            Found& found) {
    if (held_[number_of(w, s)]) return;  // written over; `hand_back` finds it
    const SlotWord mine = SlotWord::make(word.generation(), epoch_, SlotState::kTaken);
    // Against a cancel or the reaper, who would free it.
    if (!cell.compare_exchange_strong(word.bits, mine.bits, std::memory_order_acq_rel)) return;
    const SlotHeader& header = *slot_rows(segment_, w, s).header;
    const TakenSlot taken = {.worker = w,
                             .slot = s,
                             .word = mine.bits,
                             .request_ns = header.request_ns,
                             .num_rows = header.num_rows};
    if (taken.num_rows == 0 || taken.num_rows > segment_.sizes().rows_per_slot) {
      refuse(taken);
      return;
    }
    held_[number_of(w, s)] = true;
    found(taken);
  }

  /// Answers a request whose number of rows no slot can hold.
  void refuse(const TakenSlot& taken) {
    stats_.count_refused();
    SlotHeader& header = *rows(taken).header;
    write_message(header, "the request says that it has " + std::to_string(taken.num_rows) +
                              " rows; a slot of this service holds 1.." +
                              std::to_string(segment_.sizes().rows_per_slot));
    header.failed = 1;
    header.version = stats_.version();
    hand_back(taken);
    wake(taken.worker);
  }

  /// For a word that nobody can have left: one that says that the slot is ours where it is not,
  /// that names no state, or of a client that fills. Its owner finds out by the word.
  void mend(std::uint32_t w, std::uint32_t s, std::atomic<std::uint64_t>& cell, SlotWord word) {
    if (held_[number_of(w, s)]) return;  // ours, or written over: `hand_back` finds it
    const SlotWord to = word.state() == SlotState::kTaken ? word.with(SlotState::kReady)
                                                          : word.next(SlotState::kFree);
    if (!cell.compare_exchange_strong(word.bits, to.bits, std::memory_order_acq_rel)) return;
    stats_.count_refused();
    wake(w);
  }

  std::atomic<std::uint64_t>& cell_of(const TakenSlot& taken) const {
    return segment_.worker(taken.worker).words[taken.slot];
  }
  std::size_t number_of(std::uint32_t worker, std::uint32_t slot) const {
    return std::size_t{worker} * segment_.sizes().slots_per_worker + slot;
  }

  Segment& segment_;
  std::uint32_t server_;
  std::uint32_t epoch_;
  Peers peers_;
  ServerStats& stats_;
  std::vector<bool> held_;  ///< By number_of: whether the slot is taken and not handed back.
};

}  // namespace shmzero
