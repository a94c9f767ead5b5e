// A doorbell: wakes the other side, carries no truth. Whoever waits looks at the slot words itself.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

namespace shmzero {

inline std::uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000u +
         static_cast<std::uint64_t>(t.tv_nsec);
}

inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Longest sleep: whatever is lost, everybody looks again after this.
inline constexpr std::uint64_t kLongestWaitNs = 100'000'000;

/// Whether a waiter spins as long as it is told to, or less where that is in vain.
enum class Spin { kFixed, kAdaptive };

/// How long it pays to spin before sleeping. Where processes outnumber cores a spin keeps the very
/// process from its core that it waits for: spins that were in vain shorten the next ones to
/// nothing, one that was not restores them. Private to its waiter.
class SpinBudget {
 public:
  /// At most `most_ns`; now and then that much in any case, to see whether it pays again.
  std::uint64_t next(std::uint64_t most_ns) {
    if (vain_ == 0 || ++since_try_ >= kTryEvery) return most_ns;
    return vain_ < kMostVain ? most_ns >> vain_ : 0;
  }

  /// After a wait that was allowed to spin for `spin_ns` and took `waited_ns`.
  void report(std::uint64_t spin_ns, std::uint64_t waited_ns) {
    if (spin_ns == 0) return;
    since_try_ = 0;
    if (waited_ns <= spin_ns) {
      vain_ = 0;
    } else if (vain_ < kMostVain) {
      ++vain_;
    }
  }

 private:
  static constexpr std::uint32_t kMostVain = 4;
  static constexpr std::uint32_t kTryEvery = 64;
  std::uint32_t vain_ = 0;       ///< Spins in a row that somebody slept after.
  std::uint32_t since_try_ = 0;  ///< Waits without a spin.
};

/// One waiter, any number of ringers, in different processes.
///
/// One word, which is futex and flag at once: 1 while the waiter sleeps or is about to. Zeros are a
/// doorbell, and whatever else the word may hold, after a death or in a segment that is not sound,
/// costs a look and nothing more (a sem_t of which that is true there is not: glibc aborts).
class Doorbell {
 public:
  /// After publishing. The fence pairs with the one in `wait`: either this side sees the flag, or
  /// the waiter's second look sees what was published.
  void ring() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    // Relaxed: ordered by the fence; the exchange lets one ringer wake for one raised flag.
    if (waiting_.load(std::memory_order_relaxed) != 0 &&
        waiting_.exchange(0, std::memory_order_relaxed) != 0) {
      futex(FUTEX_WAKE, INT_MAX, nullptr);
    }
  }

  /// Until `ready()` or the time is up (at most kLongestWaitNs). Spins for `spin_ns` first.
  /// Returns the last look at `ready()`.
  template <class Ready>
  bool wait(std::uint64_t timeout_ns, std::uint64_t spin_ns, Ready&& ready) {
    if (ready()) return true;
    const std::uint64_t start = now_ns();
    if (timeout_ns > kLongestWaitNs) timeout_ns = kLongestWaitNs;
    const std::uint64_t end = start + timeout_ns;
    for (std::uint64_t now = start; now < end && now - start < spin_ns; now = now_ns()) {
      for (int i = 0; i < 32; ++i) {
        if (ready()) return true;
        spin_pause();
      }
    }
    for (;;) {
      waiting_.store(1,
                     std::memory_order_relaxed);  // ordered by the fence, which pairs with ring's
      std::atomic_thread_fence(std::memory_order_seq_cst);
      if (ready() || now_ns() >= end) break;
      const timespec until = {static_cast<time_t>(end / 1'000'000'000u),
                              static_cast<long>(end % 1'000'000'000u)};
      // Returns at once where somebody has rung since. Absolute, CLOCK_MONOTONIC; see futex(2).
      futex(FUTEX_WAIT_BITSET, 1, &until);
    }
    waiting_.store(0, std::memory_order_relaxed);
    return ready();
  }

 private:
  void futex(int operation, std::uint32_t value, const timespec* until) {
    syscall(SYS_futex, &waiting_, operation, value, until, nullptr, FUTEX_BITSET_MATCH_ANY);
  }

  std::atomic<std::uint32_t> waiting_;  ///< Waiter raises it; whoever rings takes it down.
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint32_t>) == 4, "the kernel compares four bytes");

}  // namespace shmzero
