// The slot protocol: how rows go from a worker to its server and their answers back. Knows no game.
//
// A slot belongs to one side at a time; its word says to which. Requests and answers lie in areas
// of their own, so a request outlives the server that was reading it. No locks on the data path.
// Each side changes a word by a CAS from what it left there itself, or from what the other side may
// have made of that; a word that is neither is a stray one, and costs that slot's request alone.
//
// from      to            by      when                      order
// free      filling       worker  before its search begins  relaxed: only a hint to others
// filling   ready         worker  all rows written          release -> acquire in ServerPort::sweep
// free      ready         client  all rows written          likewise; nobody waits for a client
// filling   free          worker  no rows after all         relaxed: nothing was handed over
// ready     taken(epoch)  server  sweeps                    CAS acquire; it may read the rows now
// taken     answered      server  all answers written       CAS release -> acquire in `answered`
// answered  filling(g+1)  worker  goes on                   relaxed: its own until `ready`
// answered  free(g+1)     client  has read the answers      release -> acquire in claim
// ready     free(g+1)     worker  cancels                   CAS
// taken     orphaned      worker  gives up                  CAS; the server's until it has answered
//   deaths, all by the one reaper, after the process is certainly gone:
// free, filling, ready, answered
//           free(g+1)     worker died                       CAS, against a server's ready -> taken
// taken     orphaned      worker died                       CAS, against its taken -> answered
// orphaned  free(g+1)     the server that took it, in scatter; the reaper once that one is dead
// taken(e)  ready         server of epoch e died            CAS: run again by the next
//   words that nobody leaves, and requests of no or too many rows; counted in `refused`:
// taken     answered      server  rows that do not fit      failed, with a message
// taken     ready         server  does not hold it          CAS: run, where its owner waits for it
// orphaned  free(g+1)     server  does not hold it          CAS
// filling   free(g+1)     server  of clients, who never fill
// no state  free(g+1)     server, the reaper, whoever claims the block
// filling, ready, answered
//           free(g+1)     client  claims the block, which was nobody's
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "shm/shm_layout.h"

namespace shmzero {

enum class SlotState : std::uint8_t { kFree, kFilling, kReady, kTaken, kAnswered, kOrphaned };
inline constexpr const char* kStateNames[] = {"free",  "filling",  "ready",
                                              "taken", "answered", "orphaned"};

/// Whether a word names a state that there is.
inline bool is_state(SlotState state) { return state <= SlotState::kOrphaned; }

/// generation (32 bits) | epoch of the server that took it (24) | state (8)
struct SlotWord {
  std::uint64_t bits;

  static SlotWord make(std::uint32_t generation, std::uint32_t epoch, SlotState state) {
    return {(static_cast<std::uint64_t>(generation) << 32) |
            (static_cast<std::uint64_t>(epoch & 0xffffffu) << 8) |
            static_cast<std::uint64_t>(state)};
  }
  SlotState state() const { return static_cast<SlotState>(bits & 0xff); }
  std::uint32_t epoch() const { return static_cast<std::uint32_t>(bits >> 8) & 0xffffffu; }
  std::uint32_t generation() const { return static_cast<std::uint32_t>(bits >> 32); }
  SlotWord with(SlotState state) const { return make(generation(), 0, state); }
  SlotWord next(SlotState state) const { return make(generation() + 1, 0, state); }
};

/// "ready in generation 7".
inline std::string describe(SlotWord word) {
  const std::string state = is_state(word.state())
                                ? kStateNames[static_cast<int>(word.state())]
                                : "in state " + std::to_string(static_cast<int>(word.state()));
  return state + " in generation " + std::to_string(word.generation());
}

/// A slot's areas, for the side that holds it.
struct SlotRows {
  std::byte* states;     ///< [R, state_dim], wire type.
  std::uint64_t* masks;  ///< [R, mask_words]
  float* policies;       ///< [R, action_dim]
  float* values;         ///< [R, value_dim]
  SlotHeader* header;
};

inline SlotRows slot_rows(const Segment& segment, std::uint32_t worker, std::uint32_t slot) {
  std::byte* base = segment.slot(worker, slot);
  const SegmentLayout& layout = segment.layout();
  return {base + layout.states, reinterpret_cast<std::uint64_t*>(base + layout.masks),
          reinterpret_cast<float*>(base + layout.policies),
          reinterpret_cast<float*>(base + layout.values), reinterpret_cast<SlotHeader*>(base)};
}

/// Thrown where a slot holds a word that its owner neither left there nor waits for: the reaper
/// took a living owner for dead, or something wrote over it. What lies in the slot may be
/// another's.
struct SlotLost : CorruptSegment {
  using CorruptSegment::CorruptSegment;
};

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
  /// Order: release; pairs with the acquire in ServerPort::sweep. Throws SlotLost.
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

