// The loop of a worker process: lanes on one side, slots on the other, without the GIL.
//
// Units come on one pipe, finished rounds leave on another (pipes.h). Which worker plays a unit
// makes no difference to it.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "play/lane.h"
#include "play/pipes.h"
#include "shm/slot.h"
#include "shm/worker_port.h"

namespace shmzero {

/// Rounds in progress until the first of them is finished, so that it comes soon.
inline constexpr std::uint32_t kFirstLanes = 8;
/// Units of a run that is over soon anyway: all of them at once.
inline constexpr std::uint32_t kShortRun = 16;

class Worker {
 public:
  /// `lanes` rounds at once, split over the slots, each of which must hold their rows.
  Worker(Segment& segment, std::uint32_t worker, int grant_fd, int record_fd, std::uint32_t lanes,
         std::uint64_t spin_ns, const PlaySettings& settings)
      : settings_(settings),
        port_(segment, worker),
        grant_fd_(grant_fd),
        record_fd_(record_fd),
        spin_ns_(spin_ns) {
    const std::uint32_t num_slots = port_.num_slots();
    lanes_per_slot_ = std::max(1u, (lanes + num_slots - 1) / num_slots);
    for (std::uint32_t slot = 0; slot < num_slots; ++slot) groups_.emplace_back(settings_, queue_);
    num_rows_.assign(num_slots, 0);
    capacity_ = segment.sizes().rows_per_slot;
    const std::uint64_t rows = std::uint64_t{lanes_per_slot_} * groups_[0].rows_per_lane();
    if (rows > capacity_) {
      throw std::invalid_argument("slots of " + std::to_string(capacity_) + " rows; " +
                                  std::to_string(lanes_per_slot_) + " lanes need " +
                                  std::to_string(rows));
    }
    port_.block().owner.store(own_identity(), std::memory_order_relaxed);  // a report
    queue_.progress = &port_.block().progress;
    queue_.playing = &port_.block().playing;
  }

  /// Until no unit is left or will come. Throws where a pipe breaks, or a slot comes back failed,
  /// CorruptSegment where neither this worker nor its server wrote what a slot holds.
  void run() {
    for (;;) {
      read_grants();
      const std::uint64_t start = now_ns();
      const bool stepped = step_slots();
      write_finished();
      publish_counters();
      const std::uint64_t stepped_until = now_ns();
      add_to(port_.block().busy_ns, stepped_until - start);
      if (stepped) continue;
      std::uint32_t slots = 0;
      for (std::uint32_t s = 0; s < groups_.size(); ++s) {
        if (port_.is_out(s)) slots |= 1u << s;
      }
      if (slots != 0) {
        port_.wait(slots, kLongestWaitNs, spin_ns_);
      } else if (no_more_grants_ && queue_.waiting.empty()) {
        return;
      } else {
        // Also where a slot is still a dead predecessor's: its server will have freed it by then.
        // A closed pipe is always ready: it must not cut the wait short.
        pollfd grants = {no_more_grants_ ? -1 : grant_fd_, POLLIN, 0};
        poll(&grants, 1, queue_.waiting.empty() ? 100 : 1);
      }
      add_to(port_.block().wait_ns, now_ns() - stepped_until);
    }
  }

 private:
  /// Steps every slot that is ours. Returns whether any was.
  bool step_slots() {
    bool stepped = false;
    for (std::uint32_t slot = 0; slot < groups_.size(); ++slot) {
      LaneGroup& group = groups_[slot];
      const bool may_begin = port_.may_begin(slot);  // also of a slot without work: it may be lost
      const bool is_out = port_.is_out(slot);
      if (is_out) check_rows(slot);
      if (!may_begin || (!is_out && queue_.waiting.empty())) continue;
      const SlotRows rows = port_.rows(slot);
      if (is_out && rows.header->failed != 0) {
        throw std::runtime_error(
            "slot " + std::to_string(slot) + " was answered with a failure: " +
            std::string(rows.header->message, strnlen(rows.header->message, kMessageBytes)));
      }
      if (!port_.begin(slot)) continue;
      stepped = true;
      const std::uint64_t finished = queue_.counters.units;
      group.set_num_lanes(lanes_wanted(slot));
      const std::uint32_t num_rows = group.step(
          {.policies = rows.policies, .values = rows.values, .version = rows.header->version},
          {.features = reinterpret_cast<std::uint16_t*>(rows.states),
           .masks = rows.masks,
           .capacity = capacity_});
      num_rows_[slot] = num_rows;
      port_.publish(slot, num_rows);
      in_progress_ -= queue_.counters.units - finished;
    }
    return stepped;
  }

