"""Settings of one decision's search: defaults and what is allowed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.settings import Settings, setting

PRESETS: dict[str, tuple[int, int]] = {"light": (2, 20), "medium": (3, 30), "heavy": (5, 50)}
"""Determinizations and simulations in each."""
MOST_SIMULATIONS = 1 << 18
"""The most simulations of a decision, over all worlds (under max^n seats too); each takes 300 to 600 bytes."""


@dataclass(frozen=True)
class SearchConfig(Settings):
    """One decision's search. Utilities are about 0 to 1, and so are `c_puct` and its like."""

    determinizations: int = setting(3, low=1, high=10_000)
    """Worlds D drawn for a decision."""
    simulations: int = setting(30, low=0, high=1_000_000)
    """Simulations S in each world; 0 plays the policy itself."""
    leaves_in_flight: int = setting(1, low=1, high=4096)
    """Leaves per tree and step; capped at simulations / 4."""
    c_puct: float = setting(1.25, low=0, high=1000)
    fpu_reduction: float = setting(0.1, low=-10, high=10)
    """An untried action counts as its parent's estimate less this."""
    opponents: Literal["policy", "maximise"] = "policy"
    """How the other seats choose: by their policy, or each for its own utility (max^n)."""
    root: Literal["puct", "halving"] = "puct"
    target: Literal["visits", "improved"] = "visits"
    """Policy target: visit counts, or prior x exp(improved_beta x Q)."""
    improved_beta: float = setting(8.0, low=0, high=1000)
    considered: int = setting(16, low=1, high=_core.NUM_ACTIONS)
    """Root actions that sequential halving starts with."""
    known_hands: bool = False
    """Search the deal as it is, in one world. For analysis and tests; never set by self-play."""
    noise_fraction: float = setting(0.0, low=0, high=1)
    """Share of Dirichlet noise in the root's prior; it never enters a target. Without simulations the
    share of moves drawn uniformly."""
    noise_alpha: float = setting(1.0, low=1e-3, high=1000)
    temperature: float = setting(1.0, low=0, high=100)
    """Self-play draws its moves from visits^(1/temperature), without simulations from policy^(1/temperature) but for
    the noise's share; halving plays its best action instead."""
    temperature_decisions: int = setting(99, low=0, high=1000)
    """Decisions of a round played with `temperature`; later ones with `final_temperature`."""
    final_temperature: float = setting(0.0, low=0, high=100)
    rivalry: float = setting(0.0, low=0, high=10)
    """Weight of the others' mean score in the utility."""
    solved_cards: int = setting(0, low=0, high=20)
    """Leaves with so few cards in all hands get the exact max^n value of their world: a clairvoyant's. 0: none."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.root == "halving" and self.target == "visits" and self.noise_fraction > 0 < self.simulations:
            raise ConfigError("target is 'visits' with root 'halving' and noise; allowed: target 'improved'")
        if self.size() > MOST_SIMULATIONS:
            seats = f" for {_core.MAX_PLAYERS} seats each" if self.opponents == "maximise" else ""
            raise ConfigError(
                f"determinizations x simulations is {self.determinizations} x {self.simulations}{seats}; "
                f"allowed: {MOST_SIMULATIONS} in all"
            )

    def size(self) -> int:
        """Simulations of a decision over all worlds, times the seats whose values each may keep."""
        seats = _core.MAX_PLAYERS if self.opponents == "maximise" else 1
        return (1 if self.known_hands else self.determinizations) * self.simulations * seats

    def to_core(self) -> _core.SearchConfig:
        """The same settings as the core takes them."""
        core = _core.SearchConfig()
        enums = {"opponents": _core.Opponents, "root": _core.RootRule, "target": _core.Target}
        for name, value in asdict(self).items():
            setattr(core, name, getattr(enums[name], value) if name in enums else value)
        return core