  /// Whether the answers are there. Order: acquire; pairs with the release in ServerPort::scatter.
  /// Throws SlotLost.
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

/// Place of the first element that is NaN or infinite, `count` where there is none.
inline std::size_t first_not_finite(const std::byte* elements, std::size_t count, Wire wire) {
  const auto look = [&](auto exponent) {
    using Bits = decltype(exponent);
    const auto bits_at = [&](std::size_t i) {
      Bits bits;
      std::memcpy(&bits, elements + i * sizeof bits, sizeof bits);
      return bits;
    };
    Bits any = 0;  // first without leaving the loop, which the compiler can vectorise
    for (std::size_t i = 0; i < count; ++i)
      any |= static_cast<Bits>((bits_at(i) & exponent) == exponent);
    if (any == 0) return count;
    std::size_t i = 0;
    while ((bits_at(i) & exponent) != exponent) ++i;
    return i;
  };
  return wire == Wire::kFloat16 ? look(std::uint16_t{0x7c00}) : look(std::uint32_t{0x7f800000});
}

/// Who asks: workers, of whom a server knows when more is coming, or clients, of whom it does not.
enum class Peers { kWorkers, kClients };

/// A server's side: sweeps what is ready into batches and scatters their answers.
class ServerPort {
 public:
  /// `epoch` is new for each process that serves in this block's place.
  ServerPort(Segment& segment, std::uint32_t server, std::uint32_t epoch, Spin spin = Spin::kFixed,
             Peers peers = Peers::kWorkers)
      : segment_(segment),
        server_(server),
        epoch_(epoch),
        spin_(spin),
        peers_(peers),
        block_(segment.server(server)),
        held_(std::size_t{segment.sizes().num_workers} * segment.sizes().slots_per_worker) {
    if (server >= segment.sizes().num_servers) throw std::invalid_argument("server out of range");
  }

  struct Staging {
    std::byte* states;     ///< [B, state_dim], wire type.
    std::uint64_t* masks;  ///< [B, mask_words]
  };
  struct Gathered {
    std::uint64_t batch = 0;  ///< Names the batch in `scatter`.
    std::uint32_t rows = 0;   ///< 0: nothing to do yet.
  };

  /// Waits for a batch that may fire and copies it into `staging`, oldest requests first.
  ///
  /// It fires when it is full; or when no worker of ours is filling a slot; or when the oldest
  /// request has waited `timeout_ns`, unless `other_in_flight`: while another batch computes, an
  /// unfull one stays open as long as somebody is filling. Returns 0 rows after `wait_ns` (at most
  /// 100 ms) so that the caller can look elsewhere. Never holds a lock.
  Gathered gather(const Staging& staging, std::uint32_t limit_rows, std::uint64_t timeout_ns,
                  bool other_in_flight, std::uint64_t wait_ns, std::uint64_t spin_ns) {
    const std::uint64_t start = now_ns();
    const std::uint64_t end = start + std::min(wait_ns, kLongestWaitNs);
    for (;;) {
      std::uint64_t now;
      const bool filling = sweep(now);
      if (backlog_rows_ > 0) {
        const std::uint64_t oldest = taken_[backlog_.front()].request_ns;
        const bool waited = now >= oldest + timeout_ns;
        if (backlog_rows_ >= limit_rows || !filling || (waited && !other_in_flight)) {
          add(block_.wait_ns, now - start);
          return fill(staging, limit_rows, now);
        }
      }
      if (now >= end) {
        add(block_.wait_ns, now - start);
        return {};
      }
      std::uint64_t sleep = end - now;
      if (backlog_rows_ > 0 && !other_in_flight) {
        const std::uint64_t due = taken_[backlog_.front()].request_ns + timeout_ns;
        sleep = std::min(sleep, due > now ? due - now : 1);
      }
      const std::uint64_t spin = spin_ == Spin::kFixed ? spin_ns : budget_.next(spin_ns);
      block_.bell.wait(sleep, spin, [&] { return anything_new(filling); });
      if (spin_ == Spin::kAdaptive) budget_.report(spin, now_ns() - now);
    }
  }

