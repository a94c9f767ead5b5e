"""Who may know whom: imports and includes against the order in the README's table."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "shmzero" / "csrc"
MAY_IMPORT_TORCH = {"model.py", "net.py", "learn.py", "learner.py", "net_device.py", "compile_net.py",
                    "evaluators.py", "exploit.py"}
SHM = {"shm_layout.h", "doorbell.h", "slot.h", "client.h", "process.h"}


def includes(name: str) -> set[str]:
    """Headers that a header includes, by way of others as well."""
    found: set[str] = set()
    new = {name}
    while new:
        named = {other for known in new for other in re.findall(r'#include "([^"]+)"', (CSRC / known).read_text())}
        new = named - found
        found |= new
    return found


def test_torch_is_imported_by_the_network_alone() -> None:
    for path in (ROOT / "shmzero").glob("*.py"):
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        assert "torch" not in names or path.name in MAY_IMPORT_TORCH, path.name


def test_worker_process_imports_neither_torch_nor_rich() -> None:
    code = "import shmzero.worker, sys; print(sorted({'torch', 'rich', 'tyro', 'sqlite3'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_transport_includes_no_game_and_the_search_no_features_or_slots() -> None:
    for name in SHM:
        assert includes(name) <= SHM, name
    assert includes("worker.h") > SHM - {"client.h"} | {"lane.h", "search.h", "cards.h"}
    for name in ("search.h", "bots.h"):
        assert not includes(name) & ({"encode.h", "full_deal.h", "rows.h", "lane.h", "match.h", "worker.h"} | SHM), name
    assert not includes("lane.h") & SHM and not includes("match.h") & SHM
    for path in CSRC.glob("*.h"):
        assert "pybind11" not in path.read_text() or path.name == "bind.h", path.name


def test_readme_names_every_source_file_and_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 220
    for path in [*(ROOT / "shmzero").glob("*.py"), *CSRC.glob("*.h")]:
        assert path.name in text or path.name == "__init__.py", path.name
