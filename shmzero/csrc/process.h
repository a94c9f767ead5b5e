// Who a process is: its pid and when it started, in one word that can be claimed by one CAS.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace shmzero {

inline constexpr int kPidBits = 22;  ///< The kernel's PID_MAX_LIMIT.

/// Start time in ticks since boot (42 bits) | pid (22). 0 where no such process lives; a zombie
/// does not. Two processes with one pid differ in their start. Source: proc(5), /proc/pid/stat.
inline std::uint64_t process_identity(pid_t pid) {
  char path[32], text[1024];
  std::snprintf(path, sizeof path, "/proc/%d/stat", static_cast<int>(pid));
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  const std::size_t bytes = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  text[bytes] = 0;
  const char* field = std::strrchr(text, ')');  // the name in parentheses may hold anything
  if (field == nullptr || field[1] == 0) return 0;
  field += 2;  // field 3, the state
  if (*field == 'Z' || *field == 'X') return 0;
  for (int number = 3; number < 22; ++number) {
    field = std::strchr(field, ' ');
    if (field == nullptr) return 0;
    ++field;
  }
  return std::strtoull(field, nullptr, 10) << kPidBits | static_cast<std::uint64_t>(pid);
}

inline pid_t identity_pid(std::uint64_t identity) {
  return static_cast<pid_t>(identity & ((1u << kPidBits) - 1));
}

/// Whether the process of an identity lives.
inline bool is_alive(std::uint64_t identity) {
  return identity != 0 && process_identity(identity_pid(identity)) == identity;
}

/// The namespace that this process's pids belong to.
inline std::uint64_t pid_namespace() {
  struct stat status;
  return stat("/proc/self/ns/pid", &status) == 0 ? static_cast<std::uint64_t>(status.st_ino) : 0;
}

}  // namespace shmzero
