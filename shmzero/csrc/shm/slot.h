// The slot protocol: how rows go from a worker to its server and their answers back. Knows no game.
//
// A slot belongs to one side at a time; its word says to which. Requests and answers lie in areas
// of their own, so a request outlives the server that was reading it. No locks on the data path.
// Each side changes a word by a CAS from what it left there itself, or from what the other side may
// have made of that; a word that is neither is a stray one, and costs that slot's request alone.
//
// from      to            by      when                      order
// free      filling       worker  before its search begins  relaxed: only a hint to others
// filling   ready         worker  all rows written          release -> acquire in `sweep`
// free      ready         client  all rows written          likewise; nobody waits for a client
// filling   free          worker  no rows after all         relaxed: nothing was handed over
// ready     taken(epoch)  server  sweeps                    CAS acquire; it may read the rows now
// taken     answered      server  all answers written       CAS release -> acquire in `answered`
// answered  filling(g+1)  worker  goes on                   relaxed: its own until `ready`
// answered  free(g+1)     client  has read the answers      release -> acquire in claim
// ready     free(g+1)     worker  cancels                   CAS
// taken     orphaned      worker  gives up                  CAS; the server's until it has answered
//   deaths, all by the one reaper, after the process is certainly gone:
// free, filling, ready, answered
//           free(g+1)     worker died                       CAS, against a server's ready -> taken
// taken     orphaned      worker died                       CAS, against its taken -> answered
// orphaned  free(g+1)     the server that took it, as it answers; the reaper once that one is dead
// taken(e)  ready         server of epoch e died            CAS: run again by the next
//   words that nobody leaves, and requests of no or too many rows; counted in `refused`:
// taken     answered      server  rows that do not fit      failed, with a message
// taken     ready         server  does not hold it          CAS: run, where its owner waits for it
// orphaned  free(g+1)     server  does not hold it          CAS
// filling   free(g+1)     server  of clients, who never fill
// no state  free(g+1)     server, the reaper, whoever claims the block
// filling, ready, answered
//           free(g+1)     client  claims the block, which was nobody's
//
// Read next: worker_port.h and client.h, who ask; server_slots.h and server_port.h, who answer;
// reaper.h, who clears away what the dead leave.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "shm/shm_layout.h"

namespace shmzero {

enum class SlotState : std::uint8_t { kFree, kFilling, kReady, kTaken, kAnswered, kOrphaned };
inline constexpr const char* kStateNames[] = {"free",  "filling",  "ready",
                                              "taken", "answered", "orphaned"};

/// Whether a word names a state that there is.
inline bool is_state(SlotState state) { return state <= SlotState::kOrphaned; }

/// Whether a slot waits for its server: only that can move it on.
inline bool waits_for_server(SlotState state) {
  return state == SlotState::kReady || state == SlotState::kTaken || state == SlotState::kOrphaned;
}

/// generation (32 bits) | epoch of the server that took it (24) | state (8)
struct SlotWord {
  std::uint64_t bits;

  static SlotWord make(std::uint32_t generation, std::uint32_t epoch, SlotState state) {
    return {(static_cast<std::uint64_t>(generation) << 32) |
            (static_cast<std::uint64_t>(epoch & 0xffffffu) << 8) |
            static_cast<std::uint64_t>(state)};
  }
  SlotState state() const { return static_cast<SlotState>(bits & 0xff); }
  std::uint32_t epoch() const { return static_cast<std::uint32_t>(bits >> 8) & 0xffffffu; }
  std::uint32_t generation() const { return static_cast<std::uint32_t>(bits >> 32); }
  SlotWord with(SlotState state) const { return make(generation(), 0, state); }
  SlotWord next(SlotState state) const { return make(generation() + 1, 0, state); }
};

/// "ready in generation 7".
inline std::string describe(SlotWord word) {
  const std::string state = is_state(word.state())
                                ? kStateNames[static_cast<int>(word.state())]
                                : "in state " + std::to_string(static_cast<int>(word.state()));
  return state + " in generation " + std::to_string(word.generation());
}

/// A slot's areas, for the side that holds it.
struct SlotRows {
  std::byte* states;     ///< [R, state_dim], wire type.
  std::uint64_t* masks;  ///< [R, mask_words]
  float* policies;       ///< [R, action_dim]
  float* values;         ///< [R, value_dim]
  SlotHeader* header;
};

inline SlotRows slot_rows(const Segment& segment, std::uint32_t worker, std::uint32_t slot) {
  std::byte* base = segment.slot(worker, slot);
  const SegmentLayout& layout = segment.layout();
  return {base + layout.states, reinterpret_cast<std::uint64_t*>(base + layout.masks),
          reinterpret_cast<float*>(base + layout.policies),
          reinterpret_cast<float*>(base + layout.values), reinterpret_cast<SlotHeader*>(base)};
}

/// Thrown where a slot holds a word that its owner neither left there nor waits for: the reaper
/// took a living owner for dead, or something wrote over it. What lies in the slot may be
/// another's.
struct SlotLost : CorruptSegment {
  using CorruptSegment::CorruptSegment;
};

}  // namespace shmzero
