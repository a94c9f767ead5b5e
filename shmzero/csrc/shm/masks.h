// Masks of legal actions as they lie in a slot: 64 actions a word, the lowest action in the lowest
// bit. Bits beyond the actions are no part of the mask.
#pragma once

#include <cstdint>
#include <cstring>

namespace shmzero {

constexpr std::uint32_t num_mask_words(std::uint32_t num_actions) {
  return (num_actions + 63) / 64;
}

/// Packs `num_actions` bools (one byte each, 0 or 1) into num_mask_words() words.
inline void pack_mask(const std::uint8_t* bools, std::uint32_t num_actions, std::uint64_t* words) {
  std::memset(words, 0, num_mask_words(num_actions) * sizeof *words);
  std::uint32_t action = 0;
  for (; action + 8 <= num_actions; action += 8) {
    std::uint64_t bytes;
    std::memcpy(&bytes, bools + action, sizeof bytes);
    // Byte i moves its lowest bit to bit 56 + i of the product.
    words[action / 64] |= (bytes & 0x0101010101010101u) * 0x0102040810204080u >> 56 << action % 64;
  }
  for (; action < num_actions; ++action) {
    words[action / 64] |= static_cast<std::uint64_t>(bools[action] & 1) << action % 64;
  }
}

inline void unpack_mask(const std::uint64_t* words, std::uint32_t num_actions,
                        std::uint8_t* bools) {
  for (std::uint32_t a = 0; a < num_actions; ++a) bools[a] = words[a / 64] >> a % 64 & 1;
}

}  // namespace shmzero
