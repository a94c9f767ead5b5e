"""Who may know whom: rooms and folders of C++ in the README's order, and nothing in them that looks upwards."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shmzero"
CSRC = PACKAGE / "csrc"

GROUND = {"errors", "version", "files", "machine", "settings"}
MAY_USE: dict[str, set[str]] = {
    "cli": set(),
    "game": set(),
    "mcts": {"game"},
    "nets": {"game"},
    "shm": set(),
    "processes": {"shm"},
    "inference": {"nets", "shm", "processes"},
    "runs": {"game", "nets"},
    "engine": {"game", "mcts", "nets", "shm", "processes", "inference", "runs"},
    "cluster": {"cli", "game", "processes", "runs", "engine"},
    "service": {"cli", "nets", "shm", "inference"},
    "learner": {"nets", "processes", "runs"},
    "matches": {"game", "mcts", "nets", "processes", "inference", "runs", "learner"},
    "training": {"game", "mcts", "nets", "processes", "inference", "runs", "engine", "learner", "matches"},
}
"""What each room may import besides the ground, lowest first: a room stands above all that it uses."""
DOORS = {"__main__", "arena", "evaluators", "plot", "records", "selfplay", "serve", "train"}
MAY_IMPORT_TORCH = {
    "nets/blob_net.py", "nets/checkpoint.py", "nets/compile.py", "nets/compiled.py", "nets/evaluator.py",
    "nets/inference_net.py", "nets/masks.py", "nets/precision.py",
    "inference/compilation.py", "inference/cpu.py", "inference/cuda.py", "inference/factory.py", "inference/module.py",
    "inference/module_weights.py", "inference/net_device.py",
    "learner/algorithm.py", "learner/buffer.py", "learner/critic.py", "learner/losses.py", "learner/optimiser.py",
    "learner/process.py", "learner/state.py", "matches/exploit.py", "runs/network.py",
}  # fmt: skip
FOLDERS: dict[str, set[str]] = {
    "game": {"game"},
    "search": {"game", "search"},
    "shm": {"shm"},
    "play": {"game", "search", "play", "shm"},
    "bind": {"game", "search", "play", "shm", "bind"},
}
"""Folders of C++, and whose headers each may include. Of `play` the worker's loop alone includes slots."""


def modules() -> dict[str, Path]:
    """Our modules by name without the package's: "engine.fleet"."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports(path: Path) -> set[str]:
    """Our modules that a module imports, also inside of functions."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition("shmzero.")[2] for alias in node.names if alias.name.startswith("shmzero.")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "shmzero":
            module = (node.module or "").partition("shmzero.")[2]
            for alias in node.names:
                name = f"{module}.{alias.name}".strip(".")
                found.add(name if name in known else module)
    return found & known.keys()


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_a_room_that_is_known() -> None:
    assert {room(module) for module in modules()} == GROUND | MAY_USE.keys() | DOORS
    assert {path.parent.name for path in PACKAGE.rglob("__init__.py")} == MAY_USE.keys() | {"shmzero"}


@pytest.mark.parametrize("name", [*sorted(GROUND), *MAY_USE])
def test_room_uses_only_rooms_below_it(name: str) -> None:
    order = list(MAY_USE)
    for module, path in modules().items():
        if room(module) != name:
            continue
        for other in imports(path):
            assert room(other) not in DOORS, f"{module} imports the door {other}"
            if room(other) == name or room(other) in GROUND:
                continue
            assert name in MAY_USE, f"{module} is ground and imports {other}"
            assert room(other) in MAY_USE[name], f"{module} imports {other}"
            assert order.index(room(other)) < order.index(name), f"{module} imports {other}, which stands above"


def test_modules_import_each_other_in_no_circle() -> None:
    known = {module: imports(path) for module, path in modules().items()}
    while known:
        free = [module for module, others in known.items() if not others & known.keys()]
        assert free, f"a circle among {sorted(known)}"
        for module in free:
            del known[module]


def test_torch_is_imported_where_networks_are_and_nowhere_else() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "torch" for name in names):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == MAY_IMPORT_TORCH


def loaded_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_of_the_package_loads_no_other_module_of_ours() -> None:
    found = loaded_after("import shmzero; assert set(shmzero.__all__) <= set(dir(shmzero))")
    assert {name for name in found if name.startswith("shmzero")} == {"shmzero"}
    assert "numpy" not in found


