// What a server counts in its block: sums since the segment was made, for any process to read.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/shm_layout.h"

namespace shmzero {

/// The one writer of a server's sums.
class ServerStats {
 public:
  explicit ServerStats(ServerBlock& block) : block_(block) {}

  void count_wait(std::uint64_t ns) { add_to(block_.wait_ns, ns); }
  /// A word or a number of rows that nobody may have left.
  void count_refused() { add_to(block_.refused, 1); }
  void count_answered_request(std::uint64_t ns) { add_to(block_.waits[wait_bin(ns)], 1); }

  /// A batch that was gathered at `gathered_ns` is answered now. It kept the server busy from then
  /// on, or from the end of the batch before, whichever is later.
  void count_batch(std::uint32_t rows, std::uint64_t gathered_ns, std::uint32_t version,
                   std::uint64_t now) {
    add_to(block_.batches, 1);
    add_to(block_.rows, rows);
    add_to(block_.busy_ns, now - std::max(gathered_ns, last_batch_ns_));
    last_batch_ns_ = now;
    block_.last_batch_ns.store(now, std::memory_order_relaxed);
    block_.version.store(version, std::memory_order_relaxed);
    add_to(block_.histogram[batch_bin(rows)], 1);
  }

  /// Of the weights that answered last.
  std::uint32_t version() const {
    return static_cast<std::uint32_t>(block_.version.load(std::memory_order_relaxed));
  }

 private:
  ServerBlock& block_;
  std::uint64_t last_batch_ns_ = 0;  ///< Of this process's batches.
};

}  // namespace shmzero
