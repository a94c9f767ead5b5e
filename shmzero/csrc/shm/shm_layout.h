// Layout of the segment: one header, a block a server, a block a worker, then the slots.
//
// Knows no game: rows have the widths that the header names. Python reads sizes and offsets through
// the extension. Whoever attaches checks the header, copies the sizes and never trusts it again.
// Read next: doorbell.h, slot.h.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

#include "shm/doorbell.h"
#include "shm/masks.h"
#include "shm/process.h"

namespace shmzero {

inline constexpr std::uint64_t kSegmentMagic = 0x304f52455a4d4853u;  // "SHMZERO0"
inline constexpr std::uint32_t kLayoutVersion = 5;
inline constexpr std::size_t kLine = 64;
inline constexpr std::uint32_t kMaxServers = 64;
inline constexpr std::uint32_t kMaxWorkers = 1024;
inline constexpr std::uint32_t kMaxSlotsPerWorker = 8;  ///< Their words share one cache line.
inline constexpr std::uint32_t kMaxRowsPerSlot = 1u << 22;
inline constexpr std::uint32_t kHistogramBins = 24;
inline constexpr std::uint32_t kWaitBins = 128;  ///< Four an octave, up to 17 s: see wait_bin.
inline constexpr std::size_t kMessageBytes = 232;
inline constexpr std::uint64_t kResting = std::uint64_t{1}
                                          << 63;  ///< Beside an identity, which never has it.

/// Element type of states on the wire.
enum class Wire : std::uint32_t { kFloat16 = 2, kFloat32 = 4 };

/// What a segment is made for. All a layout depends on.
struct SegmentSizes {
  std::uint32_t num_servers;
  std::uint32_t num_workers;
  std::uint32_t slots_per_worker;
  std::uint32_t rows_per_slot;
  std::uint32_t state_dim;
  std::uint32_t action_dim;
  std::uint32_t value_dim;
  Wire wire;

