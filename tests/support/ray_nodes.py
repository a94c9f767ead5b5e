"""A Ray cluster for tests: real `ray start` processes, each node with all that belongs to it in a session of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""A dead node is noticed within seconds; a machine that stood still for a moment makes none."""


class RayNodes:
    """A head without cores, and nodes that come and go. Use through `ray_nodes`."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # the paths of its sockets have to be short
        self.nodes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = free.getsockname()[1]
        self.environment = os.environ | ENVIRONMENT
        self.environment.pop("RAY_ADDRESS", None)
        self._head = self._start("--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false")
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert self._head.poll() is None, "the head of the cluster ended"
            time.sleep(0.05)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).with_name("ray")
        # Of nodes that start at the same time in one folder, one may take the other's sockets and never join.
        folder = tempfile.mkdtemp(dir=self._folder)
        fixed = ["--block", "--object-store-memory=83886080", f"--temp-dir={folder}", "--disable-usage-stats"]
        return subprocess.Popen(
            [ray, "start", *fixed, *options],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, cpus: int = 1, **environment: str) -> subprocess.Popen[bytes]:
        """Start a node; it joins within seconds."""
        node = self._start(f"--address={self.address}", f"--num-cpus={cpus}", **environment)
        self.nodes.append(node)
        return node

    def remove(self, node: subprocess.Popen[bytes]) -> None:
        """Kill all processes of a node at once, as a power cut does."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        self.nodes.remove(node)
        end_session(node.pid)

    def close(self) -> None:
        for node in [*self.nodes, self._head]:
            end_session(node.pid)
            node.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def processes() -> Iterator[tuple[int, int, str]]:
    """(process, session, command line) of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
        except (OSError, IndexError):
            continue
        yield int(folder.name), session, line


def end_session(session: int) -> None:
    """Kill every process of a session, and wait until there is none."""
    while found := [pid for pid, of, line in processes() if of == session and line]:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)


def pids_of(*words: str) -> list[int]:
    """Processes of this test run's clusters whose command line has one of these words."""
    return [pid for pid, _, line in processes() if any(word in line for word in words) and is_ours(pid)]


def is_ours(pid: int) -> bool:
    """Whether a process has the token of this test run, which all that its clusters start inherits."""
    try:
        return ENVIRONMENT["RAY_AUTH_TOKEN"].encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def any_cluster_runs() -> bool:
    """Whether somebody has a Ray cluster on this machine."""
    return any("gcs_server" in line for _, _, line in processes())


OURS = ("ray::NodeEngine", "shmzero.engine.worker", "shmzero.inference.process")
"""What the command lines of a node's processes say."""


@contextmanager
def ray_nodes(nodes: int) -> Iterator[RayNodes]:
    """A cluster with so many nodes of one core; nothing of it is left."""
    cluster = RayNodes()
    try:
        for _ in range(nodes):
            cluster.add()
        yield cluster
    finally:
        cluster.close()
