"""Weights on disk: safetensors files, and what a file that is none is instead. Nothing in it is unpickled.

It knows no network: nets/blob_net.py reads checkpoints with it, inference/function.py the weights of a user's module.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors

from shmzero.errors import ConfigError

Value = TypeVar("Value")

HEAD_BYTES = 512
"""How many of a file's first bytes tell what it is."""
WRAPPERS = ("_orig_mod", "module")
"""Parts of a name that torch.compile and DataParallel put into it."""
BEGINNINGS = (
    (b"version https://git-lfs", "it is a git-lfs pointer, not the file itself: run git lfs pull"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it"),
    (b"BZh", "it is compressed with bzip2: unpack it"),
    (b"\xfd7zXZ", "it is compressed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd: unpack it"),
    (b"\x89HDF", "it is an HDF5 file"),
    (b"GGUF", "it is a GGUF file"),
    (b"\x93NUMPY", "it is a numpy file"),
)
TORCH_SAVE = (
    "it is a file of torch.save (.pt), and nothing is unpickled here: where it was made, write it with "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW), or with "
    "shmzero.nets.checkpoint.save_checkpoint where it is Blob's network"
)


@contextmanager
def opened(path: Path | str, what: str) -> Iterator[Any]:
    """A safetensors file, its tensors torch's, on the CPU.

    Raises ConfigError where it cannot be read, which begins with `what` the file is to the caller.
    """
    try:
        # Opened by its descriptor, as safetensors takes no path that is not UTF-8.
        with (
            open(path, "rb") as given,
            safetensors.safe_open(f"/proc/self/fd/{given.fileno()}", framework="pt", device="cpu") as file,
        ):
            yield file
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ConfigError(f"{what} {path} cannot be read: {kind_of(path) or ' '.join(str(error).split())}") from None


def read_tensors(path: Path | str, what: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensors by name, metadata) of a safetensors file. Raises as `opened`."""
    with opened(path, what) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def kind_of(path: Path | str) -> str | None:
    """What a file that is no safetensors file is instead, by its content; None where that is not known."""
    try:
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return error.strerror
    for beginning, kind in BEGINNINGS:
        if head.startswith(beginning):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "it is empty"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return "it is a web page (HTML or XML), which a download gave instead of the file"
    if head.startswith(b"PK\x03\x04"):
        return TORCH_SAVE if _holds_pickle(path) else "it is a zip archive: unpack it"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":  # the first byte of a pickle, and its protocol
        return TORCH_SAVE
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it"
    return _cut_short(path, head, size)


def _holds_pickle(path: Path | str) -> bool:
    """Whether a zip archive is one of torch.save. One that is cut short has no list of its files and counts as such."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True


def _cut_short(path: Path | str, head: bytes, size: int) -> str | None:
    """How much of a safetensors file is missing, where something is."""
    if head[8:9] != b"{":  # 8 bytes of length, then JSON
        return None
    header = int.from_bytes(head[:8], "little")
    if 8 + header > size:
        return f"it is cut short: of its header of {header} bytes there are {size - 8}"
    with open(path, "rb") as file:
        file.seek(8)
        try:
            entries = json.loads(file.read(header))
            end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
    if 8 + header + end > size:
        return f"it is cut short: of {8 + header + end} bytes there are {size}"
    return None


def in_names_of(own: Collection[str], given: Mapping[str, Value]) -> Mapping[str, Value]:
    """`given` by the names in `own`, where these differ only by what torch.compile and DataParallel put in."""
    own_names = {_unwrapped(name): name for name in own}
    names = {name: own_names.get(_unwrapped(name), name) for name in given}
    if len(set(names.values())) < len(given) or len(own_names) < len(own):
        return given  # two names would be one
    return {names[name]: value for name, value in given.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