  /// Writes a batch's answers into its slots and wakes their workers, each once. With
  /// `check_finite` a request whose answer holds NaN or infinity fails instead. Returns what one of
  /// those was told, an empty string where there is none.
  std::string scatter(std::uint64_t batch, const float* policies, const float* values,
                      std::uint32_t version, bool check_finite = false) {
    const SegmentSizes& sizes = segment_.sizes();
    std::string told;
    finish_batch(batch, version,
                 [&](const Piece& piece, Taken& taken, const SlotRows& out, std::uint32_t rows) {
                   const std::size_t from = rows, to = piece.first_row, number = piece.num_rows;
                   float* policy = out.policies + to * sizes.action_dim;
                   float* value = out.values + to * sizes.value_dim;
                   std::memcpy(policy, policies + from * sizes.action_dim,
                               number * sizes.action_dim * sizeof(float));
                   std::memcpy(value, values + from * sizes.value_dim,
                               number * sizes.value_dim * sizeof(float));
                   if (!check_finite) return;
                   const std::string wrong = not_finite(piece, out);
                   if (wrong.empty()) return;
                   taken.failed = true;
                   say(*out.header, wrong);
                   told = wrong;
                 });
    return told;
  }

  /// Takes a batch apart into one for each request in it, to be copied again by `refill`.
  std::vector<std::uint64_t> split(std::uint64_t batch) {
    const auto found = find_batch(batch);
    const Batch whole = std::move(*found);
    batches_.erase(found);
    std::vector<std::uint64_t> parts;
    for (const Piece& piece : whole.pieces) {
      parts.push_back(next_batch_);
      batches_.push_back({next_batch_++, whole.gathered_ns, {piece}});
    }
    return parts;
  }

  /// Rows of a batch that is not answered yet.
  std::uint32_t num_rows(std::uint64_t batch) {
    std::uint32_t rows = 0;
    for (const Piece& piece : find_batch(batch)->pieces) rows += piece.num_rows;
    return rows;
  }

  /// Copies the rows of a batch that is not answered yet into `staging`; returns how many. It has
  /// room for the batch that they were gathered with.
  std::uint32_t refill(std::uint64_t batch, const Staging& staging) {
    std::uint32_t rows = 0;
    for (const Piece& piece : find_batch(batch)->pieces) {
      copy_piece(piece, staging, rows);
      rows += piece.num_rows;
    }
    return rows;
  }

  /// Answers a batch's slots with what went wrong instead (UTF-8, cut to the header's room). A slot
  /// that is served in pieces has failed where one of them has.
  void fail(std::uint64_t batch, const std::string& message, std::uint32_t version) {
    finish_batch(batch, version,
                 [&](const Piece&, Taken& taken, const SlotRows& out, std::uint32_t) {
                   taken.failed = true;
                   say(*out.header, message);
                 });
  }

 private:
  struct Taken {
    std::uint32_t worker, slot;
    std::uint64_t word;  ///< As this server wrote it.
    std::uint64_t request_ns;
    std::uint32_t num_rows;
    std::uint32_t next_row;  ///< First row that no batch has yet.
    std::uint32_t unanswered;
    std::uint32_t version;
    bool failed;
  };
  struct Piece {
    std::uint32_t taken, first_row, num_rows;
  };
  struct Batch {
    std::uint64_t id;
    std::uint64_t gathered_ns;
    std::vector<Piece> pieces;
  };

  static void say(SlotHeader& header, const std::string& message) {
    std::size_t bytes = std::min(message.size(), kMessageBytes - 1);
    if (bytes < message.size()) {
      while (bytes > 0 && (static_cast<unsigned char>(message[bytes]) & 0xc0) == 0x80)
        --bytes;  // within a character
    }
    std::memcpy(header.message, message.data(), bytes);
    header.message[bytes] = 0;
  }

