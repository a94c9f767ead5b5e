"""The compiled network: what loading it removes, trusts and leaves behind."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from shmzero.inference import compilation
from shmzero.inference.cpu import CpuNetDevice
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.compiled import (
    CUDA_PACKAGES_FROM,
    cache_folder,
    load_package,
    package_path,
    start_compiler,
    torch_version,
)
from shmzero.nets.inference_net import InferenceNet
from tests.support.compiled import COMPILED, compiled_precision, copied
from tests.support.processes import wait_for

LOADS = (
    "from tests.support.compiled import COMPILED, compiled_precision; from shmzero.nets.blob_net import BlobNet;"
    "from shmzero.inference.cpu import CpuNetDevice;"
    "device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16);"
    "device.launch(0, 16); print(device.description, flush=True);"
)
"""A program that serves a batch with the compiled network."""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A temporary folder (TMPDIR) that its user keeps a file in."""
    (tmp_path / "mine" / "thesis").mkdir(parents=True)
    (tmp_path / "mine" / "thesis" / "chapter.txt").write_text("years of work")
    return tmp_path / "mine"


def is_as_it_was(mine: Path) -> bool:
    return os.listdir(mine) == ["thesis"] and (mine / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.slow
def test_selfplay_with_the_compiled_network_leaves_the_users_temporary_folder_as_it_was(
    mine: Path, cache: Path, tmp_path: Path
) -> None:
    save_checkpoint(BlobNet(COMPILED), tmp_path / "net.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "shmzero.selfplay", "--rounds", "4", "--preset", "light", "--device", "cpu*2",
         "--precision", compiled_precision(), "--checkpoint", tmp_path / "net.safetensors", "--out", tmp_path / "run"],
        env=os.environ | {"TMPDIR": str(mine), "SHMZERO_CACHE": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count(f"cpu {compiled_precision()}, compiled\n") == 2, done.stdout + done.stderr
    assert is_as_it_was(mine)


@pytest.mark.slow
def test_process_that_is_killed_leaves_nothing_of_its_compiled_network_behind(mine: Path, cache: Path) -> None:
    environment = os.environ | {"TMPDIR": str(mine), "SHMZERO_CACHE": str(cache)}
    program = subprocess.Popen([sys.executable, "-c", LOADS + "input()"], env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline().endswith(", compiled\n")
    program.kill()
    program.communicate()
    assert is_as_it_was(mine)


def test_compiled_network_without_a_usable_temporary_folder_is_served_eagerly_and_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMZERO_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    (package,) = cache.glob("*.pt2")
    assert f"eagerly: {package} cannot be unpacked" in device.description and "/proc/nowhere" in device.description
    assert not device.compilation.is_pending
    device.launch(0, 16)


def test_package_loader_of_cuda_takes_the_folder_that_it_is_given(
    mine: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU twin: the loader finds in the package what device it is for."""
    if torch_version() < CUDA_PACKAGES_FROM:
        pytest.skip(f"torch {torch.__version__} takes no folder, and its compiled form on CUDA is not used")
    monkeypatch.setenv("SHMZERO_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(mine))
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    net, weights = device.inference_net, device.weights
    assert device.compilation.callable is not None
    call = load_package(package_path(net, "cpu"), "cuda:0", weights)
    features, masks = torch.rand(7, 256).half(), torch.full((7,), 255)
    for got, want in zip(
        call(features, masks, *weights), device.compilation.callable(features, masks, *weights), strict=True
    ):
        assert torch.equal(got, want)
    assert is_as_it_was(mine)


@pytest.mark.slow
def test_damaged_package_is_refused_whichever_byte_is_wrong(
    mine: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = copied(cache, tmp_path / "cache")
    whole, rng = damaged.read_bytes(), np.random.default_rng(1)
    monkeypatch.setenv("SHMZERO_CACHE", str(damaged.parent))
    monkeypatch.setattr(tempfile, "tempdir", str(mine))
    for at in rng.integers(0, len(whole), 20):
        damaged.write_bytes(whole[:at])
        device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
        assert f"eagerly: {damaged} cannot be loaded" in device.description
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
        device.launch(0, 16)  # where it did not matter it is loaded, and answers
    assert is_as_it_was(mine)


# --- whose cache it is ------------------------------------------------------------------------------


def set_or_delete(patch: pytest.MonkeyPatch, **variables: str | None) -> None:
    for name, value in variables.items():
        if value is None:
            patch.delenv(name, raising=False)
        else:
            patch.setenv(name, value)


HOME = pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize("given, base, home, want", [
    ("/given", "/base", "/home/me", "/given"),
    (None, "/base", "/home/me", "/base/shmzero"),
    ("", "", "/home/me", "/home/me/.cache/shmzero"),
    (None, "relative/base", "/home/me", "/home/me/.cache/shmzero"),
    (None, None, "/home/me", "/home/me/.cache/shmzero"),
    (None, None, "", f"{HOME}/.cache/shmzero"),
    (None, None, None, f"{HOME}/.cache/shmzero"),
    (None, "/base", None, "/base/shmzero"),
])  # fmt: skip
def test_cache_folder_is_where_the_environment_says(
    given: str | None, base: str | None, home: str | None, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_or_delete(monkeypatch, SHMZERO_CACHE=given, XDG_CACHE_HOME=base, HOME=home)
    assert cache_folder() == Path(want)


def test_user_without_a_home_is_served_eagerly_and_told_why() -> None:
    """As in `docker run --user 12345`, here in a user namespace."""
    nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if shutil.which("unshare") is None or subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("unshare makes no user namespace here")
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("HOME", "SHMZERO_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME")}  # fmt: skip
    done = subprocess.run([*nobody, sys.executable, "-c", LOADS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "eagerly: HOME is not set and user 12345 has no home folder" in done.stdout
    assert "name a folder of yours in SHMZERO_CACHE" in done.stdout


@pytest.mark.parametrize("where", ["/proc/nowhere", "file/cache"])
def test_cache_that_cannot_be_made_is_said_once_and_the_network_served_eagerly(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / where  # which is `where` if that is absolute
    monkeypatch.setenv("SHMZERO_CACHE", str(folder))
    monkeypatch.setattr(compilation, "LOOK_S", 0.0)
    monkeypatch.setattr(compilation, "COMPILE_AFTER_S", 0.0)
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    said = (
        [device.description]
        if not device.compilation.is_pending
        else [line for _ in range(3) if (line := device.poll())]
    )
    (line,) = said
    assert (
        f"eagerly: the cache {folder} cannot be " in line
        and not device.compilation.is_pending
        and device.poll() is None
    )
    device.launch(0, 16)


@pytest.mark.parametrize("what", ["folder", "package"])
@pytest.mark.parametrize("how", ["group", "others", "owner"])
def test_package_that_somebody_else_could_have_put_there_is_passed_over_and_said(
    what: str, how: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "owner" and os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    package = copied(cache, tmp_path / "cache")
    monkeypatch.setenv("SHMZERO_CACHE", str(package.parent))
    assert CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16).description.endswith(", compiled")
    wrong = package if what == "package" else package.parent
    if how == "owner":
        os.chown(wrong, 65534, -1)
    else:
        wrong.chmod(wrong.stat().st_mode | (0o020 if how == "group" else 0o002))
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    why = "belongs to user 65534" if how == "owner" else "can be written by others (mode "
    assert f"eagerly: {wrong} {why}" in device.description
    assert device.compilation.callable is None and not device.compilation.is_pending
    device.launch(0, 16)


def test_cache_on_a_full_disk_is_said_and_the_network_served_eagerly(tmp_path: Path) -> None:
    small = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o size=1m,mode=700 tmpfs "$0" && exec "$@"', str(tmp_path)]  # fmt: skip
    if shutil.which("unshare") is None or subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("a file system of one megabyte cannot be mounted here")
    code = (
        "from shmzero.inference import compilation; compilation.LOOK_S = compilation.COMPILE_AFTER_S = 0.0;" + LOADS
        + "print(device.poll()); assert not device.compilation.is_pending; device.launch(0, 16)"
    )  # fmt: skip
    done = subprocess.run([*small, sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"SHMZERO_CACHE": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"serves eagerly: the disk of the cache {tmp_path} has 1 MiB left, compiling needs 32" in done.stdout


def test_cache_folder_that_is_made_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMZERO_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    before = os.umask(0o002)
    try:
        helper = start_compiler(InferenceNet(COMPILED, "fp32"), "cpu")
    finally:
        os.umask(before)
    assert helper is not None and helper.wait() == 0
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700


# --- the helper that fills it -----------------------------------------------------------------------


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; what is started there as a compile helper waits to be killed."""
    monkeypatch.setenv("SHMZERO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "helper").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "helper").chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "helper"))
    monkeypatch.setattr(compilation, "LOOK_S", 0.0)
    monkeypatch.setattr(compilation, "COMPILE_AFTER_S", 0.0)
    return tmp_path / "cache"


def end(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    helper.wait()


@pytest.mark.slow
def test_of_two_servers_one_starts_a_helper_and_both_take_up_what_it_makes(helpers: Path, cache: Path) -> None:
    servers = [CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16) for _ in range(2)]
    assert [server.description.endswith("eagerly until its compiled form is ready") for server in servers] == [True] * 2
    assert all(server.poll() is None for _ in range(3) for server in servers)
    started = [server.compilation.helper for server in servers if server.compilation.helper is not None]
    assert len(started) == 1
    package = copied(cache, helpers.with_name("arriving"))
    package.replace(helpers / package.name)
    for server in servers:
        line = server.poll() or ""
        assert re.fullmatch(r"serves the compiled network from \d\d:\d\d:\d\d on, \d+ s after it began to serve", line)
        assert server.compilation.callable is not None
    end(started[0])


@pytest.mark.slow
def test_helper_that_was_killed_is_followed_by_that_of_another_server(helpers: Path) -> None:
    net = InferenceNet(COMPILED, "fp32")
    first = start_compiler(net, "cpu")
    assert first is not None and start_compiler(net, "cpu") is None
    end(first)
    second = start_compiler(net, "cpu")
    assert second is not None
    end(second)


@pytest.mark.slow
def test_helper_is_started_after_the_first_rounds(helpers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "COMPILE_AFTER_S", 3600.0)
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    assert device.poll() is None and device.compilation.helper is None and device.compilation.is_pending
    device.compilation.began_at -= 3600
    assert device.poll() is None and device.compilation.helper is not None
    end(device.compilation.helper)


def test_helper_that_fails_or_cannot_be_started_is_said_and_the_network_served_eagerly(
    helpers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper").write_text("#!/bin/sh\necho all is well >&2; echo the compiler is broken >&2; exit 3\n")
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    assert device.poll() is None and device.compilation.helper is not None and device.compilation.helper.wait() == 3
    assert device.poll() == "serves eagerly: the compile helper ended with status 3 (the compiler is broken)"
    (tmp_path / "helper").unlink()
    device = CpuNetDevice(BlobNet(COMPILED), compiled_precision(), True, 16)
    assert device.poll() == "serves eagerly: the compile helper cannot be started (No such file or directory)"
    assert device.poll() is None and not device.compilation.is_pending
    device.launch(0, 16)


@pytest.mark.slow
def test_compile_helper_shares_the_cores_ends_with_whoever_started_it_and_leaves_nothing(
    mine: Path, tmp_path: Path
) -> None:
    """The starter is killed while a compiler runs: a moment later no process of the helper's group is left."""
    code = (
        "from shmzero.nets.inference_net import InferenceNet; from shmzero.nets.compiled import start_compiler; from tests.support.compiled import COMPILED;"
        "helper = start_compiler(InferenceNet(COMPILED, 'fp32'), 'cpu'); print(helper.pid, flush=True); input()"
    )
    environment = os.environ | {"SHMZERO_CACHE": str(tmp_path / "cache"), "TMPDIR": str(mine)}
    starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=environment)  # fmt: skip
    assert starter.stdout is not None
    helper = int(starter.stdout.readline())

    def group() -> list[str]:
        """Commands of the living processes of the helper's group."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == helper and fields[0] != "Z":
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except (OSError, ValueError):
                pass
        return found

    try:
        # The driver runs the compiler proper once it has made its temporary files.
        wait_for(lambda: any("cc1plus" in command or "clang" in command for command in group()), starter)
        assert os.getsid(helper) == helper
        assert os.getpriority(os.PRIO_PROCESS, helper) == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        starter.kill()
        starter.communicate()
    wait_for(lambda: not group())
    assert is_as_it_was(mine)
    assert not list((tmp_path / "cache").glob("*.pt2"))
