// A client's side of a service: one request in flight, in a block of the segment that it claims and
// gives back. Whoever wants several in flight has several. Knows no names and no Python: those who
// find the segment, notice that a server is gone and ask again are service/link.py and
// service/pending.py.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "shm/finite.h"
#include "shm/masks.h"
#include "shm/slot.h"
#include "shm/worker_port.h"

namespace shmzero {

/// The model raised; what it said.
struct FailedRequest : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// One request at a time, in a block that is ours as long as its owner word names us and its slot's
/// word is what we left or wait for. Whatever finds that it is not throws SlotLost: the block may
/// be another's by then, and is not touched.
class RequestPort {
 public:
  static constexpr std::uint32_t kNone = UINT32_MAX;

  /// Claims a block whose slot is free: one that nobody has, else one that rests; kNone where there
  /// is neither. A process that dies right after leaves a block that the reaper frees.
  static std::uint32_t claim(Segment& segment, std::uint64_t identity) {
    for (const std::uint64_t kind : {std::uint64_t{0}, kResting}) {
      for (std::uint32_t block = 0; block < segment.sizes().num_workers; ++block) {
        std::atomic<std::uint64_t>& owner = segment.worker(block).owner;
        std::uint64_t found = owner.load(std::memory_order_relaxed);  // the CAS decides
        if (kind == 0 ? found != 0 : (found & kResting) == 0) continue;
        // Acquire: pairs with the release of whoever left it.
        if (!owner.compare_exchange_strong(found, identity, std::memory_order_acq_rel)) continue;
        if (is_free(segment.worker(block).words[0])) return block;
        change_owner(owner, identity, 0);  // a server still computes for its predecessor
      }
    }
    return kNone;
  }

  /// `block` as `claim` returned it to this identity.
  RequestPort(Segment& segment, std::uint32_t block, std::uint64_t identity)
      : segment_(segment),
        block_(block),
        identity_(identity),
        pid_(getpid()),
        port_(segment, block) {
    port_.adopt(0);
  }
  ~RequestPort() { close(); }
  RequestPort(const RequestPort&) = delete;
  RequestPort& operator=(const RequestPort&) = delete;

  std::uint32_t block() const { return block_; }
  SlotRows rows() const { return port_.rows(0); }

  /// Leaves the block, whose slot is free, to whoever needs one. Only `resume` or `close` may
  /// follow. False where it is not ours: only `close` may follow.
  bool rest() {
    rests_ = port_.is_held(0) && change_owner(owner(), identity_, identity_ | kResting);
    return rests_;
  }

  /// Takes the block up again. False where somebody needed it: it is another's then.
  bool resume() {
    if (!change_owner(owner(), identity_ | kResting, identity_)) return false;
    rests_ = false;
    return port_.adopt(0);
  }

  /// Publishes what has been written to the slot, which is free until then: a server does not wait
  /// for somebody who takes his time, or is stopped. Throws std::invalid_argument where a state is
  /// not finite, std::logic_error in the child of a fork.
  void publish(std::uint32_t num_rows) {
    check_ours();
    check_finite(rows().states, num_rows, segment_.sizes());
    port_.publish(0, num_rows);
  }

  /// Copies rows in and publishes them. states [n, state_dim] of the wire's type, masks [n,
  /// action_dim]. Throws std::invalid_argument where a state is not finite; nothing has happened
  /// then.
  void submit(const std::byte* states, const std::uint8_t* masks, std::uint32_t num_rows) {
    const SegmentSizes& sizes = segment_.sizes();
    check_finite(states, num_rows, sizes);
    check_ours();
    const SlotRows to = rows();
    std::memcpy(to.states, states, num_rows * sizes.state_bytes());
    for (std::size_t r = 0; r < num_rows; ++r) {
      pack_mask(masks + r * sizes.action_dim, sizes.action_dim, to.masks + r * sizes.mask_words());
    }
    port_.publish(0, num_rows);
  }

  /// Whether the service has left on purpose. Acquire: pairs with close_service (service.h).
  bool service_closed() const {
    return segment_.server(segment_.server_of(block_, 0)).closed.load(std::memory_order_acquire) !=
           0;
  }

  bool answered() const { return port_.answered(0); }

