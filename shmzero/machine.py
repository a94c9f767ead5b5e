"""What this machine has: cores and CUDA devices, found out without torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shmzero.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """What settings are resolved for."""

    cores: int
    """Cores that this process may use."""
    has_cuda: bool
    """Whether there is an NVIDIA device and a torch that can use it."""

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        return cls(cores(), has_cuda())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def has_cuda() -> bool:
    """Whether there is an NVIDIA device and a torch that can use it, without importing that."""
    return has_nvidia() and torch_has_cuda() and num_cuda_devices() > 0


@functools.cache
def num_cuda_devices() -> int:
    """NVIDIA devices that this process may use, as the driver counts them; CUDA_VISIBLE_DEVICES may hide some.

    Asked in a process of its own: one that has asked the driver can no longer fork.
    """
    program = (
        "import ctypes; driver = ctypes.CDLL('libcuda.so.1'); number = ctypes.c_int()\n"
        "print(number.value if driver.cuInit(0) == driver.cuDeviceGetCount(ctypes.byref(number)) == 0 else 0)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


def check_cuda(setting: str, value: str, devices: Iterable[str]) -> None:
    """Raises ConfigError where `value` of a setting stands for a CUDA device that cannot be used here.

    devices: what it stands for, as "cpu", "cuda" or "cuda:N".
    """
    wanted = [int(device.partition(":")[2] or 0) for device in devices if device.startswith("cuda")]
    if not wanted:
        return
    if not torch_has_cuda():
        raise ConfigError(f"{setting} is {value!r}, and the installed torch was built without CUDA; allowed: auto, cpu")
    number = num_cuda_devices()
    if max(wanted) >= number:
        there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(number))])
        raise ConfigError(f"{setting} is {value!r}, and the NVIDIA devices here are {number}; allowed: {there}")


def has_nvidia() -> bool:
    """Whether the kernel has an NVIDIA device."""
    return Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists()


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for NVIDIA devices, without importing it."""
    found = importlib.util.find_spec("torch")
    folders = (found.submodule_search_locations if found else None) or ()
    return any((Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in folders)
