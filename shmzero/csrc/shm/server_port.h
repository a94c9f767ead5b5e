// A server's port: gathers requests into batches and scatters their answers. How slots change hands
// is server_slots.h's matter, when a batch starts batch_policy.h's, what is counted
// server_stats.h's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "shm/batch_policy.h"
#include "shm/finite.h"
#include "shm/server_slots.h"
#include "shm/server_stats.h"
#include "shm/shm_layout.h"

namespace shmzero {

class ServerPort {
 public:
  /// `epoch` is new for each process that serves in this block's place.
  ServerPort(Segment& segment, std::uint32_t server, std::uint32_t epoch, Spin spin = Spin::kFixed,
             Peers peers = Peers::kWorkers)
      : segment_(segment),
        bell_(checked(segment, server).bell),
        spin_(spin),
        stats_(segment.server(server)),
        slots_(segment, server, epoch, peers, stats_) {}
  ServerPort(const ServerPort&) = delete;
  ServerPort& operator=(const ServerPort&) = delete;

  struct Staging {
    std::byte* states;     ///< [B, state_dim], wire type.
    std::uint64_t* masks;  ///< [B, mask_words]
  };
  struct Gathered {
    std::uint64_t batch = 0;  ///< Names the batch in `scatter`.
    std::uint32_t rows = 0;   ///< 0: nothing to do yet.
  };

  /// Waits for a batch that `policy` starts and copies it into `staging`, oldest requests first.
  /// Returns 0 rows after `wait_ns` (at most 100 ms) so that the caller can look elsewhere. Never
  /// holds a lock.
  Gathered gather(const Staging& staging, const BatchPolicy& policy, std::uint64_t wait_ns,
                  std::uint64_t spin_ns) {
    const std::uint64_t start = now_ns();
    const std::uint64_t end = start + std::min(wait_ns, kLongestWaitNs);
    for (;;) {
      std::uint64_t now;
      const bool filling = sweep(now);
      if (backlog_rows_ > 0 && policy.starts(backlog_rows_, oldest_ns(), filling, now)) {
        stats_.count_wait(now - start);
        return fill(staging, policy.limit_rows, now);
      }
      if (now >= end) {
        stats_.count_wait(now - start);
        return {};
      }
      const std::uint64_t sleep =
          backlog_rows_ > 0 ? policy.sleep_ns(oldest_ns(), now, end - now) : end - now;
      const std::uint64_t spin = spin_ == Spin::kFixed ? spin_ns : budget_.next(spin_ns);
      bell_.wait(sleep, spin, [&] { return anything_new(filling); });
      if (spin_ == Spin::kAdaptive) budget_.report(spin, now_ns() - now);
    }
  }

  /// A part of a batch that has no answer yet, and what its request shall be told by `fail`.
  struct Refused {
    std::uint64_t batch;
    std::string message;
  };

  /// Writes a batch's answers into its slots and wakes their workers, each once. With
  /// `check_finite` requests whose answers hold NaN or infinity are left out, each as a batch of
  /// its own. Returns these.
  std::vector<Refused> scatter(std::uint64_t batch, const float* policies, const float* values,
                               std::uint32_t version, bool check_finite = false) {
    const SegmentSizes& sizes = segment_.sizes();
    const std::uint64_t gathered_ns = find_batch(batch)->gathered_ns;
    std::vector<Refused> refused;
    std::vector<Piece> pieces;  // of them
    finish_batch(
        batch, version, [&](const Piece& piece, Request&, const SlotRows& out, std::size_t from) {
          const std::size_t to = piece.first_row, number = piece.num_rows;
          std::memcpy(out.policies + to * sizes.action_dim, policies + from * sizes.action_dim,
                      number * sizes.action_dim * sizeof(float));
          std::memcpy(out.values + to * sizes.value_dim, values + from * sizes.value_dim,
                      number * sizes.value_dim * sizeof(float));
          if (!check_finite) return true;
          std::string wrong = not_finite(out, sizes, piece.first_row, piece.num_rows);
          if (wrong.empty()) return true;
          refused.push_back({.batch = 0, .message = std::move(wrong)});
          pieces.push_back(piece);
          return false;
        });
    for (std::size_t i = 0; i < refused.size(); ++i) {
      refused[i].batch = add_batch(gathered_ns, pieces[i]);
    }
    return refused;
  }