  /// Waits for the answer, at most 100 ms; no longer where the service has left. Spins for at most
  /// `spin_ns` before it sleeps, less where that has been in vain.
  bool wait(std::uint64_t timeout_ns, std::uint64_t spin_ns) {
    const std::uint64_t spin = budget_.next(spin_ns);
    const std::uint64_t start = now_ns();
    port_.block().bell.wait(timeout_ns, spin,
                            [&] { return !port_.must_wait(0) || service_closed(); });
    budget_.report(spin, now_ns() - start);
    return port_.answered(0);
  }

  /// Throws FailedRequest where the model raised; the slot is free again then.
  void check_answer() {
    SlotHeader& header = *rows().header;
    if (header.failed == 0) return;
    const std::string message(header.message, strnlen(header.message, kMessageBytes));
    port_.release(0);
    throw FailedRequest(message);
  }

  /// Copies the answer out, returns the weights' version; the slot is free again. What was copied
  /// is the answer unless this throws: the slot's word has been the same from beginning to end.
  std::uint32_t take(float* policies, float* values, std::uint32_t num_rows) {
    const SegmentSizes& sizes = segment_.sizes();
    check_answer();
    const SlotRows from = rows();
    std::memcpy(policies, from.policies,
                std::size_t{num_rows} * sizes.action_dim * sizeof *policies);
    std::memcpy(values, from.values, std::size_t{num_rows} * sizes.value_dim * sizeof *values);
    const std::uint32_t version = from.header->version;
    port_.release(0);
    return version;
  }

  /// Gives the block back, in whatever state it is. Nothing else may be called afterwards.
  void close() {
    if (closed_ || getpid() != pid_) return;  // in the child of a fork it is the parent's
    closed_ = true;
    if (rests_) {
      change_owner(owner(), identity_ | kResting, 0);  // unless it is another's by now
      return;
    }
    port_.cancel(0);
    if (port_.is_held(0)) change_owner(owner(), identity_, 0);
  }

  std::uint32_t version() const { return rows().header->version; }
  /// What was read in the slot was its answer, unless this throws.
  void release() { port_.release(0); }

  /// Gives the request up. False where the slot is the server's until it has done with it, where it
  /// is not ours, and in the child of a fork, which has nothing to give up.
  bool cancel() {
    if (getpid() != pid_) return false;
    port_.cancel(0);
    return port_.is_held(0) && port_.load(0).state() == SlotState::kFree;
  }

 private:
  /// False where it is not `from`'s. Acquire and release: every owner pairs with the one before.
  static bool change_owner(std::atomic<std::uint64_t>& owner, std::uint64_t from,
                           std::uint64_t to) {
    return owner.compare_exchange_strong(from, to, std::memory_order_acq_rel);
  }

  /// Whether the slot of a block that was nobody's is free, or made so where no server has it.
  static bool is_free(std::atomic<std::uint64_t>& cell) {
    SlotWord word{cell.load(std::memory_order_acquire)};
    if (word.state() == SlotState::kFree) return true;
    if (word.state() == SlotState::kTaken || word.state() == SlotState::kOrphaned) return false;
    return cell.compare_exchange_strong(word.bits, word.next(SlotState::kFree).bits,
                                        std::memory_order_acq_rel);
  }

  std::atomic<std::uint64_t>& owner() { return port_.block().owner; }

  /// Throws where rows may not be written to the slot.
  void check_ours() {
    if (getpid() != pid_) {
      throw std::logic_error("this request belongs to process " + std::to_string(pid_) +
                             ", of which this one is a fork");
    }
    if (port_.is_out(0)) throw std::logic_error("request port is in use");
    port_.check_held(0);
    const std::uint64_t found = owner().load(std::memory_order_relaxed);  // publish's CAS decides
    if (found != identity_) {
      throw SlotLost("block " + std::to_string(block_) + " belongs to process " +
                     std::to_string(identity_pid(found)));
    }
  }

  Segment& segment_;
  std::uint32_t block_;
  std::uint64_t identity_;
  pid_t pid_;
  bool rests_ = false;  ///< The block is anybody's.
  bool closed_ = false;
  WorkerPort port_;
  SpinBudget budget_;
};

}  // namespace shmzero
