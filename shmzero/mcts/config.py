"""Settings of one decision's search: defaults and what is allowed."""

from __future__ import annotations

from dataclasses import Field, asdict, dataclass
from typing import Any, ClassVar, Literal

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.settings import Settings, setting

PRESETS: dict[str, tuple[int, int]] = {"light": (2, 20), "medium": (3, 30), "heavy": (5, 50)}
"""Determinizations and simulations in each."""
MOST_SIMULATIONS = 1 << 18
"""The most simulations of a decision, over all worlds (under max^n seats too); each takes 300 to 600 bytes."""


@dataclass(frozen=True)
class SearchRules(Settings):
    """What searches of every size and purpose have."""

    title: ClassVar[str] = "search"

    root: Literal["puct", "halving"] = "puct"
    """Rule that shares the simulations among the root's actions: PUCT or sequential halving."""
    opponents: Literal["policy", "maximise"] = setting("policy", name="opponent_model")
    """How a search has the other seats choose: by their policy, or each for its own utility (max^n)."""
    rivalry: float = setting(0.0, low=0, high=10)
    """Weight of the others' mean score in the utility."""
    solved_cards: int = setting(0, low=0, high=20)
    """Leaves with so few cards in all hands get the exact max^n value of their world: a clairvoyant's. 0: none."""


@dataclass(frozen=True)
class MoveRules(SearchRules):
    """What self-play can set besides: how its moves are drawn, and what is recorded of a search."""

    leaves_in_flight: int = setting(1, low=1, high=4096)
    """Leaves per tree and step, at most simulations / 4."""
    target: Literal["visits", "improved"] = setting("visits", name="targets")
    """Recorded policy target: visit counts, or the prior improved by the values found, prior x exp(beta x Q)."""
    noise_alpha: float = setting(1.0, low=1e-3, high=1000)
    """Concentration of the noise in the root's priors: small is spiky, large is even."""
    temperature: float = setting(1.0, low=0, high=100)
    """Moves are drawn from visits^(1/temperature), without a search from policy^(1/temperature): 0 plays the highest,
    1 in proportion. Halving plays its best action instead."""
    temperature_decisions: int = setting(99, low=0, high=1000)
    """Decisions of a round that are played with the temperature; later ones play the highest."""


@dataclass(frozen=True)
class SearchConfig(MoveRules):
    """One decision's search. Utilities are about 0 to 1, and so are `c_puct` and its like."""

    determinizations: int = setting(3, low=1, high=10_000)
    """Worlds D drawn for a decision."""
    simulations: int = setting(30, low=0, high=1_000_000)
    """Simulations S in each world; 0 plays the policy itself."""
    c_puct: float = setting(1.25, low=0, high=1000)
    """Weight of the priors against the values found."""
    fpu_reduction: float = setting(0.1, low=-10, high=10)
    """An untried action counts as its parent's estimate less this."""
    improved_beta: float = setting(8.0, low=0, high=1000)
    """Weight of Q in the target `improved`."""
    considered: int = setting(16, low=1, high=_core.NUM_ACTIONS)
    """Root actions that sequential halving starts with."""
    known_hands: bool = False
    """Search the deal as it is, in one world. For analysis and tests; never set by self-play."""
    noise_fraction: float = setting(0.0, low=0, high=1)
    """Share of Dirichlet noise in the root's prior; it never enters a target. Without simulations the
    share of moves drawn uniformly."""
    final_temperature: float = setting(0.0, low=0, high=100)
    """Temperature of the decisions after `temperature_decisions`."""

    @classmethod
    def called(cls, one: Field[Any]) -> str:
        """Its users write the fields' own names."""
        return one.name

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
