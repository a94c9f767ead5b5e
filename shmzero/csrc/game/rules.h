// The rules of Blob: a round as plain data, its legal actions, and what an action does.
// Assumes legal input; the binding checks what comes from outside. Knows no features, no search.
// Read next: encode.h (what a seat sees of a round), determinize.h (what it cannot see).
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "game/cards.h"
#include "game/rng.h"

namespace shmzero {

enum class Phase : std::uint8_t { kBidding, kPlaying, kDone };

/// How a finished round is scored. kExact: 10 + bid if met, else 0. kTricks: the tricks, and 10
/// more if the bid was met. kPenalty: 10 + bid if met, else minus the difference.
enum class Scoring : std::uint8_t { kExact, kTricks, kPenalty };

/// `hook_from` of rules in which the dealer may bid what he likes.
inline constexpr int kHookNever = 255;

/// What a round needs to know of the rules.
struct RoundRules {
  std::uint8_t hook_from = 0;  ///< The hook applies in rounds of at least so many cards.
  Scoring scoring = Scoring::kExact;

  bool operator==(const RoundRules&) const = default;
};

/// The game a round belongs to, as far as its seats know it. All zero outside games.
struct GameContext {
  std::int16_t totals[kMaxPlayers] = {};  ///< Points before this round, by seat.
  std::uint16_t rounds_played = 0;
  std::uint16_t num_rounds = 0;  ///< 0 outside games.
  std::uint8_t next_cards = 0;   ///< Hand size of the following round, 0 after the last.

  bool operator==(const GameContext&) const = default;
};

/// Full state of one round. Copied whole by the search: plain data, no pointers.
struct Round {
  CardSet hands[kMaxPlayers];  ///< Still held, by seat.
  CardSet played;              ///< Of this round, the current trick included.
  CardSet in_trick;            ///< Of the current trick.
  /// Hash of the public actions in order; hidden cards never enter it.
  std::uint64_t history_hash;
  std::int8_t bids[kMaxPlayers];  ///< -1: not yet.
  std::uint8_t tricks_won[kMaxPlayers];
  std::uint8_t voids[kMaxPlayers];  ///< Bit per suit that the seat has shown it lacks.
  std::uint8_t trick[kMaxPlayers];  ///< Cards of the current trick, from the leader on.
  /// By card, of finished tricks: 1 + the dealer-relative seat that played it; else 0. The end is
  /// padding: 16 bytes can be read from any suit's first card on.
  std::uint8_t played_by[kNumCards + 4];
  GameContext game;
  std::uint8_t num_players;
  std::uint8_t cards;  ///< Hand size at the deal.
  std::uint8_t trump;  ///< Suit, or kNoTrump.
  std::uint8_t dealer;
  Phase phase;
  std::uint8_t seat;    ///< To act.
  std::uint8_t leader;  ///< Of the current trick.
  std::uint8_t trick_size;
  std::uint8_t winning_card;  ///< Of the current trick; meaningless while it is empty.
  std::uint8_t winning_seat;
  std::uint8_t tricks_done;
  std::uint8_t bids_made;
  std::uint8_t bid_sum;
  RoundRules rules;

