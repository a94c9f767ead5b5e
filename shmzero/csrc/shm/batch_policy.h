// When a batch is started: the one rule of a server. Knows no slots. Read next: server_port.h,
// whose `gather` asks it, with what it has found in the slots.
#pragma once

#include <algorithm>
#include <cstdint>

namespace shmzero {

/// A batch starts when it is full; or when no more requests are being written, so that waiting
/// would bring nothing; or when its oldest request has waited for `timeout_ns`, unless another
/// batch is being computed: until that is done an unfull one stays open for those who are writing.
struct BatchPolicy {
  std::uint32_t limit_rows;      ///< The setting max_batch.
  std::uint64_t timeout_ns;      ///< The setting timeout_ms.
  bool other_in_flight = false;  ///< Another batch is being computed.

  /// Whether requests of `rows` rows, the oldest published at `oldest_ns`, are a batch at `now`.
  bool starts(std::uint32_t rows, std::uint64_t oldest_ns, bool more_coming,
              std::uint64_t now) const {
    const bool is_late = now >= oldest_ns + timeout_ns;
    return rows >= limit_rows || !more_coming || (is_late && !other_in_flight);
  }

  /// How long to sleep until such requests are late, at most `longest_ns`.
  std::uint64_t sleep_ns(std::uint64_t oldest_ns, std::uint64_t now,
                         std::uint64_t longest_ns) const {
    if (other_in_flight) return longest_ns;
    const std::uint64_t due = oldest_ns + timeout_ns;
    return std::min(longest_ns, due > now ? due - now : 1);
  }
};

}  // namespace shmzero
