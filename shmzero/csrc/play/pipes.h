// What crosses the pipes of a worker: the units that it shall play in one direction, the records of
// their finished rounds in the other. The learner is fed by frames of the same kind. Both ends are
// processes of one build on one machine: numbers cross as they lie in memory.
//
// A grant is one Unit. A frame is: bytes that follow this number u32 | unit u64 | 1 where the
// record is the unit's last, else 0, u32 | the record (record.h).
// Knows no processes. Read next: lane.h, which plays units; worker.h, which reads and writes them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "game/cards.h"

namespace shmzero {

/// A unit to play: a round, or a game, from its start or from a later round on.
struct Unit {
  std::uint64_t id;
  std::uint32_t first_round = 0;
  std::uint32_t unused = 0;
  std::array<std::int16_t, kMaxPlayers> totals = {};  ///< Points before that round, by seat.
};
static_assert(sizeof(Unit) == 32 && std::is_trivially_copyable_v<Unit>);

/// Grants in one write: PIPE_BUF bytes, which a pipe takes whole or not at all.
inline constexpr std::size_t kMaxGrantsPerWrite = 4096 / sizeof(Unit);

/// A finished round; those of a unit come in order.
struct FinishedRound {
  std::uint64_t unit;
  std::string record;
  bool last;  ///< The unit is finished with it.
};

/// A frame that has come, within the bytes that hold it.
struct Frame {
  std::uint64_t unit;
  std::string_view record;
  bool last;
  std::size_t num_bytes;  ///< Of the whole frame.
};
inline constexpr std::size_t kFrameHead = sizeof(std::uint64_t) + sizeof(std::uint32_t);

inline void append_frame(std::string& out, std::uint64_t unit, bool last, std::string_view record) {
  const auto put = [&](auto value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  put(static_cast<std::uint32_t>(kFrameHead + record.size()));
  put(unit);
  put(std::uint32_t{last});
  out += record;
}

/// The frame that `bytes` begin with, which must outlive it; none where it has not come whole.
/// Throws std::invalid_argument where no frame begins so.
inline std::optional<Frame> first_frame(std::string_view bytes) {
  std::uint32_t follow, last;
  Frame frame = {};
  if (bytes.size() < sizeof follow) return std::nullopt;
  std::memcpy(&follow, bytes.data(), sizeof follow);
  if (follow < kFrameHead) {
    throw std::invalid_argument("frame of " + std::to_string(follow) +
                                " bytes; allowed: " + std::to_string(kFrameHead) + " or more");
  }
  bytes.remove_prefix(sizeof follow);
  if (bytes.size() < follow) return std::nullopt;
  std::memcpy(&frame.unit, bytes.data(), sizeof frame.unit);
  std::memcpy(&last, bytes.data() + sizeof frame.unit, sizeof last);
  frame.last = last != 0;
  frame.record = bytes.substr(kFrameHead, follow - kFrameHead);
  frame.num_bytes = sizeof follow + follow;
  return frame;
}

}  // namespace shmzero