  std::uint32_t mask_words() const { return num_mask_words(action_dim); }
  std::size_t state_bytes() const {
    return static_cast<std::size_t>(state_dim) * static_cast<std::size_t>(wire);
  }
  bool operator==(const SegmentSizes&) const = default;
};

/// Written once by the creator, before any other process sees the segment.
struct SegmentHeader {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t header_bytes;
  std::uint64_t layout_hash;
  std::uint64_t total_bytes;
  std::uint64_t run_id;
  std::uint64_t pid_namespace;   ///< Of the creator: pids mean nothing outside.
  std::uint64_t time_namespace;  ///< Likewise: nor do start times and the monotonic clock.
  SegmentSizes sizes;
};
static_assert(sizeof(SegmentHeader) <= 4096);

/// The place of a server: who serves, and sums since the segment was made; any process may read
/// them. Sums are relaxed throughout: they order nothing and each has one writer.
struct alignas(kLine) ServerBlock {
  Doorbell bell;  ///< Rung by workers that published, waited on by the server.
  /// Written by the server of a service, which holds the life lock.
  alignas(kLine) std::atomic<std::uint64_t> owner;  ///< own_identity; 0 before the first.
  std::atomic<std::uint64_t> epoch;                 ///< Of the owner; grows by one with each.
  std::atomic<std::uint64_t>
      closed;  ///< 1 once it has left on purpose. Release -> acquire in RequestPort.
  /// Written by the server.
  alignas(kLine) std::atomic<std::uint64_t> batches;
  std::atomic<std::uint64_t> rows;
  std::atomic<std::uint64_t> busy_ns;        ///< From the gathering of a batch to its last answer.
  std::atomic<std::uint64_t> wait_ns;        ///< In gather without enough work.
  std::atomic<std::uint64_t> last_batch_ns;  ///< Monotonic time of the last scatter.
  std::atomic<std::uint64_t> version;        ///< Of the weights that answered last.
  std::atomic<std::uint64_t> refused;        ///< Words and row counts that nobody may leave.
  std::atomic<std::uint64_t> histogram[kHistogramBins];  ///< Batches of [2^i, 2^(i+1)) rows.
  std::atomic<std::uint64_t>
      waits[kWaitBins];  ///< Requests by the time from publishing to the answer.
};

/// The place of a worker, or, in a service, of one request in flight of a client.
struct alignas(kLine) WorkerBlock {
  Doorbell bell;  ///< Rung by the server that answered, waited on by the worker.
  /// Slot words: see slot.h for who writes which transition. One line, so that a sweep reads one.
  alignas(kLine) std::atomic<std::uint64_t> words[kMaxSlotsPerWorker];
  /// Whose block this is: own_identity, 0 where nobody's, with kResting while a client keeps it
  /// for its next request. Claimed by a CAS from 0 or from a resting one (acquire), left by the
  /// owner or, after its death, by the reaper (release).
  alignas(kLine) std::atomic<std::uint64_t> owner;
  /// Written by the worker; relaxed as above. A replacement goes on counting.
  std::atomic<std::uint64_t> units;
  std::atomic<std::uint64_t> rounds;
  std::atomic<std::uint64_t> decisions;
  std::atomic<std::uint64_t> simulations;
  std::atomic<std::uint64_t> terminals;
  std::atomic<std::uint64_t> rows;
  std::atomic<std::uint64_t> busy_ns;
  std::atomic<std::uint64_t> wait_ns;
  std::atomic<std::uint64_t> lanes;
  std::atomic<std::uint64_t> progress;  ///< Moves on while it works, not while it waits.
  std::atomic<std::uint64_t> playing;   ///< Unit whose lane it steps, plus 1; 0: none. The reaper
                                        ///< clears it after a death.
};

/// Head of a slot; the rows follow, requests and answers in areas of their own.
struct alignas(kLine) SlotHeader {
  std::uint32_t num_rows;  ///< Worker, before `ready`.
  std::uint32_t failed;    ///< Server, while taken: 1 where there is no answer; `message` says why.
  std::uint64_t request_ns;     ///< Worker, before `ready`: monotonic time of publishing.
  std::uint32_t version;        ///< Server, while taken: oldest weights that answered a row.
  char message[kMessageBytes];  ///< Server, while taken: with a zero at its end.
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "words are shared by processes");
static_assert(sizeof(std::atomic<std::uint64_t>) == 8);
static_assert(sizeof(WorkerBlock::words) == kLine);

/// Adds to a sum that this process alone writes: a plain add would do; it is atomic only so that
/// others may read. Relaxed: a report, which orders nothing.
inline void add_to(std::atomic<std::uint64_t>& sum, std::uint64_t amount) {
  sum.store(sum.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

/// The bin of a batch's rows, and where a bin begins.
inline std::uint32_t batch_bin(std::uint32_t rows) {
  return std::min(31u - static_cast<std::uint32_t>(std::countl_zero(rows | 1u)),
                  kHistogramBins - 1);
}
inline std::uint32_t batch_bin_rows(std::uint32_t bin) { return 1u << bin; }

/// The bin of a waiting time: octave and two bits more.
inline std::uint32_t wait_bin(std::uint64_t ns) {
  const auto octave = 63u - static_cast<std::uint32_t>(std::countl_zero(ns | 4u));
  const auto bin = (octave - 2) * 4 + static_cast<std::uint32_t>(ns >> (octave - 2) & 3u);
  return std::min(bin, kWaitBins - 1);
}
/// Where a bin begins.
inline std::uint64_t wait_bin_ns(std::uint32_t bin) {
  return std::uint64_t{4 + bin % 4} << (bin / 4);
}

/// Where everything lies, in bytes from the start. A function of the sizes.
struct SegmentLayout {
  explicit SegmentLayout(const SegmentSizes& made_for) : sizes(made_for) {
    const std::size_t rows = sizes.rows_per_slot;
    servers = 4096;
    workers = servers + sizes.num_servers * sizeof(ServerBlock);
    slots = round_up(workers + sizes.num_workers * sizeof(WorkerBlock), 4096);
    states = sizeof(SlotHeader);
    masks = round_up(states + rows * sizes.state_bytes(), kLine);
    policies = round_up(masks + rows * sizes.mask_words() * 8, kLine);
    values = round_up(policies + rows * sizes.action_dim * 4, kLine);
    slot_stride = round_up(values + rows * sizes.value_dim * 4, 4096);
    total = slots + slot_stride * sizes.num_workers * sizes.slots_per_worker;
  }
  static constexpr std::size_t round_up(std::size_t bytes, std::size_t to) {
    return (bytes + to - 1) / to * to;
  }
  /// A change of any structure or size changes this; of sizes also one that padding swallows.
  std::uint64_t hash() const {
    std::uint64_t h = kLayoutVersion;
    for (const std::uint64_t part :
         std::initializer_list<std::uint64_t>{sizeof(SegmentHeader),
                                              sizeof(ServerBlock),
                                              sizeof(WorkerBlock),
                                              sizeof(SlotHeader),
                                              sizeof(Doorbell),
                                              servers,
                                              workers,
                                              slots,
                                              masks,
                                              policies,
                                              values,
                                              slot_stride,
                                              total,
                                              sizes.num_servers,
                                              sizes.num_workers,
                                              sizes.slots_per_worker,
                                              sizes.rows_per_slot,
                                              sizes.state_dim,
                                              sizes.action_dim,
                                              sizes.value_dim,
                                              static_cast<std::uint32_t>(sizes.wire)}) {
      h = (h ^ part) * 0x9e3779b97f4a7c15u;
      h ^= h >> 31;
    }
    return h;
  }

  SegmentSizes sizes;
  std::size_t servers, workers, slots;          // from the start of the segment
  std::size_t states, masks, policies, values;  // from the start of a slot
  std::size_t slot_stride, total;
};

/// Thrown where a segment is not what this version wrote.
struct CorruptSegment : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Sizes that make sense at all. Throws std::invalid_argument naming the first that does not.
inline void check_sizes(const SegmentSizes& sizes) {
  const auto check = [](const char* name, std::uint64_t value, std::uint64_t low,
                        std::uint64_t high) {
    if (value < low || value > high) {
      throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                  "; allowed: " + std::to_string(low) + ".." +
                                  std::to_string(high));
    }
  };
  check("num_servers", sizes.num_servers, 1, kMaxServers);
  check("num_workers", sizes.num_workers, 1, kMaxWorkers);
  check("slots_per_worker", sizes.slots_per_worker, 1, kMaxSlotsPerWorker);
  check("rows_per_slot", sizes.rows_per_slot, 1, kMaxRowsPerSlot);
  check("state_dim", sizes.state_dim, 1, 1u << 16);
  check("action_dim", sizes.action_dim, 1, 1u << 16);
  check("value_dim", sizes.value_dim, 1, 1u << 10);
  if (sizes.wire != Wire::kFloat16 && sizes.wire != Wire::kFloat32) {
    throw std::invalid_argument("wire is " +
                                std::to_string(static_cast<std::uint32_t>(sizes.wire)) +
                                "; allowed: 2 (float16), 4 (float32)");
  }
}

/// A mapped segment.
class Segment {
 public:
  /// Maps `fd`, which must have the layout's size and hold zeros, and makes a segment of it. Where
  /// the file takes seals (memfd), its size is final: whoever has it mapped would die of another.
  /// Throws std::system_error.
  static std::unique_ptr<Segment> create(int fd, const SegmentSizes& sizes, std::uint64_t run_id) {
    check_sizes(sizes);
    const SegmentLayout layout(sizes);
    std::unique_ptr<Segment> segment(new Segment(fd, layout.total, sizes));
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0 && errno != EINVAL &&
        errno != EPERM) {  // /dev/shm's files take none
      throw_errno("sealing of the segment");
    }
    auto* header = reinterpret_cast<SegmentHeader*>(segment->base_);
    header->layout_version = kLayoutVersion;
    header->header_bytes = sizeof(SegmentHeader);
    header->layout_hash = layout.hash();
    header->total_bytes = layout.total;
    header->run_id = run_id;
    header->pid_namespace = own_namespace("pid");
    header->time_namespace = own_namespace("time");
    header->sizes = sizes;
    // Last: nobody attaches to a segment without its magic.
    std::atomic_ref<std::uint64_t>(header->magic).store(kSegmentMagic, std::memory_order_release);
    return segment;
  }

  /// Maps a segment that another process made. Throws CorruptSegment where it is not one of ours,
  /// std::system_error where it cannot be mapped.
  static std::unique_ptr<Segment> attach(int fd) {
    struct stat status;
    if (fstat(fd, &status) != 0) throw_errno("fstat of the segment");
    const auto bytes = static_cast<std::size_t>(status.st_size);
    if (bytes < 4096) {
      throw CorruptSegment("segment of " + std::to_string(bytes) +
                           " bytes is too small for a header");
    }
    SegmentHeader header;
    {
      const Mapping mapping(fd, 4096);
      std::memcpy(&header, mapping.base, sizeof header);
    }
    if (header.magic != kSegmentMagic) throw CorruptSegment("segment without our magic number");
    if (header.layout_version != kLayoutVersion || header.header_bytes != sizeof(SegmentHeader)) {
      throw CorruptSegment("segment of layout version " + std::to_string(header.layout_version) +
                           "; this is version " + std::to_string(kLayoutVersion));
    }
    try {
      check_sizes(header.sizes);
    } catch (const std::invalid_argument& error) {
      throw CorruptSegment(std::string("segment header: ") + error.what());
    }
    if (header.pid_namespace != own_namespace("pid")) {
      throw CorruptSegment("segment of another pid namespace (another container)");
    }
    if (header.time_namespace != own_namespace("time")) {
      throw CorruptSegment("segment of another time namespace (another container)");
    }
    const SegmentLayout layout(header.sizes);
    if (header.layout_hash != layout.hash() || header.total_bytes != layout.total ||
        bytes != layout.total) {
      throw CorruptSegment("segment of " + std::to_string(bytes) + " bytes; its header promises " +
                           std::to_string(layout.total));
    }
    return std::unique_ptr<Segment>(new Segment(fd, layout.total, header.sizes));
  }

  const SegmentSizes& sizes() const { return layout_.sizes; }
  const SegmentLayout& layout() const { return layout_; }
  ServerBlock& server(std::uint32_t s) const {
    return reinterpret_cast<ServerBlock*>(base_ + layout_.servers)[s];
  }
  WorkerBlock& worker(std::uint32_t w) const {
    return reinterpret_cast<WorkerBlock*>(base_ + layout_.workers)[w];
  }
  std::byte* slot(std::uint32_t worker, std::uint32_t slot) const {
    return base_ + layout_.slots +
           layout_.slot_stride *
               (static_cast<std::size_t>(worker) * sizes().slots_per_worker + slot);
  }
  SlotHeader& slot_header(std::uint32_t w, std::uint32_t s) const {
    return *reinterpret_cast<SlotHeader*>(slot(w, s));
  }
  /// Which server answers a slot: in turns, so that one worker can keep all of them busy.
  std::uint32_t server_of(std::uint32_t worker, std::uint32_t slot) const {
    return (worker * sizes().slots_per_worker + slot) % sizes().num_servers;
  }
  /// Lets `visit(worker, slot, word)` see the slots of a server, until it returns false.
  template <class Visit>
  void for_each_slot(std::uint32_t server, Visit&& visit) const {
    const std::uint32_t a_worker = sizes().slots_per_worker;
    for (std::uint32_t at = server; at < sizes().num_workers * a_worker;
         at += sizes().num_servers) {
      if (!visit(at / a_worker, at % a_worker, worker(at / a_worker).words[at % a_worker])) return;
    }
  }

  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

 private:
  struct Mapping {
    Mapping(int fd, std::size_t size) : bytes(size) {
      void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      if (address == MAP_FAILED) throw_errno("mmap of the segment");
      base = static_cast<std::byte*>(address);
    }
    ~Mapping() { munmap(base, bytes); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    std::byte* base;
    std::size_t bytes;
  };

  [[noreturn]] static void throw_errno(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
  }

  Segment(int fd, std::size_t bytes, const SegmentSizes& sizes)
      : mapping_(fd, bytes), base_(mapping_.base), layout_(sizes) {}

  Mapping mapping_;
  std::byte* base_;
  SegmentLayout layout_;  ///< With a private copy of the sizes: the header is never read again.
};

}  // namespace shmzero
