// Who a process is, in one word that can be claimed by one CAS, and whether it lives.
//
// Death has three values. What cannot be looked at (no descriptors left, hidepid, no memory, a
// /proc of other processes) is unknown, and whoever asks takes that for alive.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

namespace shmzero {

inline constexpr int kPidBits = 22;  ///< The kernel's PID_MAX_LIMIT.

enum class Life { kAlive, kDead, kUnknown };

/// A file of /proc as a whole; none where it cannot be read, which says nothing of its process.
inline std::optional<std::string> read_proc(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  std::string text;
  char part[1024];
  ssize_t bytes;
  while ((bytes = read(fd, part, sizeof part)) > 0 || (bytes < 0 && errno == EINTR)) {
    if (bytes > 0) text.append(part, static_cast<std::size_t>(bytes));
  }
  close(fd);
  if (bytes < 0 || text.empty()) return std::nullopt;
  return text;
}

struct ProcessStat {
  char state;
  std::uint64_t num_threads;
  std::uint64_t start;  ///< Ticks since boot.
};

/// Source: proc(5), /proc/pid/stat.
inline std::optional<ProcessStat> process_stat(const char* path) {
  const std::optional<std::string> text = read_proc(path);
  if (!text) return std::nullopt;
  const char* field = std::strrchr(text->c_str(), ')');  // the name in it may hold anything
  if (field == nullptr || field[1] == 0) return std::nullopt;
  field += 2;  // field 3
  ProcessStat stat = {*field, 0, 0};
  for (int number = 3; number < 22; ++number) {
    field = std::strchr(field, ' ');
    if (field == nullptr) return std::nullopt;
    ++field;
    if (number + 1 == 20) stat.num_threads = std::strtoull(field, nullptr, 10);
  }
  stat.start = std::strtoull(field, nullptr, 10);
  return stat;
}

/// Whether /proc is known to number processes as this process does; it may have been mounted for
/// another pid namespace. Source: proc(5), NStgid: from the namespace of /proc to that of the
/// process.
inline bool proc_is_ours() {
  static std::atomic<pid_t> known = 0;  // who has found that it is; negative: that it is not
  const pid_t pid = getpid();           // another after a fork
  const pid_t found = known.load(std::memory_order_relaxed);  // a cache, which orders nothing
  if (found == pid || found == -pid) return found == pid;
  const std::optional<std::string> status = read_proc("/proc/self/status");
  if (!status) return false;
  const std::size_t line = status->find("\nNStgid:\t");
  bool ours = true;  // a kernel without namespaces
  if (line != std::string::npos) {
    char* end;
    ours = std::strtol(status->c_str() + line + 9, &end, 10) == pid && *end == '\n';
  }
  known.store(ours ? pid : -pid, std::memory_order_relaxed);
  return ours;
}

/// This process: start time in ticks since boot (42 bits) | pid (22). Two processes with one pid
/// differ in their start, which is 0 where it could not be looked at.
inline std::uint64_t own_identity() {
  const std::optional<ProcessStat> stat = process_stat("/proc/self/stat");
  return (stat ? stat->start << kPidBits : 0) | static_cast<std::uint64_t>(getpid());
}

inline pid_t identity_pid(std::uint64_t identity) {
  return static_cast<pid_t>(identity & ((1u << kPidBits) - 1));
}

/// Whether the process of an identity lives. Dead is only: nobody has its pid, somebody with
/// another start has it, or all of its threads have ended and it waits for its parent to hear of
/// it.
inline Life life_of(std::uint64_t identity) {
  const pid_t pid = identity_pid(identity);
  if (pid == 0) return Life::kDead;  // no process has this number
  const auto is_gone = [pid] { return kill(pid, 0) != 0 && errno == ESRCH; };
  if (is_gone()) return Life::kDead;
  if (!proc_is_ours()) return Life::kUnknown;
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/stat", static_cast<int>(pid));
  const std::optional<ProcessStat> stat = process_stat(path);
  // A missing file alone says nothing: with hidepid other users' are missing.
  if (!stat) return is_gone() ? Life::kDead : Life::kUnknown;
  const std::uint64_t start = identity >> kPidBits;
  if (start != 0 && stat->start != start) return Life::kDead;
  // A first thread that has ended is a zombie as well, while others go on.
  if ((stat->state == 'Z' || stat->state == 'X') && stat->num_threads <= 1) return Life::kDead;
  return start != 0 ? Life::kAlive : Life::kUnknown;
}

/// A namespace of this process ("pid", "time"); 0 where there is none, or no /proc to ask.
inline std::uint64_t own_namespace(const char* kind) {
  struct stat status;
  const std::string path = std::string("/proc/self/ns/") + kind;
  return stat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_ino) : 0;
}

}  // namespace shmzero