  /// Takes a batch apart into one for each request in it, to be copied again by `refill`.
  std::vector<std::uint64_t> split(std::uint64_t batch) {
    const auto found = find_batch(batch);
    const Batch whole = std::move(*found);
    batches_.erase(found);
    std::vector<std::uint64_t> parts;
    for (const Piece& piece : whole.pieces) parts.push_back(add_batch(whole.gathered_ns, piece));
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
                 [&](const Piece&, Request& request, const SlotRows& out, std::size_t) {
                   request.failed = true;
                   write_message(*out.header, message);
                   return true;
                 });
  }

 private:
  /// A taken slot, and how far batches and answers have come with its rows.
  struct Request {
    TakenSlot taken;
    std::uint32_t next_row;  ///< First row that no batch has yet.
    std::uint32_t unanswered;
    std::uint32_t version;  ///< Oldest weights that answered a row.
    bool failed;
  };
  struct Piece {
    std::uint32_t request;  ///< Place in requests_.
    std::uint32_t first_row, num_rows;
  };
  struct Batch {
    std::uint64_t id;
    std::uint64_t gathered_ns;
    std::vector<Piece> pieces;
  };

  static ServerBlock& checked(const Segment& segment, std::uint32_t server) {
    if (server >= segment.sizes().num_servers) throw std::invalid_argument("server out of range");
    return segment.server(server);
  }

  // --- requests ---------------------------------------------------------------------------------

  /// Takes every ready slot into the backlog. Returns whether anybody is filling, and the time.
  bool sweep(std::uint64_t& now) {
    const std::size_t before = backlog_.size();
    const bool filling = slots_.sweep([&](const TakenSlot& taken) { add_request(taken); });
    now = now_ns();
    for (std::size_t i = before; i < backlog_.size(); ++i) {  // it may be what a client wrote
      std::uint64_t& request_ns = requests_[backlog_[i]].taken.request_ns;
      request_ns = std::min(request_ns, now);
    }
    if (backlog_.size() > before + 1) {
      std::stable_sort(backlog_.begin() + static_cast<std::ptrdiff_t>(before), backlog_.end(),
                       [&](std::uint32_t a, std::uint32_t b) {
                         return requests_[a].taken.request_ns < requests_[b].taken.request_ns;
                       });
    }
    return filling;
  }

  void add_request(const TakenSlot& taken) {
    std::uint32_t place;
    if (free_places_.empty()) {
      place = static_cast<std::uint32_t>(requests_.size());
      requests_.emplace_back();
    } else {
      place = free_places_.back();
      free_places_.pop_back();
    }
    requests_[place] = {.taken = taken,
                        .next_row = 0,
                        .unanswered = taken.num_rows,
                        .version = UINT32_MAX,
                        .failed = false};
    backlog_.push_back(place);
    backlog_rows_ += taken.num_rows;
  }

  /// When the oldest request of the backlog was published.
  std::uint64_t oldest_ns() const { return requests_[backlog_.front()].taken.request_ns; }

  /// A ready slot, or the end of all filling that was seen.
  bool anything_new(bool was_filling) const {
    const ServerSlots::Look seen = slots_.look();
    return seen.ready || (was_filling && !seen.filling && backlog_rows_ > 0);
  }

  // --- batches ----------------------------------------------------------------------------------

  std::deque<Batch>::iterator find_batch(std::uint64_t batch) {
    const auto found = std::find_if(batches_.begin(), batches_.end(),
                                    [&](const Batch& b) { return b.id == batch; });
    if (found == batches_.end()) {
      throw std::invalid_argument("batch " + std::to_string(batch) +
                                  " is none that was gathered and has no answer yet");
    }
    return found;
  }

  /// A batch of one piece of another one, which is still to be answered. Returns its name.
  std::uint64_t add_batch(std::uint64_t gathered_ns, const Piece& piece) {
    batches_.push_back({.id = next_batch_++, .gathered_ns = gathered_ns, .pieces = {piece}});
    return batches_.back().id;
  }

