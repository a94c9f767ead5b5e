// The slot protocol as threads of one process, for ThreadSanitizer: workers that answer-check every
// row, cancel now and then and "die" at random points; a server that dies with batches in its
// hands. Then the same with clients, who claim blocks, more of them than there are blocks.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "shm/client.h"
#include "shm/reaper.h"
#include "shm/server_port.h"
#include "shm/worker_port.h"

using namespace shmzero;

namespace {

constexpr std::uint32_t kWorkers = 3, kSlots = 2, kRows = 7, kLives = 12, kServers = 10;
std::atomic<bool> stop = false;
std::atomic<std::uint64_t> checked = 0;

void fail(const char* why) {
  std::fprintf(stderr, "protocol: %s\n", why);
  std::_Exit(1);
}

/// One life of a worker: rows whose answers it can foretell. Dies in whatever state it is in.
void live(Segment& segment, std::uint32_t worker, std::mt19937& random) {
  WorkerPort port(segment, worker);
  std::uint32_t expected[kSlots][kRows] = {};
  std::uint32_t rows_out[kSlots] = {};
  const int steps = static_cast<int>(random() % 400) + 50;
  for (int step = 0; step < steps; ++step) {
    const std::uint32_t slot = random() % kSlots;
    const SlotRows rows = port.rows(slot);
    if (rows_out[slot] > 0 && !port.answered(slot)) {
      if (random() % 40 == 0) {
        port.cancel(slot);
        rows_out[slot] = 0;
      } else {
        port.wait(1u << slot, 2'000'000, 0);
      }
      continue;
    }
    if (!port.begin(slot)) {  // the server still has it, after a cancel or a former life
      port.wait(1u << slot, 2'000'000, 0);
      continue;
    }
    for (std::uint32_t r = 0; r < rows_out[slot]; ++r) {
      if (rows.policies[r] != static_cast<float>(expected[slot][r]) ||
          rows.values[r] != static_cast<float>(expected[slot][r]) + 1.0f) {
        fail("a row has the answer of another");
      }
      checked.fetch_add(1, std::memory_order_relaxed);
    }
    if (random() % 100 == 0) return;  // dies while filling
    rows_out[slot] = random() % (kRows + 1);
    for (std::uint32_t r = 0; r < rows_out[slot]; ++r) {
      expected[slot][r] = random() % 100000;
      reinterpret_cast<float*>(rows.states)[r] = static_cast<float>(expected[slot][r]);
      rows.masks[r] = expected[slot][r];
    }
    port.publish(slot, rows_out[slot]);
  }
}

void work(Segment& segment, std::uint32_t worker) {
  std::mt19937 random(worker + 1);
  for (std::uint32_t life = 0; life < kLives; ++life) {
    live(segment, worker, random);
    reclaim_worker(segment, worker);
  }
}

/// One server: answers state and state + 1; ends with what it holds unanswered.
void serve(Segment& segment, std::uint32_t epoch, Peers peers, int batches) {
  ServerPort port(segment, 0, epoch, Spin::kFixed, peers);
  constexpr std::uint32_t kLimit = 5;  // smaller than a slot: served in pieces
  float states[kLimit], policies[kLimit], values[kLimit];
  std::uint64_t masks[kLimit];
  for (int i = 0; i != batches && !stop.load(std::memory_order_relaxed);) {
    const auto gathered =
        port.gather({.states = reinterpret_cast<std::byte*>(states), .masks = masks},
                    {.limit_rows = kLimit, .timeout_ns = 100'000}, 2'000'000, 0);
    if (gathered.rows == 0) continue;
    if (++i == batches) return;  // dies with this batch
    for (std::uint32_t r = 0; r < gathered.rows; ++r) {
      if (static_cast<float>(masks[r]) != states[r]) fail("a row was torn");
      policies[r] = states[r];
      values[r] = states[r] + 1.0f;
    }
    port.scatter(gathered.batch, policies, values, epoch);
  }
}

/// One life of a client: claims a block, asks, checks, leaves properly or dies with a request out.
void visit(Segment& segment, std::uint64_t identity, std::mt19937& random) {
  const std::uint32_t block = RequestPort::claim(segment, identity);
  if (block == RequestPort::kNone) {
    std::this_thread::yield();
    return;
  }
  auto* port = new RequestPort(segment, block, identity);
  for (int request = 0; request < 20; ++request) {
    const std::uint32_t rows = random() % kRows + 1;
    float states[kRows], policies[kRows], values[kRows];
    std::uint8_t masks[kRows];
    for (std::uint32_t r = 0; r < rows; ++r) {
      masks[r] = random() % 2;
      states[r] = masks[r];
    }
    port->submit(reinterpret_cast<std::byte*>(states), masks, rows);
    const std::uint32_t fate = random() % 60;
    if (fate == 0) return;  // dead: the port is never closed, the reaper frees the block
    if (fate == 1) break;
    while (!port->wait(2'000'000, 0)) {
    }
    port->take(policies, values, rows);
    for (std::uint32_t r = 0; r < rows; ++r) {
      if (policies[r] != states[r] || values[r] != states[r] + 1.0f)
        fail("a client has another's answer");
      checked.fetch_add(1, std::memory_order_relaxed);
    }
    port->rest();
    if (fate == 2) return;                         // dead while its block rested
    if (fate % 2 == 0) std::this_thread::yield();  // somebody else may take it
    if (!port->resume()) break;
  }
  delete port;
}

void run_clients(Segment& segment, std::uint32_t client) {
  std::mt19937 random(client + 100);
  for (std::uint32_t life = 0; life < 40; ++life) {
    const std::uint64_t identity = (life + 1) * 1000 + client + 1;
    visit(segment, identity, random);
    reap_client(segment, identity);
  }
}

/// Everybody against one server that dies now and then; in the end every slot must be free.
template <class Program>
void play(const SegmentSizes& sizes, Peers peers, std::uint32_t num_programs, Program&& program) {
  const int fd = memfd_create("protocol", MFD_CLOEXEC);
  if (ftruncate(fd, static_cast<off_t>(SegmentLayout(sizes).total)) != 0) fail("no memory");
  const auto segment = Segment::create(fd, sizes, 1);
  stop = false;
  std::thread server([&] {
    for (std::uint32_t epoch = 1; !stop.load(std::memory_order_relaxed); ++epoch) {
      serve(*segment, epoch, peers, epoch < kServers ? 60 : -1);
      reclaim_server(*segment, 0);
    }
  });
  std::vector<std::thread> threads;
  for (std::uint32_t p = 0; p < num_programs; ++p)
    threads.emplace_back([&, p] { program(*segment, p); });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  server.join();
  for (std::uint32_t w = 0; w < sizes.num_workers; ++w) {
    for (std::uint32_t s = 0; s < sizes.slots_per_worker; ++s) {
      if (SlotWord{segment->worker(w).words[s].load()}.state() != SlotState::kFree) {
        fail("a slot is not free at the end");
      }
    }
  }
}

}  // namespace

int main() {
  SegmentSizes sizes = {.num_servers = 1,
                        .num_workers = kWorkers,
                        .slots_per_worker = kSlots,
                        .rows_per_slot = kRows,
                        .state_dim = 1,
                        .action_dim = 1,
                        .value_dim = 1,
                        .wire = Wire::kFloat32};
  play(sizes, Peers::kWorkers, kWorkers, work);
  sizes.num_workers = 3;
  sizes.slots_per_worker = 1;
  play(sizes, Peers::kClients, 5, run_clients);
  std::printf("%llu rows checked\n", static_cast<unsigned long long>(checked.load()));
  return checked.load() > 5000 ? 0 : 1;
}
