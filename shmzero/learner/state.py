"""The learner's state on disk: networks, optimisers, step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.learner.algorithm import Learner
from shmzero.nets.checkpoint import write_tensors
from shmzero.nets.weights_file import opened, read_tensors

FORMAT = "shmzero-learner-2"


def save_state(learner: Learner, path: Path, facts: dict[str, Any]) -> None:
    """Write everything that `load_state` needs to go on, and `facts` of the caller."""
    tensors = {f"net.{name}": t for name, t in learner.net.state_dict().items()}
    tensors |= {f"ema.{name}": t for name, t in learner.ema.state_dict().items()}
    if learner.critic is not None:
        tensors |= {f"critic.{name}": t for name, t in learner.critic.state_dict().items()}
    if learner.tricks is not None:
        tensors |= {f"tricks.{name}": t for name, t in learner.tricks.state_dict().items()}
    tensors |= {f"optimiser.{name}": t for name, t in learner.optimiser.state().items()}
    if learner.critic_optimiser is not None:
        tensors |= {f"critic_optimiser.{name}": t for name, t in learner.critic_optimiser.state().items()}
    tensors["generator"] = learner.generator.get_state()
    own = {"steps": learner.steps, "scaled": learner.scaled}
    metadata = {"format": FORMAT, "features": str(_core.FEATURE_VERSION), "facts": json.dumps(facts | own)}
    write_tensors(path, tensors, metadata)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a saved state. Raises ConfigError where the file is none."""
    with opened(path, "learner state") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or metadata.get("features") != str(_core.FEATURE_VERSION):
        raise ConfigError(
            f"learner state {path} has format {metadata.get('format')!r}, features "
            f"{metadata.get('features')}; allowed: {FORMAT!r}, {_core.FEATURE_VERSION}"
        )
    facts: dict[str, Any] = json.loads(metadata["facts"])
    return facts


def load_state(learner: Learner, path: Path) -> dict[str, Any]:
    """Put a learner where it was saved; returns the caller's facts. Raises ConfigError."""
    facts = read_facts(path)
    tensors, _ = read_tensors(path, "learner state")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}

    try:
        learner.net.load_state_dict(part("net."))
        learner.ema.load_state_dict(part("ema."))
        if learner.critic is not None:
            learner.critic.load_state_dict(part("critic."))
        if learner.tricks is not None:
            learner.tricks.load_state_dict(part("tricks."))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"learner state {path} is of other networks: {why}") from None
    learner.optimiser.load(part("optimiser."))
    if learner.critic_optimiser is not None:
        learner.critic_optimiser.load(part("critic_optimiser."))
    learner.generator.set_state(tensors["generator"])
    learner.steps, learner.scaled = facts["steps"], facts["scaled"]
    return facts
