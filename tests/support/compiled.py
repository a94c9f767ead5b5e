"""A small network and its compiled form, which is made once for all test files: half a minute."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shmzero.nets.config import NetConfig

COMPILED = NetConfig(width=32, hidden=32, blocks=1)
"""The one network that is compiled."""


def compiled_precision() -> str:
    """What COMPILED is compiled in."""
    from shmzero.nets.precision import cpu_has_bf16

    return "bf16" if cpu_has_bf16() else "fp32"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the compiled form of COMPILED in compiled_precision()."""
    from shmzero.nets.compiled import start_compiler
    from shmzero.nets.inference_net import InferenceNet

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMZERO_CACHE", str(folder))
        helper = start_compiler(InferenceNet(COMPILED, compiled_precision()), "cpu")
    assert helper is not None and helper.wait() == 0
    return folder


def copied(cache: Path, folder: Path) -> Path:
    """The package of `cache` in a new folder, both as a helper makes them: for this user alone."""
    (package,) = cache.glob("*.pt2")
    folder.mkdir(mode=0o700)
    shutil.copy(package, folder)
    (folder / package.name).chmod(0o600)
    return folder / package.name