  /// To row `row` of `staging` and those behind it.
  void copy_piece(const Piece& piece, const Staging& staging, std::uint32_t row) const {
    const SegmentSizes& sizes = segment_.sizes();
    const SlotRows in = slots_.rows(requests_[piece.request].taken);
    std::memcpy(staging.states + row * sizes.state_bytes(),
                in.states + piece.first_row * sizes.state_bytes(),
                piece.num_rows * sizes.state_bytes());
    std::memcpy(staging.masks + static_cast<std::size_t>(row) * sizes.mask_words(),
                in.masks + static_cast<std::size_t>(piece.first_row) * sizes.mask_words(),
                static_cast<std::size_t>(piece.num_rows) * sizes.mask_words() * 8);
  }

  /// Makes a batch of the oldest rows.
  Gathered fill(const Staging& staging, std::uint32_t limit_rows, std::uint64_t now) {
    Batch batch = {.id = next_batch_++, .gathered_ns = now, .pieces = {}};
    std::uint32_t rows = 0;
    while (rows < limit_rows && !backlog_.empty()) {
      Request& request = requests_[backlog_.front()];
      const Piece piece = {
          .request = backlog_.front(),
          .first_row = request.next_row,
          .num_rows = std::min(limit_rows - rows, request.taken.num_rows - request.next_row)};
      copy_piece(piece, staging, rows);
      batch.pieces.push_back(piece);
      request.next_row += piece.num_rows;
      rows += piece.num_rows;
      if (request.next_row == request.taken.num_rows) backlog_.pop_front();
    }
    backlog_rows_ -= rows;
    batches_.push_back(std::move(batch));
    return {.batch = batches_.back().id, .rows = rows};
  }

  /// Lets `answer(piece, request, slot, row of the batch)` write each piece, hands full slots back
  /// and wakes their workers, each once. A piece for which it returns false is not answered yet.
  template <class Answer>
  void finish_batch(std::uint64_t batch, std::uint32_t version, Answer&& answer) {
    const auto found = find_batch(batch);
    std::uint32_t rows = 0, num_answered = 0;
    std::uint32_t last_worker = UINT32_MAX;
    const auto ring = [&] {
      if (last_worker != UINT32_MAX) slots_.wake(last_worker);
    };
    for (const Piece& piece : found->pieces) {
      Request& request = requests_[piece.request];
      const SlotRows out = slots_.rows(request.taken);
      const bool is_wanted = slots_.is_wanted(request.taken);
      const bool is_answered = !is_wanted || answer(piece, request, out, rows);
      rows += piece.num_rows;
      if (!is_answered) continue;
      num_answered += piece.num_rows;
      request.unanswered -= piece.num_rows;
      request.version = std::min(request.version, version);
      if (request.unanswered > 0) continue;
      if (is_wanted) {
        out.header->version = request.version;
        out.header->failed = request.failed;
      }
      slots_.hand_back(request.taken);
      if (request.taken.worker != last_worker) ring();
      last_worker = request.taken.worker;
      free_places_.push_back(piece.request);
    }
    ring();
    const std::uint64_t now = now_ns();
    for (const Piece& piece : found->pieces) {
      const Request& request = requests_[piece.request];
      if (request.unanswered == 0) stats_.count_answered_request(now - request.taken.request_ns);
    }
    stats_.count_batch(num_answered, found->gathered_ns, version, now);
    batches_.erase(found);
  }

  Segment& segment_;
  Doorbell& bell_;
  Spin spin_;
  SpinBudget budget_;
  ServerStats stats_;
  ServerSlots slots_;
  std::vector<Request> requests_;           ///< Taken and not answered, and free places.
  std::vector<std::uint32_t> free_places_;  ///< Of requests_.
  std::deque<std::uint32_t> backlog_;       ///< Requests with rows that no batch has, oldest first.
  std::uint32_t backlog_rows_ = 0;
  std::deque<Batch> batches_;  ///< Gathered and not scattered.
  std::uint64_t next_batch_ = 1;
};

}  // namespace shmzero