def test_every_name_of_the_package_is_loaded_when_it_is_asked_for() -> None:
    import shmzero

    assert all(getattr(shmzero, name) is getattr(shmzero, name) for name in shmzero.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shmzero.nothing  # noqa: B018
    assert not {path.stem for path in modules().values() if path.parent == PACKAGE} & set(shmzero.__all__)


def test_names_that_programs_import_are_where_they_were() -> None:
    from shmzero.arena import play_match
    from shmzero.evaluators import HashEvaluator, LoadedNetwork, NetEvaluator, UniformEvaluator, load_network
    from shmzero.records import Records

    assert all((play_match, HashEvaluator, LoadedNetwork, NetEvaluator, UniformEvaluator, load_network, Records))


def test_worker_process_loads_neither_torch_nor_what_it_does_not_need() -> None:
    found = loaded_after("import shmzero.engine.worker")
    assert not found & {"torch", "rich", "sqlite3", "shmzero.engine.fleet", "shmzero.service.server"}


def includes(name: str) -> set[str]:
    """Headers of ours that a header includes, by way of others as well."""
    found: set[str] = set()
    new = {name}
    while new:
        named = {other for known in new for other in re.findall(r'#include "([^"]+)"', (CSRC / known).read_text())}
        new = named - found
        found |= new
    return found


def test_folders_of_the_core_include_only_those_below_them() -> None:
    files = [path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*.*") if path.suffix in (".h", ".cpp")]
    assert {name.partition("/")[0] for name in files} == FOLDERS.keys()
    for name in files:
        folder = name.partition("/")[0]
        assert {other.partition("/")[0] for other in includes(name)} <= FOLDERS[folder], name
        if folder == "play" and name != "play/worker.h":
            assert not any(other.startswith("shm/") for other in includes(name)), name
        if folder != "bind":
            assert "pybind11" not in (CSRC / name).read_text(), name


def test_search_knows_no_features_and_no_rows() -> None:
    for name in ("search/search.h", "play/bots.h"):
        assert not includes(name) & {"game/encode.h", "play/full_deal.h", "play/rows.h", "play/lane.h"}, name


def test_readme_lists_the_rooms_in_this_order() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 132, "it is for people in a hurry; what does not fit belongs on a page"
    table = re.findall(r"^\| `(\w+)/?` \|", text[text.index("lowest first") :], re.MULTILINE)
    assert [name for name in table if name in MAY_USE] == list(MAY_USE)


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(PACKAGE.glob("*/README.md")),
]
MADE_BY_READERS = {"my_nets.py"}
"""Files that an example tells its reader to write."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_source_files_that_a_page_names_exist(page: Path) -> None:
    folders = (page.parent, ROOT, PACKAGE, PACKAGE / "learner", ROOT / "tools")  # "how it learns" is about the learner
    for name in re.findall(r"`((?:[\w.\-]+/)*[\w.\-]+\.(?:py|h|cpp|sh))`", page.read_text()):
        assert name in MADE_BY_READERS or any((folder / name).is_file() for folder in folders), name


SOURCES = sorted(path for path in PACKAGE.rglob("*.*") if path.suffix in (".py", ".h", ".cpp"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.relative_to(PACKAGE).as_posix())
def test_source_files_that_a_comment_names_lie_beside_it_or_where_it_says(source: Path) -> None:
    """A bare name is of the same folder, of the ground or of the root; others start at the package or the core."""
    text = re.sub(r"^#include .*$", "", source.read_text(), flags=re.M)
    for name in re.findall(r"""(?<![\w/.*{}"'])((?:\w+/)*\w+\.(?:py|h|cpp))\b""", text):
        folders = [source.parent, ROOT] if "/" not in name else [PACKAGE, CSRC, ROOT]
        is_ground = name.removesuffix(".py") in GROUND
        assert is_ground or any((folder / name).is_file() for folder in folders), name


@pytest.mark.parametrize("name", MAY_USE)
def test_page_of_a_room_names_each_of_its_files_once(name: str) -> None:
    text = (PACKAGE / name / "README.md").read_text()
    table = text.partition("## Files, in the order to read them")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [file for cell in cells for file in re.findall(r"`([\w.]+)`", cell)]
    assert sorted(named) == sorted(p.name for p in (PACKAGE / name).glob("*.py") if p.name != "__init__.py")
    assert 20 <= len(text.splitlines()) <= 50
    assert "What it is not: " in text and "Read next: " in text
