// The record of one round: the little that the rest follows from, as bytes.
//
// Layout, little endian: version u8 | players, cards, trump, dealer, hook_from, scoring, target u8
// | round id u64 | rivalry f32 | game: rounds u16, 0 outside games; if not 0: rounds played u16,
// next cards u8, totals i16 [P] | dealt cards u8 [P * cards] | actions u8 [P * (cards + 1)] |
// number of searched decisions u8, each: ply u8, root value f32 (0 where it was not asked for),
// weights version u32, target u16 [legal]. Decoding trusts nothing: it replays the actions through
// the rules. Read next: replay.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "game/rules.h"
#include "search/search.h"

namespace shmzero {

inline constexpr std::uint8_t kRecordVersion = 1;

/// What a decision's u16 numbers are. Part of the record: append only.
enum class RecordTarget : std::uint8_t { kVisits, kImproved, kPolicy };

struct SearchedDecision {
  std::uint8_t ply;
  float value;
  std::uint32_t version;
  std::uint8_t num_actions;
  std::uint16_t counts[kMaxLegal];  ///< Of the legal actions; what they count says RecordTarget.
};

struct RoundRecord {
  std::uint64_t id = 0;
  RoundSettings settings;
  RecordTarget target = RecordTarget::kVisits;
  float rivalry = 0.0f;
  CardSet hands[kMaxPlayers] = {};  ///< As dealt.
  std::vector<std::uint8_t> actions;
  std::vector<SearchedDecision> searched;

