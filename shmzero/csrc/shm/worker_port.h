// A worker's side of its slots: begin, publish, wait for the answers, cancel. The protocol is told
// in slot.h. Knows no rows: the worker writes them where `rows` says.
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "shm/shm_layout.h"
#include "shm/slot.h"

namespace shmzero {

/// A worker's side of its slots. Remembers each word as it left it: see SlotLost.
class WorkerPort {
 public:
  WorkerPort(Segment& segment, std::uint32_t worker)
      : segment_(segment), worker_(worker), block_(segment.worker(worker)) {
    if (worker >= segment.sizes().num_workers) throw std::invalid_argument("worker out of range");
  }

  WorkerBlock& block() { return block_; }
  std::uint32_t num_slots() const { return segment_.sizes().slots_per_worker; }
  std::uint32_t rows_per_slot() const { return segment_.sizes().rows_per_slot; }
  SlotRows rows(std::uint32_t slot) const { return slot_rows(segment_, worker_, slot); }

  /// Takes a free slot over from whoever had it, to be published without `begin`. False where it is
  /// not free.
  bool adopt(std::uint32_t slot) {
    const SlotWord word = load(slot);
    if (word.state() == SlotState::kFree) left_[slot] = word;
    return word.state() == SlotState::kFree;
  }

  /// Whether `begin` may claim the slot: it is free, or answered. Throws SlotLost.
  bool may_begin(std::uint32_t slot) const { return may_begin(slot, load(slot)); }

  /// Claims a free slot, or goes on with an answered one, whose answers stay readable until
  /// `publish`. False where the slot is the server's. Throws SlotLost.
  bool begin(std::uint32_t slot) {
    const SlotWord word = load(slot);
    if (!may_begin(slot, word)) return false;
    move(slot, word, is_out(slot) ? word.next(SlotState::kFilling) : word.with(SlotState::kFilling),
         std::memory_order_relaxed);
    return true;
  }

  /// From here on the slot, begun or adopted, belongs to the server. No rows: it stays ours, free.
  /// Order: release; pairs with the acquire in ServerSlots::sweep. Throws SlotLost.
  void publish(std::uint32_t slot, std::uint32_t num_rows) {
    const SlotWord left = left_[slot];
    if (num_rows == 0) {
      move(slot, left, left.with(SlotState::kFree), std::memory_order_relaxed);
      // A server may be holding a batch open because of the filling it saw.
      segment_.server(segment_.server_of(worker_, slot)).bell.ring();
      return;
    }
    check_held(slot);  // before the header, which may be another's
    SlotHeader& header = *rows(slot).header;
    header.num_rows = num_rows;
    header.request_ns = now_ns();
    move(slot, left, left.with(SlotState::kReady), std::memory_order_release);
    segment_.server(segment_.server_of(worker_, slot)).bell.ring();
  }

  /// Whether a request is out, answered or not.
  bool is_out(std::uint32_t slot) const { return left_[slot].state() == SlotState::kReady; }

  /// Whether the answers are there. Order: acquire; pairs with the release in
  /// ServerSlots::hand_back. Throws SlotLost.
  bool answered(std::uint32_t slot) const { return is_out(slot) && may_begin(slot); }

  /// Gives an answered slot back. Where it does not throw SlotLost, what was read was its answer.
  void release(std::uint32_t slot) {
    move(slot, left_[slot].with(SlotState::kAnswered), left_[slot].next(SlotState::kFree),
         std::memory_order_release);
  }

  /// Gives up a request, if one is out. The slot is free again at once, or when its server has done
  /// with it.
  void cancel(std::uint32_t slot) {
    const SlotWord left = left_[slot];
    if (!is_out(slot)) return;
    for (;;) {
      std::uint64_t seen = block_.words[slot].load(std::memory_order_acquire);
      const SlotWord word{seen};
      SlotWord to = left.next(SlotState::kFree);
      if (word.state() == SlotState::kTaken && is_pending(slot, word)) {
        to = SlotWord::make(word.generation(), word.epoch(), SlotState::kOrphaned);
      } else if (word.bits != left.bits && word.bits != left.with(SlotState::kAnswered).bits) {
        return;  // lost: there is nothing of ours in it
      }
      if (block_.words[slot].compare_exchange_strong(seen, to.bits, std::memory_order_acq_rel)) {
        left_[slot] = to;
        return;
      }
    }
  }

  /// Whether a slot that is ours still is as we left it.
  bool is_held(std::uint32_t slot) const { return load(slot).bits == left_[slot].bits; }
  void check_held(std::uint32_t slot) const {
    if (!is_held(slot)) throw lost(slot, load(slot));
  }

  /// Waits until one of the slots in `slots` (bits) is answered, free or lost. At most 100 ms.
  bool wait(std::uint32_t slots, std::uint64_t timeout_ns, std::uint64_t spin_ns) {
    return block_.bell.wait(timeout_ns, spin_ns, [&] {
      for (std::uint32_t slot = 0; slot < num_slots(); ++slot) {
        if ((slots >> slot & 1) && !must_wait(slot)) return true;
      }
      return false;
    });
  }

  /// Whether the slot is the server's.
  bool must_wait(std::uint32_t slot) const { return must_wait(slot, load(slot)); }

  SlotWord load(std::uint32_t slot) const {
    return {block_.words[slot].load(std::memory_order_acquire)};
  }

 private:
  bool may_begin(std::uint32_t slot, SlotWord word) const {
    if (is_out(slot) ? word.bits == left_[slot].with(SlotState::kAnswered).bits
                     : word.state() == SlotState::kFree) {
      return true;
    }
    if (!must_wait(slot, word)) throw lost(slot, word);
    return false;
  }

  /// A slot that is not out is the server's where a request in it was given up.
  bool must_wait(std::uint32_t slot, SlotWord word) const {
    return is_out(slot) ? is_pending(slot, word) : word.state() == SlotState::kOrphaned;
  }

  /// Whether `word` is what a server may have made of our request before it has answered.
  bool is_pending(std::uint32_t slot, SlotWord word) const {
    return word.generation() == left_[slot].generation() &&
           (word.state() == SlotState::kReady || word.state() == SlotState::kTaken);
  }

  SlotLost lost(std::uint32_t slot, SlotWord found) const {
    return SlotLost("slot " + std::to_string(slot) + " of block " + std::to_string(worker_) +
                    " is " + describe(found) + "; its owner left it " + describe(left_[slot]));
  }

  void move(std::uint32_t slot, SlotWord from, SlotWord to, std::memory_order order) {
    std::uint64_t seen = from.bits;
    // Relaxed where it fails: nothing is read then.
    if (!block_.words[slot].compare_exchange_strong(seen, to.bits, order,
                                                    std::memory_order_relaxed)) {
      throw lost(slot, SlotWord{seen});
    }
    left_[slot] = to;
  }

  Segment& segment_;
  std::uint32_t worker_;
  WorkerBlock& block_;
  /// By slot. A new worker's are free, whatever its predecessor left: `begin` looks.
  SlotWord left_[kMaxSlotsPerWorker] = {};
};

}  // namespace shmzero