  // No branches here and wherever the next card decides: they would be guessed wrong too often.
  int next_seat(int s) const { return (s + 1) & -static_cast<int>(s + 1 != num_players); }
  /// Seats clockwise from `from` to `s`.
  int relative(int s, int from) const {
    return s - from + (num_players & -static_cast<int>(s < from));
  }
  CardSet held() const {
    CardSet all = 0;
    for (int s = 0; s < num_players; ++s) all |= hands[s];
    return all;
  }
  /// Cards a seat still holds: known to all, unlike which.
  int hand_size(int s) const {
    if (phase == Phase::kDone) return 0;
    return cards - tricks_done - static_cast<int>(relative(s, leader) < trick_size);
  }
  bool hook_applies() const { return cards >= rules.hook_from; }
  /// The bid the seat to act may not make, or -1.
  int forbidden_bid() const {
    if (phase != Phase::kBidding || seat != dealer || !hook_applies()) return -1;
    const int bid = cards - bid_sum;
    return bid >= 0 ? bid : -1;
  }
  void start_bidding();
  bool operator==(const Round&) const = default;
};
static_assert(std::is_trivially_copyable_v<Round>);
static_assert(sizeof(Round) <= 216, "copied by every simulation");

/// Sets everything that follows from hands, num_players, cards, trump, dealer and rules.
inline void Round::start_bidding() {
  played = in_trick = 0;
  std::memset(played_by, 0, sizeof played_by);
  history_hash = 0;
  std::memset(bids, -1, sizeof bids);
  std::memset(tricks_won, 0, sizeof tricks_won);
  std::memset(voids, 0, sizeof voids);
  std::memset(trick, 0, sizeof trick);
  phase = Phase::kBidding;
  leader = static_cast<std::uint8_t>(next_seat(dealer));
  seat = leader;
  trick_size = winning_card = winning_seat = tricks_done = bids_made = bid_sum = 0;
}

/// Settings of a round before its cards are known.
struct RoundSettings {
  int num_players = 4;
  int cards = 5;
  int trump = kNoTrump;
  int dealer = 0;
  RoundRules rules = {};
  GameContext game = {};
};

inline Round make_round(const RoundSettings& settings, const CardSet* hands) {
  Round round{};
  for (int s = 0; s < settings.num_players; ++s) round.hands[s] = hands[s];
  round.num_players = static_cast<std::uint8_t>(settings.num_players);
  round.cards = static_cast<std::uint8_t>(settings.cards);
  round.trump = static_cast<std::uint8_t>(settings.trump);
  round.dealer = static_cast<std::uint8_t>(settings.dealer);
  round.rules = settings.rules;
  round.game = settings.game;
  round.start_bidding();
  return round;
}

/// Deals uniformly: a partial Fisher-Yates shuffle, the first cards to seat 0.
inline Round deal_round(const RoundSettings& settings, Rng rng) {
  std::uint8_t deck[kNumCards];
  for (int i = 0; i < kNumCards; ++i) deck[i] = static_cast<std::uint8_t>(i);
  CardSet hands[kMaxPlayers] = {};
  int next = 0;
  for (int s = 0; s < settings.num_players; ++s) {
    for (int i = 0; i < settings.cards; ++i, ++next) {
      const int other =
          next + static_cast<int>(rng.below(static_cast<std::uint32_t>(kNumCards - next)));
      std::swap(deck[next], deck[other]);
      hands[s] |= one_card(deck[next]);
    }
  }
  return make_round(settings, hands);
}

/// Legal actions of the seat to act, as bits of the action space; 0 when the round is over.
inline std::uint64_t legal(const Round& round) {
  if (round.phase == Phase::kPlaying) {
    const CardSet hand = round.hands[round.seat];
    const CardSet led = suit_cards(suit_of(round.trick[0])) & all_if(round.trick_size != 0);
    const CardSet follow = hand & led;
    return follow | (hand & all_if(follow == 0));
  }
  if (round.phase == Phase::kDone) return 0;
  std::uint64_t bids = (std::uint64_t{2} << round.cards) - 1;
  const int forbidden = round.forbidden_bid();
  if (forbidden >= 0) bids &= ~(std::uint64_t{1} << forbidden);
  return bids;
}

/// Whether `card` would take a trick in which `winner` lies.
inline bool beats(int card, int winner, int trump) {
  const int suit = suit_of(card);
  const bool same = suit == suit_of(winner);
  return (same & (card > winner)) | (!same & (suit == trump));
}

/// Plays a legal action of the seat to act.
inline void apply(Round& round, int action) {
  round.history_hash =
      (std::rotl(round.history_hash, 23) ^ static_cast<std::uint64_t>(action + 1)) *
      0x9e3779b97f4a7c15u;
  const int seat = round.seat;
  if (round.phase == Phase::kBidding) {
    round.bids[seat] = static_cast<std::int8_t>(action);
    round.bid_sum = static_cast<std::uint8_t>(round.bid_sum + action);
    round.seat = static_cast<std::uint8_t>(round.next_seat(seat));
    if (++round.bids_made == round.num_players) round.phase = Phase::kPlaying;
    return;
  }
  round.trick[round.trick_size] = static_cast<std::uint8_t>(action);
  const int suit = suit_of(action);
  const int led = suit_of(round.trick[0]);
  round.hands[seat] &= ~one_card(action);
  round.played |= one_card(action);
  round.in_trick |= one_card(action);
  round.voids[seat] |= static_cast<std::uint8_t>((suit != led) << led);
  const int takes =
      -static_cast<int>((round.trick_size == 0) | beats(action, round.winning_card, round.trump));
  round.winning_card ^= static_cast<std::uint8_t>((round.winning_card ^ action) & takes);
  round.winning_seat ^= static_cast<std::uint8_t>((round.winning_seat ^ seat) & takes);
  ++round.trick_size;
  if (round.trick_size < round.num_players) {
    round.seat = static_cast<std::uint8_t>(round.next_seat(seat));
    return;
  }
  for (int i = 0, by = round.relative(round.leader, round.dealer); i < round.num_players; ++i) {
    round.played_by[round.trick[i]] = static_cast<std::uint8_t>(by + 1);
    by = round.next_seat(by);
  }
  ++round.tricks_won[round.winning_seat];
  round.leader = round.seat = round.winning_seat;
  round.trick_size = 0;
  round.in_trick = 0;
  if (++round.tricks_done == round.cards) round.phase = Phase::kDone;
}

/// Points of a seat in a finished round.
inline int score(const Round& round, int seat) {
  const int bid = round.bids[seat];
  const int tricks = round.tricks_won[seat];
  switch (round.rules.scoring) {
    case Scoring::kExact: return tricks == bid ? 10 + bid : 0;
    case Scoring::kTricks: return tricks == bid ? 10 + tricks : tricks;
    case Scoring::kPenalty: return tricks == bid ? 10 + bid : -std::abs(tricks - bid);
  }
  return 0;
}

/// The one utility: (score - rivalry * mean score of the others) / (10 + cards).
inline float utility(const Round& round, int seat, float rivalry) {
  float value = static_cast<float>(score(round, seat));
  if (rivalry != 0.0f) {
    int others = 0;
    for (int s = 0; s < round.num_players; ++s) others += s == seat ? 0 : score(round, s);
    value -= rivalry * static_cast<float>(others) / static_cast<float>(round.num_players - 1);
  }
  return value / static_cast<float>(10 + round.cards);
}

/// A game's rules: which rounds it has and how each is played.
struct Rules {
  RoundRules round;
  std::vector<std::uint8_t> sequence;  ///< Hand sizes; empty: C..2, 1 x players, 2..C.
  std::vector<std::uint8_t> trumps = {0, 1, 2, 3, kNoTrump};  ///< In turn, one a round.

