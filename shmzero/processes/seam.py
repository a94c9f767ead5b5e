"""Where somebody else's function takes the place of one of ours in a child process: the environment names it.

`SHMZERO_DEVICE=module:function` makes the device of every inference process out of its spec (inference/factory.py),
`SHMZERO_WORKER_LOOP=module:function` is called instead of the loop of every worker (engine/worker.py). Tests break
children with these. The parent's settings do not know of them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def replaceable(function: Function, variable: str) -> Function:
    """The function that the environment's `variable` names, which takes and returns the same; else `function`."""
    module, _, name = os.environ.get(variable, "").partition(":")
    if not module:
        return function
    named: Function = getattr(importlib.import_module(module), name)
    return named
