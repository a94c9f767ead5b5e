"""The connection to a Ray cluster: found, or started on this machine, and what can be wrong with it.

All that this room asks of Ray as a whole is here; remote.py has what it asks of one actor.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from shmzero.errors import ConfigError, StartError
from shmzero.machine import cores, num_cuda_devices

ANSWERS_S = 5.0
"""How long the head of a cluster may take to accept a connection."""
STORE_BYTES = 256 << 20
"""Ray's object store on this machine, for the weights that are on their way."""
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}
"""What Ray reads from the environment when it is loaded, unless somebody has set it."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class NodeInfo:
    """A node that is alive, as Ray tells."""

    id: str
    """In hexadecimal digits."""
    address: str
    num_cpus: int
    num_gpus: int

    @property
    def name(self) -> str:
        """A name for people: several nodes may have one address."""
        return f"{self.address}/{self.id[:6]}"


class Connection:
    """This process's connection to a cluster. Use as a context manager, in one thread."""

    def __init__(self, address: str) -> None:
        """`address`: "auto" for the cluster that runs on this machine, "local" to start one, or HOST:PORT of a head.

        Raises ConfigError where Ray is not installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                'cluster is set and Ray is not installed; install it with: pip install "shmzero[cluster]"'
            )
        self.address = address
        self._folder: str | None = None
        """Where the processes of a cluster that was started here keep their files."""

    def __enter__(self) -> Self:
        """Connect, or start the cluster. Raises ConfigError where there is none, StartError where it cannot start."""
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if self.address not in ("auto", "local"):
            check_answers(self.address)
        try:
            with signals_kept():
                self._start() if self.address == "local" else self._join()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _join(self) -> None:
        with quiet_ray() as ray:
            try:
                ray.init(address=self.address, **QUIET)
            except ConnectionError as error:
                if self.address != "auto":
                    raise ConfigError(
                        f"cluster is {self.address!r}, and what answers there is no Ray head that this machine has "
                        f"joined ({one_line(error)}); join it with: ray start --address={self.address}"
                    ) from None
                raise ConfigError(
                    "cluster is 'auto', and no Ray cluster runs on this machine; start one with: ray start --head, "
                    "or use --cluster local"
                ) from None
            except (RuntimeError, ValueError, OSError) as error:
                raise ConfigError(f"cluster {self.address} cannot be joined: {one_line(error)}") from None

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="shmzero-", dir=short_folder())
        # Whoever knows the token may run programs by this cluster's ports: it is this run's, and lies in no file.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_worker_niceness", "0")
        with quiet_ray() as ray:
            try:
                ray.init(
                    address="local",
                    num_cpus=cores(),
                    num_gpus=num_cuda_devices(),
                    object_store_memory=STORE_BYTES,
                    include_dashboard=False,
                    _temp_dir=self._folder,
                    **QUIET,
                )
            except (RuntimeError, ValueError, OSError) as error:
                raise StartError(f"a Ray cluster cannot be started on this machine: {one_line(error)}") from None

    def nodes(self) -> list[NodeInfo]:
        """The nodes that are alive. Raises StartError where the head cannot be asked."""
        import ray

        try:
            found = ray.nodes()
        except Exception as error:  # whatever a connection that is gone makes of it
            raise StartError(
                f"the head of the Ray cluster is gone ({one_line(error)}); what was committed is kept: run the same "
                "command again once there is a cluster, or without --cluster"
            ) from None
        return [
            NodeInfo(
                node["NodeID"],
                node["NodeManagerAddress"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
            )
            for node in found
            if node["Alive"]
        ]

    def close(self) -> None:
        """Leave the cluster; end it where it was started here, and remove its files."""
        if (ray := loaded_ray()) is not None:
            with signals_kept():
                ray.shutdown()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # this object made it


QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR"}


def check_answers(address: str) -> None:
    """Raises ConfigError where nothing accepts connections at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S).close()
    except OSError as error:
        raise ConfigError(
            f"cluster is {address!r}, and nothing answers there: {error.strerror or error}; allowed: the address that "
            "`ray start --head` has printed, auto, or local"
        ) from None


def short_folder() -> str | None:
    """A folder for Ray's sockets, whose paths may not be longer than some 100 characters; None: the usual one."""
    return None if len(tempfile.gettempdir()) <= 40 else "/tmp"


def one_line(error: BaseException) -> str:
    """An error of Ray's for people."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def loaded_ray() -> Any:
    """Ray, where this process has loaded it, or None."""
    import sys

    return sys.modules.get("ray")


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Have this process's handlers of signals again afterwards: Ray sets its own."""
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def quiet_ray() -> Iterator[Any]:
    """Ray, which prints nothing while it connects, nor afterwards of nodes that are lost.

    A thread of it prints those on standard output, where a command's own output goes; there is no option against it.
    """
    import ray
    from ray._private import worker

    listen: Callable[..., None] | None = getattr(worker, "listen_error_messages", None)
    if listen is not None:
        worker.listen_error_messages = nothing
    try:
        yield ray
    finally:
        if listen is not None:
            worker.listen_error_messages = listen


def nothing(*arguments: object) -> None:
    """Do nothing."""
