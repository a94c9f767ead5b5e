"""Files of weights that are none: what they are instead is said wherever such a path is given."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from shmzero import BatchedEvaluator, ConfigError
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.nets.weights_file import in_names_of, kind_of, read_tensors
from tests.support.service_programs import make_module
from tests.support.services import WIDTHS

ROOT = Path(__file__).parents[2]


def saved(how: Any) -> bytes:
    file = io.BytesIO()
    how(file)
    return file.getvalue()


def archive(kind: Any, **mode: Any) -> bytes:
    def write(file: Any) -> None:
        with kind(file) as zipped:
            zipped.writestr("weights.txt", b"1 2 3")

    return saved(write)


def tar(file: Any) -> None:
    with tarfile.open(fileobj=file, mode="w") as whole:
        whole.add(__file__, "weights")


TENSORS = {"a": torch.arange(100.0), "b": torch.ones(3)}
GOOD = safetensors.torch.save(TENSORS)
PT = "a file of torch.save .*nothing is unpickled.*safetensors.torch.save_file"
KINDS = {
    "pt": (saved(lambda file: torch.save(TENSORS, file)), PT),
    "whole module": (saved(lambda file: torch.save(torch.nn.Linear(2, 2), file)), PT),
    "legacy pt": (saved(lambda file: torch.save(TENSORS, file, _use_new_zipfile_serialization=False)), PT),
    "cut pt": (saved(lambda file: torch.save(TENSORS, file))[:300], PT),
    "pickle": (pickle.dumps({"a": [1.0]}), PT),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "git-lfs pointer.*git lfs pull",
    ),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "html without a head": (b"<HTML lang=en>404</HTML>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    "gzip": (gzip.compress(GOOD), "compressed with gzip"),
    "tar": (saved(tar), "tar archive"),
    "zip": (archive(lambda file: zipfile.ZipFile(file, "w")), "zip archive"),
    "empty": (b"", "it is empty"),
    "cut": (GOOD[:-50], rf"cut short: of {len(GOOD)} bytes there are {len(GOOD) - 50}"),
    "cut header": (GOOD[:40], "cut short: of its header"),
    "words": (b"these are no weights at all", "cannot be read"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_is_no_safetensors_file_is_named_for_what_it_is(kind: str, tmp_path: Path) -> None:
    content, named = KINDS[kind]
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    for read in (load_checkpoint, lambda given: read_tensors(given, "weights")):
        with pytest.raises(
            ConfigError, match=rf"net.safetensors cannot be read: .*{named.replace('cannot be read', '')}"
        ) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_weights_of_a_service_that_are_no_safetensors_file_are_named_and_the_old_stay(tmp_path: Path) -> None:
    with BatchedEvaluator(make_module(), *WIDTHS, device="cpu") as served:
        for kind in ("pt", "lfs", "empty"):
            (tmp_path / kind).write_bytes(KINDS[kind][0])
            with pytest.raises(ConfigError, match=f"weights .*{kind} cannot be read: .*{KINDS[kind][1]}"):
                served.swap(tmp_path / kind)
        assert served.version == 0


def test_pickle_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Evil(), tmp_path / "net.pt")
    assert (kind_of(tmp_path / "net.pt") or "").startswith("it is a file of torch.save")
    with pytest.raises(ConfigError, match="nothing is unpickled"):
        load_checkpoint(tmp_path / "net.pt")
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)


def test_commands_name_the_kind_of_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(KINDS["pt"][0])
    commands = {
        "selfplay": ["--checkpoint", path, "--rounds", 5, "--out", tmp_path / "out", "--device", "cpu"],
        "arena": [path, "random", "--deals", 2],
        "serve": ["--checkpoint", path, "--device", "cpu", "--no-compile"],
    }
    started = {
        name: subprocess.Popen([sys.executable, "-m", f"shmzero.{name}", *map(str, arguments)], cwd=ROOT,
                               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for name, arguments in commands.items()
    }  # fmt: skip
    for name, process in started.items():
        said = process.communicate()[1].splitlines()
        assert process.returncode == 2, (name, said)
        assert said[-1].startswith("error: checkpoint ") and "a file of torch.save" in said[-1], (name, said)


def test_checkpoint_of_a_compiled_network_is_that_of_the_network(tmp_path: Path) -> None:
    net = BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=3)
    save_checkpoint(torch.compile(net, backend="eager"), tmp_path / "net.safetensors")  # type: ignore[arg-type]
    found = load_checkpoint(tmp_path / "net.safetensors").state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in net.state_dict().items())


def test_names_are_matched_by_what_compile_and_data_parallel_leave_of_them() -> None:
    assert in_names_of({"a.w"}, {"_orig_mod.module.a.w": 1}) == {"a.w": 1}
    assert in_names_of({"module._orig_mod.a.w"}, {"a._orig_mod.w": 1}) == {"module._orig_mod.a.w": 1}
    assert in_names_of({"a.w"}, {"b.w": 1, "module.a.w": 2}) == {"b.w": 1, "a.w": 2}
    assert in_names_of({"w"}, {"w": 1, "module.w": 2}) == {"w": 1, "module.w": 2}  # it could be either
    assert in_names_of({"w", "module.w"}, {"w": 1, "module.w": 2}) == {"w": 1, "module.w": 2}
