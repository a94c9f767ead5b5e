"""The connection to a Ray cluster: found, or started on this machine, and what can be wrong with it.

All that this room asks of Ray as a whole is here; remote.py has what it asks of one actor.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from shmzero.cli.command import Ending
from shmzero.errors import ConfigError, StartError
from shmzero.machine import cores, num_cuda_devices

ANSWERS_S = 5.0
"""How long the head of a cluster may take to accept a connection."""
ASK_S = 1.0
"""How often the head is asked which nodes there are."""
HEAD_S = 15.0
"""A head that has not answered for so long is gone."""
LONGEST_FOLDER = 40
"""Characters in the path of a folder for temporary files that is short enough."""
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
        self._folder: RayFolder | None = None
        """Where the processes of a cluster that was started here keep their files."""
        self._watch: HeadWatch | None = None

    def __enter__(self) -> Self:
        """Connect, or start the cluster. Raises ConfigError where there is none, StartError where it cannot start."""
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if self.address not in ("auto", "local"):
            check_answers(self.address)
        try:
            with signals_kept():
                self._start() if self.address == "local" else self._join()
            self._watch = HeadWatch()
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
        self._folder = folder = RayFolder()
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
                    _temp_dir=folder.path,
                    **QUIET,
                )
            except (RuntimeError, ValueError, OSError) as error:
                raise StartError(f"a Ray cluster cannot be started on this machine: {one_line(error)}") from None

    def nodes(self) -> list[NodeInfo]:
        """The nodes that are alive, as the head told within the last seconds. Raises StartError where it is gone."""
        assert self._watch is not None, "nobody has joined"
        return self._watch.nodes()

    def is_there(self) -> bool:
        """Whether the head has answered lately."""
        return self._watch is not None and self._watch.is_answered()

    def close(self) -> None:
        """Leave the cluster; end it where it was started here, and remove its files."""
        ray = sys.modules.get("ray")
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()
        if ray is not None and (watch is None or watch.is_answered()):
            with signals_kept():
                ray.shutdown()
        elif ray is not None:  # it would wait for the head for a minute, and end this process then
            atexit.unregister(ray.shutdown)
            Ending.is_at_once = True
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()


class RayFolder:
    """A folder for a cluster's files, which is removed with it, or by the next one where this process was killed."""

    PREFIX = "shmzero-ray-"

    def __init__(self) -> None:
        """Makes it, and removes those whose process is gone. Raises StartError."""
        parent = tempfile.gettempdir()
        if len(parent) > LONGEST_FOLDER:  # the paths of Ray's sockets may have some 100 characters
            parent = "/tmp"
        try:
            self._remove_left(parent)
            self.path = tempfile.mkdtemp(prefix=self.PREFIX, dir=parent)
            self._lock = os.open(os.path.join(self.path, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)  # held for as long as this process lives
        except OSError as error:
            raise StartError(f"a Ray cluster needs a folder in {parent}: {error.strerror}") from None

    def _remove_left(self, parent: str) -> None:
        """Remove folders of ours whose lock nobody holds; what has no lock yet is just being made."""
        for entry in os.scandir(parent):
            if not entry.name.startswith(self.PREFIX) or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            with contextlib.suppress(OSError):
                lock = os.open(os.path.join(entry.path, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(lock)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


class HeadWatch:
    """Asks the head which nodes there are, in a thread of its own: where the head is gone, the question hangs."""

    def __init__(self) -> None:
        self._found: list[NodeInfo] = []
        self._error = ""
        self._answered_at = time.monotonic()
        self._ends = threading.Event()
        self._ask()
        threading.Thread(target=self._run, name="shmzero-head", daemon=True).start()

    def nodes(self) -> list[NodeInfo]:
        """The nodes that were alive when the head was last asked. Raises StartError where it does not answer."""
        if not self.is_answered():
            raise StartError(
                f"the head of the Ray cluster does not answer{self._error and f' ({self._error})'}; what was committed "
                "is kept: run the same command again once there is a cluster, or without --cluster"
            )
        return self._found

    def is_answered(self) -> bool:
        """Whether the head has answered lately."""
        return time.monotonic() - self._answered_at < HEAD_S

    def stop(self) -> None:
        """Ask no more."""
        self._ends.set()

    def _run(self) -> None:
        while not self._ends.wait(ASK_S):
            try:
                self._ask()
            except Exception as error:  # whatever a connection that is gone makes of it
                self._error = one_line(error)

    def _ask(self) -> None:
        import ray

        self._found = [
            NodeInfo(
                node["NodeID"],
                node["NodeManagerAddress"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        self._answered_at = time.monotonic()


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


def one_line(error: BaseException) -> str:
    """An error of Ray's for people."""
    return " ".join(str(error).split())[:300] or type(error).__name__


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