  /// Throws where the request that is out in a slot has not the rows that were published.
  void check_rows(std::uint32_t slot) const {
    const std::uint32_t found = port_.rows(slot).header->num_rows;
    if (found == num_rows_[slot]) return;
    throw CorruptSegment("slot " + std::to_string(slot) + " holds a request with " +
                         std::to_string(found) + " rows, which neither this worker (it wrote " +
                         std::to_string(num_rows_[slot]) + ") nor its inference process wrote");
  }

  /// Lanes a slot may start units in: an even share of what there is, few before the first is done
  /// where there is more to come than a few.
  std::uint32_t lanes_wanted(std::uint32_t slot) const {
    const auto num_slots = static_cast<std::uint64_t>(groups_.size());
    std::uint64_t lanes =
        std::min<std::uint64_t>((in_progress_ + num_slots - 1 - slot) / num_slots, lanes_per_slot_);
    if (queue_.counters.units == 0 && in_progress_ > kShortRun) {
      lanes = std::min<std::uint64_t>(lanes, std::max<std::uint64_t>(1, kFirstLanes / num_slots));
    }
    return static_cast<std::uint32_t>(std::max<std::uint64_t>(1, lanes));
  }

  void read_grants() {
    while (!no_more_grants_) {
      pollfd grants = {grant_fd_, POLLIN, 0};
      if (poll(&grants, 1, 0) <= 0) return;
      Unit units[kMaxGrantsPerWrite];
      // The parent writes whole units, at most so many a time: reads are whole as well.
      const ssize_t bytes = read(grant_fd_, units, sizeof units);
      if (bytes < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (bytes < 0) throw std::runtime_error(std::string("grant pipe: ") + std::strerror(errno));
      if (bytes == 0) {
        no_more_grants_ = true;
        return;
      }
      const auto read_units = static_cast<std::size_t>(bytes) / sizeof(Unit);
      if (read_units * sizeof(Unit) != static_cast<std::size_t>(bytes)) {
        throw std::runtime_error("grant pipe: part of a unit");
      }
      queue_.waiting.insert(queue_.waiting.end(), units, units + read_units);
      in_progress_ += read_units;
    }
  }

  void write_finished() {
    if (queue_.finished.empty()) return;
    std::string out;
    for (const FinishedRound& round : queue_.finished) {
      append_frame(out, round.unit, round.last, round.record);
    }
    queue_.finished.clear();
    for (std::size_t at = 0; at < out.size();) {
      const ssize_t written = write(record_fd_, out.data() + at, out.size() - at);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0)
        throw std::runtime_error(std::string("record pipe: ") + std::strerror(errno));
      at += static_cast<std::size_t>(written);
    }
  }

  /// Adds what is new since the last time: a replacement goes on where its predecessor stood.
  void publish_counters() {
    const PlayCounters& now = queue_.counters;
    WorkerBlock& block = port_.block();
    add_to(block.units, now.units - published_.units);
    add_to(block.rounds, now.rounds - published_.rounds);
    add_to(block.decisions, now.decisions - published_.decisions);
    add_to(block.simulations, now.simulations - published_.simulations);
    add_to(block.terminals, now.terminals - published_.terminals);
    add_to(block.rows, now.rows - published_.rows);
    block.lanes.store(in_progress_ - queue_.waiting.size(), std::memory_order_relaxed);
    published_ = now;
  }

  const PlaySettings settings_;
  UnitQueue queue_;
  WorkerPort port_;
  int grant_fd_;
  int record_fd_;
  std::uint64_t spin_ns_;
  std::uint32_t lanes_per_slot_ = 1;
  std::uint32_t capacity_ = 0;
  std::deque<LaneGroup> groups_;         ///< One a slot.
  std::vector<std::uint32_t> num_rows_;  ///< By slot: rows of the last request.
  std::uint64_t in_progress_ = 0;        ///< Units granted and not finished.
  bool no_more_grants_ = false;
  PlayCounters published_;
};

}  // namespace shmzero