  /// What is wrong with a piece's answers where one of them is NaN or infinite, else an empty
  /// string. A row without a legal action asked for its value alone: a policy of it that is not
  /// finite becomes zeros.
  std::string not_finite(const Piece& piece, const SlotRows& out) const {
    const SegmentSizes& sizes = segment_.sizes();
    const auto look = [&](const char* what, float* answers, std::size_t width, bool needs_action) {
      const auto first = [&](std::size_t row, std::size_t num_rows) {
        const auto* from = reinterpret_cast<const std::byte*>(answers + row * width);
        return first_not_finite(from, num_rows * width, Wire::kFloat32);
      };
      if (first(piece.first_row, piece.num_rows) == piece.num_rows * width) return std::string{};
      for (std::size_t r = 0; r < piece.num_rows; ++r) {
        const std::size_t row = piece.first_row + r;
        const std::size_t place = first(row, 1);
        if (place == width) continue;
        const std::uint64_t* mask = out.masks + row * sizes.mask_words();
        const bool has_action =
            std::any_of(mask, mask + sizes.mask_words(), [](auto word) { return word != 0; });
        if (needs_action && !has_action) {
          std::fill_n(answers + row * width, width, 0.0f);
          continue;
        }
        const float found = answers[row * width + place];
        const char* name = std::isnan(found) ? "NaN" : found > 0 ? "infinity" : "-infinity";
        return std::string("the model answered ") + name + " as " + what + " " +
               std::to_string(place) + " of row " + std::to_string(row) +
               " of this request; a server with check_finite=False (serve: --no-check-finite) "
               "passes such answers on";
      }
      return std::string{};
    };
    const std::string wrong = look("policy", out.policies, sizes.action_dim, true);
    return wrong.empty() ? look("value", out.values, sizes.value_dim, false) : wrong;
  }

  std::atomic<std::uint64_t>& cell_of(const Taken& taken) const {
    return segment_.worker(taken.worker).words[taken.slot];
  }
  std::size_t number_of(std::uint32_t worker, std::uint32_t slot) const {
    return std::size_t{worker} * segment_.sizes().slots_per_worker + slot;
  }

  std::deque<Batch>::iterator find_batch(std::uint64_t batch) {
    const auto found = std::find_if(batches_.begin(), batches_.end(),
                                    [&](const Batch& b) { return b.id == batch; });
    if (found == batches_.end()) {
      throw std::invalid_argument("batch " + std::to_string(batch) +
                                  " is none that was gathered and has no answer yet");
    }
    return found;
  }

  /// Lets `answer(piece, taken, slot, row of the batch)` write each piece, hands full slots back
  /// and wakes their workers, each once.
  template <class Answer>
  void finish_batch(std::uint64_t batch, std::uint32_t version, Answer&& answer) {
    const auto found = find_batch(batch);
    std::uint32_t rows = 0;
    std::uint32_t last_worker = UINT32_MAX;
    const auto ring = [&] {
      if (last_worker != UINT32_MAX) segment_.worker(last_worker).bell.ring();
    };
    for (const Piece& piece : found->pieces) {
      Taken& taken = taken_[piece.taken];
      const SlotRows out = slot_rows(segment_, taken.worker, taken.slot);
      // Given up, or written over: the answer area may be another's. Relaxed: `finish` decides.
      const bool is_wanted = cell_of(taken).load(std::memory_order_relaxed) == taken.word;
      if (is_wanted) answer(piece, taken, out, rows);
      rows += piece.num_rows;
      taken.unanswered -= piece.num_rows;
      taken.version = std::min(taken.version, version);
      if (taken.unanswered > 0) continue;
      if (is_wanted) {
        out.header->version = taken.version;
        out.header->failed = taken.failed;
      }
      finish(taken);
      if (taken.worker != last_worker) ring();
      last_worker = taken.worker;
      free_taken_.push_back(piece.taken);
    }
    ring();
    const std::uint64_t now = now_ns();
    add(block_.batches, 1);
    add(block_.rows, rows);
    add(block_.busy_ns, now - std::max(found->gathered_ns, last_scatter_ns_));
    last_scatter_ns_ = now;
    for (const Piece& piece : found->pieces) {
      const Taken& taken = taken_[piece.taken];
      if (taken.unanswered == 0) add(block_.waits[wait_bin(now - taken.request_ns)], 1);
    }
    block_.last_batch_ns.store(now, std::memory_order_relaxed);  // a report
    block_.version.store(version, std::memory_order_relaxed);    // likewise
    add(block_.histogram[batch_bin(rows)], 1);
    batches_.erase(found);
  }

