"""A match in words."""

from __future__ import annotations

from typing import Any, Final, Literal

GATE: Final = "gate"
"""Mode of a match that decides whether self-play gets a checkpoint."""
Mode = Literal["one", "rest", "gate"]
"""Who sits where in a match, or what it is for: see SEATS."""
SEATS = {"one": "one seat against all others", "rest": "all seats but one", GATE: "the gate"}


def match_words(match: dict[str, Any]) -> str:
    """A match in one line."""
    words = (
        f"{match['mean']:+.2f} points a round ({match['low']:+.2f} to {match['high']:+.2f}) against "
        f"{match['opponent']}, {match['deals']} {'games' if match['games'] else 'deals'}, {SEATS[match['mode']]}"
    )
    share = f"; {match['win_share']:.0%} of the wins, {match['fair_share']:.0%} being even"
    return words + share if match["games"] else words