  Round start() const { return make_round(settings, hands); }
};

inline RoundRecord decode_record(const std::string& bytes);

/// The bytes of a finished round. Throws std::logic_error, so that nothing is written that cannot
/// be read, where decode_record would refuse them.
inline std::string encode_record(const RoundRecord& record) {
  std::string bytes;
  const auto put = [&](auto value) {
    for (std::size_t i = 0; i < sizeof value; ++i) {
      bytes.push_back(static_cast<char>(static_cast<std::uint64_t>(value) >> (8 * i)));
    }
  };
  const auto put_byte = [&](int value) { put(static_cast<std::uint8_t>(value)); };
  const auto put_float = [&](float value) { put(std::bit_cast<std::uint32_t>(value)); };
  const RoundSettings& settings = record.settings;
  put_byte(kRecordVersion);
  put_byte(settings.num_players);
  put_byte(settings.cards);
  put_byte(settings.trump);
  put_byte(settings.dealer);
  put_byte(settings.rules.hook_from);
  put_byte(static_cast<int>(settings.rules.scoring));
  put_byte(static_cast<int>(record.target));
  put(record.id);
  put_float(record.rivalry);
  put(settings.game.num_rounds);
  if (settings.game.num_rounds != 0) {
    put(settings.game.rounds_played);
    put_byte(settings.game.next_cards);
    for (int s = 0; s < settings.num_players; ++s) put(settings.game.totals[s]);
  }
  for (int s = 0; s < settings.num_players; ++s) {
    for_each_card(record.hands[s], put_byte);
  }
  for (const std::uint8_t action : record.actions) put_byte(action);
  put_byte(static_cast<int>(record.searched.size()));
  for (const SearchedDecision& decision : record.searched) {
    put_byte(decision.ply);
    put_float(decision.value);
    put(decision.version);
    for (int a = 0; a < decision.num_actions; ++a) put(decision.counts[a]);
  }
  try {
    decode_record(bytes);
  } catch (const std::invalid_argument& error) {
    throw std::logic_error("round " + std::to_string(record.id) +
                           " came to a record that cannot be read: " + error.what());
  }
  return bytes;
}

/// Throws std::invalid_argument where the bytes are no record of a round that can be played.
inline RoundRecord decode_record(const std::string& bytes) {
  std::size_t at = 0;
  const auto refuse = [&](const std::string& why) {
    throw std::invalid_argument("record of " + std::to_string(bytes.size()) + " bytes, at byte " +
                                std::to_string(at) + ": " + why);
  };
  const auto take = [&]<class T>(T) {
    if (bytes.size() - at < sizeof(T)) refuse("it ends too early");
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(bytes[at++])) << (8 * i);
    }
    return static_cast<T>(value);
  };
  const auto take_within = [&](const char* what, int low, int high) {
    const int value = take(std::uint8_t{});
    if (value < low || value > high) {
      refuse(std::string(what) + " is " + std::to_string(value) +
             "; allowed: " + std::to_string(low) + ".." + std::to_string(high));
    }
    return value;
  };
  const auto take_float = [&] {
    const float value = std::bit_cast<float>(take(std::uint32_t{}));
    if (!std::isfinite(value)) refuse("a number is not finite");
    return value;
  };
  RoundRecord record;
  RoundSettings& settings = record.settings;
  take_within("record version", kRecordVersion, kRecordVersion);
  settings.num_players = take_within("players", kMinPlayers, kMaxPlayers);
  settings.cards = take_within("cards", 1, kNumCards / settings.num_players);
  settings.trump = take_within("trump", 0, kNoTrump);
  settings.dealer = take_within("dealer", 0, settings.num_players - 1);
  settings.rules.hook_from = static_cast<std::uint8_t>(take_within("hook_from", 0, kHookNever));
  settings.rules.scoring = static_cast<Scoring>(take_within("scoring", 0, 2));
  record.target = static_cast<RecordTarget>(take_within("target", 0, 2));
  record.id = take(std::uint64_t{});
  record.rivalry = take_float();
  settings.game.num_rounds = take(std::uint16_t{});
  if (settings.game.num_rounds != 0) {
    settings.game.rounds_played = take(std::uint16_t{});
    if (settings.game.rounds_played >= settings.game.num_rounds) refuse("the game is over");
    settings.game.next_cards =
        static_cast<std::uint8_t>(take_within("next cards", 0, kNumCards / kMinPlayers));
    for (int s = 0; s < settings.num_players; ++s) settings.game.totals[s] = take(std::int16_t{});
  }
  CardSet seen = 0;
  for (int s = 0; s < settings.num_players; ++s) {
    for (int i = 0; i < settings.cards; ++i) {
      const CardSet card = one_card(take_within("card", 0, kNumCards - 1));
      if (seen & card) refuse("a card is dealt twice");
      seen |= card;
      record.hands[s] |= card;
    }
  }
  Round round = record.start();
  const int num_actions = settings.num_players * (settings.cards + 1);
  std::vector<std::uint8_t> num_legal;
  for (int ply = 0; ply < num_actions; ++ply) {
    const int action = take_within("action", 0, kNumActions - 1);
    const std::uint64_t allowed = legal(round);
    if (!(allowed >> action & 1)) refuse("action " + std::to_string(action) + " is not legal");
    num_legal.push_back(static_cast<std::uint8_t>(count(allowed)));
    record.actions.push_back(static_cast<std::uint8_t>(action));
    apply(round, action);
  }
  const int num_searched = take_within("searched decisions", 0, num_actions);
  for (int i = 0, from = 0; i < num_searched; ++i) {
    if (from >= num_actions) refuse("more searched decisions than actions");
    SearchedDecision decision = {};
    decision.ply = static_cast<std::uint8_t>(take_within("ply", from, num_actions - 1));
    from = decision.ply + 1;
    decision.value = take_float();
    decision.version = take(std::uint32_t{});
    decision.num_actions = num_legal[decision.ply];
    std::uint32_t total = 0;
    for (int a = 0; a < decision.num_actions; ++a) {
      total += decision.counts[a] = take(std::uint16_t{});
    }
    if (total == 0) refuse("a searched decision without weight");
    record.searched.push_back(decision);
  }
  if (at != bytes.size()) refuse("bytes are left over");
  return record;
}

}  // namespace shmzero