  /// One writer: a plain add would do; atomic only so that others may read.
  static void add(std::atomic<std::uint64_t>& counter, std::uint64_t amount) {
    counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }

  /// Takes every ready slot into the backlog. Returns whether anybody is filling, and the time.
  bool sweep(std::uint64_t& now) {
    bool filling = false;
    const std::size_t before = backlog_.size();
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
                               case SlotState::kReady: take(w, s, cell, word); break;
                               default: mend(w, s, cell, word);
                             }
                             return true;
                           });
    now = now_ns();
    for (std::size_t i = before; i < backlog_.size(); ++i) {  // it may be what a client wrote
      taken_[backlog_[i]].request_ns = std::min(taken_[backlog_[i]].request_ns, now);
    }
    if (backlog_.size() > before + 1) {
      std::stable_sort(backlog_.begin() + static_cast<std::ptrdiff_t>(before), backlog_.end(),
                       [&](std::uint32_t a, std::uint32_t b) {
                         return taken_[a].request_ns < taken_[b].request_ns;
                       });
    }
    return filling;
  }

  void take(std::uint32_t w, std::uint32_t s, std::atomic<std::uint64_t>& cell, SlotWord word) {
    if (held_[number_of(w, s)]) return;  // written over; `finish` finds it
    const SlotWord mine = SlotWord::make(word.generation(), epoch_, SlotState::kTaken);
    // Against a cancel or the reaper, who would free it.
    if (!cell.compare_exchange_strong(word.bits, mine.bits, std::memory_order_acq_rel)) return;
    SlotHeader& header = *slot_rows(segment_, w, s).header;
    const std::uint32_t rows = header.num_rows;
    if (rows == 0 || rows > segment_.sizes().rows_per_slot) {
      add(block_.refused, 1);
      say(header, "the request says that it has " + std::to_string(rows) +
                      " rows; a slot of this service holds 1.." +
                      std::to_string(segment_.sizes().rows_per_slot));
      header.failed = 1;
      // Relaxed: our own. Release: as in `finish`.
      header.version = static_cast<std::uint32_t>(block_.version.load(std::memory_order_relaxed));
      finish({w, s, mine.bits, 0, 0, 0, 0, 0, true});
      segment_.worker(w).bell.ring();
      return;
    }
    std::uint32_t place;
    if (free_taken_.empty()) {
      place = static_cast<std::uint32_t>(taken_.size());
      taken_.emplace_back();
    } else {
      place = free_taken_.back();
      free_taken_.pop_back();
    }
    taken_[place] = {w, s, mine.bits, header.request_ns, rows, 0, rows, UINT32_MAX, false};
    held_[number_of(w, s)] = true;
    backlog_.push_back(place);
    backlog_rows_ += rows;
  }

  /// For a word that nobody can have left: one that says that the slot is ours where it is not,
  /// that names no state, or of a client that fills. Its owner finds out by the word.
  void mend(std::uint32_t w, std::uint32_t s, std::atomic<std::uint64_t>& cell, SlotWord word) {
    if (held_[number_of(w, s)]) return;  // ours, or written over: `finish` finds it
    const SlotWord to = word.state() == SlotState::kTaken ? word.with(SlotState::kReady)
                                                          : word.next(SlotState::kFree);
    if (!cell.compare_exchange_strong(word.bits, to.bits, std::memory_order_acq_rel)) return;
    add(block_.refused, 1);
    segment_.worker(w).bell.ring();
  }

  /// A ready slot, or the end of all filling that was seen.
  bool anything_new(bool was_filling) const {
    bool ready = false, filling = false;
    segment_.for_each_slot(
        server_, [&](std::uint32_t, std::uint32_t, std::atomic<std::uint64_t>& cell) {
          const SlotState state = SlotWord{cell.load(std::memory_order_acquire)}.state();
          filling |= state == SlotState::kFilling;
          ready = state == SlotState::kReady;
          return !ready;
        });
    return ready || (was_filling && !filling && backlog_rows_ > 0);
  }

  /// To row `row` of `staging` and those behind it.
  void copy_piece(const Piece& piece, const Staging& staging, std::uint32_t row) const {
    const SegmentSizes& sizes = segment_.sizes();
    const Taken& taken = taken_[piece.taken];
    const SlotRows in = slot_rows(segment_, taken.worker, taken.slot);
    std::memcpy(staging.states + row * sizes.state_bytes(),
                in.states + piece.first_row * sizes.state_bytes(),
                piece.num_rows * sizes.state_bytes());
    std::memcpy(staging.masks + static_cast<std::size_t>(row) * sizes.mask_words(),
                in.masks + static_cast<std::size_t>(piece.first_row) * sizes.mask_words(),
                static_cast<std::size_t>(piece.num_rows) * sizes.mask_words() * 8);
  }

  Gathered fill(const Staging& staging, std::uint32_t limit_rows, std::uint64_t now) {
    Batch batch = {next_batch_++, now, {}};
    std::uint32_t rows = 0;
    while (rows < limit_rows && !backlog_.empty()) {
      Taken& taken = taken_[backlog_.front()];
      const Piece piece = {backlog_.front(), taken.next_row,
                           std::min(limit_rows - rows, taken.num_rows - taken.next_row)};
      copy_piece(piece, staging, rows);
      batch.pieces.push_back(piece);
      taken.next_row += piece.num_rows;
      rows += piece.num_rows;
      if (taken.next_row == taken.num_rows) backlog_.pop_front();
    }
    backlog_rows_ -= rows;
    batches_.push_back(std::move(batch));
    return {batches_.back().id, rows};
  }

  /// Hands an answered slot back to its worker, or frees it where the worker gave it up.
  void finish(const Taken& taken) {
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
      add(block_.refused, 1);  // written over: what it is now is the next sweep's matter
    }
  }

  Segment& segment_;
  std::uint32_t server_;
  std::uint32_t epoch_;
  Spin spin_;
  Peers peers_;
  ServerBlock& block_;
  SpinBudget budget_;
  std::vector<bool> held_;  ///< By number_of: whether the slot is among the taken.
  std::vector<Taken> taken_;
  std::vector<std::uint32_t> free_taken_;
  std::deque<std::uint32_t> backlog_;  ///< Slots with rows that no batch has yet, oldest first.
  std::uint32_t backlog_rows_ = 0;
  std::deque<Batch> batches_;  ///< Gathered and not scattered.
  std::uint64_t next_batch_ = 1;
  std::uint64_t last_scatter_ns_ = 0;
};

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

