"""Cards and recorded rounds as text."""

from __future__ import annotations

from shmzero import _core
from shmzero.game.deals import SUITS


def card_name(card: int) -> str:
    """The short name of a card, such as SA or H2."""
    return "SHCD"[card // 13] + "23456789TJQKA"[card % 13]


def show(record: bytes) -> str:
    """A round as text, a line a step."""
    r = _core.decode_record(record)
    n = r["players"]
    trump = SUITS[_core.NO_TRUMP if r["trump"] is None else r["trump"]]
    lines = [f"round {r['id']}: {n} players, {r['cards']} cards, trump {trump}, dealer seat {r['dealer']}"]
    for seat, hand in enumerate(r["hands"]):
        lines.append(f"  seat {seat}  {' '.join(map(card_name, hand))}")
    first = (r["dealer"] + 1) % n
    bids = [f"seat {(first + i) % n} bids {r['actions'][i]}" for i in range(n)]
    lines.append("  " + ", ".join(bids))
    cards = r["actions"][n:]
    lines += ["  trick " + " ".join(card_name(card) for card in cards[at : at + n]) for at in range(0, len(cards), n)]
    lines.append(f"  tricks {r['tricks_won']}  scores {r['scores']}")
    return "\n".join(lines)
