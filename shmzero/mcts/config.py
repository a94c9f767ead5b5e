"""Settings of one decision's search: defaults and what is allowed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.settings import check_choice, check_number, check_types

PRESETS: dict[str, tuple[int, int]] = {"light": (2, 20), "medium": (3, 30), "heavy": (5, 50)}
"""Determinizations and simulations in each."""
MOST_SIMULATIONS = 1 << 18
"""The most simulations of a decision, over all worlds (under max^n seats too); each takes 300 to 600 bytes."""


@dataclass(frozen=True)
class SearchConfig:
    """One decision's search. Utilities are about 0 to 1, and so are `c_puct` and its like."""

    determinizations: int = 3
    """Worlds D drawn for a decision."""
    simulations: int = 30
    """Simulations S in each world; 0 plays the policy itself."""
    leaves_in_flight: int = 1
    """Leaves per tree and step; capped at simulations / 4."""
    c_puct: float = 1.25
    fpu_reduction: float = 0.1
    """An untried action counts as its parent's estimate less this."""
    opponents: Literal["policy", "maximise"] = "policy"
    """How the other seats choose: by their policy, or each for its own utility (max^n)."""
    root: Literal["puct", "halving"] = "puct"
    target: Literal["visits", "improved"] = "visits"
    """Policy target: visit counts, or prior x exp(improved_beta x Q)."""
    improved_beta: float = 8.0
    considered: int = 16
    """Root actions that sequential halving starts with."""
    known_hands: bool = False
    """Search the deal as it is, in one world. For analysis and tests; never set by self-play."""
    noise_fraction: float = 0.0
    """Share of Dirichlet noise in the root's prior; it never enters a target. Without simulations the
    share of moves drawn uniformly."""
    noise_alpha: float = 1.0
    temperature: float = 1.0
    """Self-play draws its moves from visits^(1/temperature), without simulations from policy^(1/temperature) but for
    the noise's share; halving plays its best action instead."""
    temperature_decisions: int = 99
    """Decisions of a round played with `temperature`; later ones with `final_temperature`."""
    final_temperature: float = 0.0
    rivalry: float = 0.0
    """Weight of the others' mean score in the utility."""
    solved_cards: int = 0
    """Leaves with so few cards in all hands get the exact max^n value of their world: a clairvoyant's. 0: none."""

    def __post_init__(self) -> None:
        check_types(self)
        check_number("determinizations", self.determinizations, 1, 10_000)
        check_number("simulations", self.simulations, 0, 1_000_000)
        check_number("leaves_in_flight", self.leaves_in_flight, 1, 4096)
        check_number("c_puct", self.c_puct, 0, 1000)
        check_number("fpu_reduction", self.fpu_reduction, -10, 10)
        check_choice("opponents", self.opponents, ("policy", "maximise"))
        check_choice("root", self.root, ("puct", "halving"))
        check_choice("target", self.target, ("visits", "improved"))
        if self.root == "halving" and self.target == "visits" and self.noise_fraction > 0 < self.simulations:
            raise ConfigError("target is 'visits' with root 'halving' and noise; allowed: target 'improved'")
        check_number("improved_beta", self.improved_beta, 0, 1000)
        check_number("considered", self.considered, 1, _core.NUM_ACTIONS)
        check_number("noise_fraction", self.noise_fraction, 0, 1)
        check_number("noise_alpha", self.noise_alpha, 1e-3, 1000)
        check_number("temperature", self.temperature, 0, 100)
        check_number("temperature_decisions", self.temperature_decisions, 0, 1000)
        check_number("final_temperature", self.final_temperature, 0, 100)
        check_number("rivalry", self.rivalry, 0, 10)
        check_number("solved_cards", self.solved_cards, 0, 20)
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