/// Whether a slot waits for its server: only that can move it on.
inline bool is_held(SlotState state) {
  return state == SlotState::kReady || state == SlotState::kTaken || state == SlotState::kOrphaned;
}

/// Whether a worker has nothing to do but to wait for its servers: they hold some of its slots, and
/// the others are free.
inline bool waits_for_servers(const Segment& segment, std::uint32_t worker) {
  bool waits = false;
  for (std::uint32_t slot = 0; slot < segment.sizes().slots_per_worker; ++slot) {
    const SlotState state =
        SlotWord{segment.worker(worker).words[slot].load(std::memory_order_acquire)}.state();
    if (!is_held(state) && state != SlotState::kFree) return false;
    waits |= is_held(state);
  }
  return waits;
}

/// A slot that waits for its server, see is_held.
struct HeldSlot {
  std::uint32_t worker, slot, generation;
};

/// The slots of a server that only it can move on.
inline std::vector<HeldSlot> held_slots(const Segment& segment, std::uint32_t server) {
  std::vector<HeldSlot> held;
  segment.for_each_slot(server,
                        [&](std::uint32_t w, std::uint32_t s, std::atomic<std::uint64_t>& cell) {
                          const SlotWord word{cell.load(std::memory_order_acquire)};
                          if (is_held(word.state())) held.push_back({w, s, word.generation()});
                          return true;
                        });
  return held;
}

}  // namespace shmzero