  std::vector<std::uint8_t> hand_sizes(int num_players, int cards) const {
    if (!sequence.empty()) return sequence;
    std::vector<std::uint8_t> sizes;
    for (int c = cards; c >= 2; --c) sizes.push_back(static_cast<std::uint8_t>(c));
    for (int i = 0; i < num_players; ++i) sizes.push_back(1);
    for (int c = 2; c <= cards; ++c) sizes.push_back(static_cast<std::uint8_t>(c));
    return sizes;
  }
  bool operator==(const Rules&) const = default;
};

/// A game in progress: which round is next and what every seat has scored.
struct Game {
  Game(int players, int cards, const Rules& game_rules, int first_dealer)
      : rules(game_rules),
        sizes(game_rules.hand_sizes(players, cards)),
        num_players(players),
        dealer(first_dealer) {}

  bool done() const { return round_index == static_cast<int>(sizes.size()); }

  /// Settings of the round at hand, with the score context filled.
  RoundSettings settings() const {
    RoundSettings next;
    next.num_players = num_players;
    next.cards = sizes[static_cast<std::size_t>(round_index)];
    next.trump = rules.trumps[static_cast<std::size_t>(round_index) % rules.trumps.size()];
    next.dealer = (dealer + round_index) % num_players;
    next.rules = rules.round;
    next.game.rounds_played = static_cast<std::uint16_t>(round_index);
    next.game.num_rounds = static_cast<std::uint16_t>(sizes.size());
    const std::size_t after = static_cast<std::size_t>(round_index) + 1;
    next.game.next_cards = after < sizes.size() ? sizes[after] : std::uint8_t{0};
    for (int s = 0; s < num_players; ++s) {
      next.game.totals[s] = static_cast<std::int16_t>(totals[static_cast<std::size_t>(s)]);
    }
    return next;
  }

  /// Adds a finished round's scores and moves on to the next.
  void finish(const Round& round) {
    for (int s = 0; s < num_players; ++s) totals[static_cast<std::size_t>(s)] += score(round, s);
    ++round_index;
  }
  bool operator==(const Game&) const = default;

  Rules rules;
  std::vector<std::uint8_t> sizes;  ///< Hand size of every round.
  int num_players;
  int dealer;           ///< Of the first round.
  int round_index = 0;  ///< Of the round at hand.
  std::array<int, kMaxPlayers> totals = {};
};

}  // namespace shmzero
