"""Who may know whom: imports and includes against the order in the README's table."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAY_IMPORT_TORCH = {"model.py", "net.py", "learn.py", "learner.py", "net_device.py", "compile_net.py",
                    "evaluators.py", "exploit.py"}
GAME = {"cards.h", "rules.h", "encode.h", "determinize.h", "search.h", "search_config.h", "root.h", "row_cache.h", "tree.h",
        "lane.h", "record.h", "replay.h"}
SHM = {"shm_layout.h", "doorbell.h", "slot.h", "client.h", "process.h"}


def includes(path: Path) -> set[str]:
    return set(re.findall(r'#include "([^"]+)"', path.read_text()))


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
    csrc = ROOT / "shmzero" / "csrc"
    for name in SHM:
        assert not includes(csrc / name) & GAME, name
    assert not includes(csrc / "search.h") & ({"encode.h", "lane.h", "worker.h"} | SHM)
    assert not includes(csrc / "lane.h") & SHM
    for path in csrc.glob("*.h"):
        assert "pybind11" not in path.read_text() or path.name == "bind.h", path.name


def test_readme_names_every_source_file_and_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for path in [*(ROOT / "shmzero").glob("*.py"), *(ROOT / "shmzero" / "csrc").glob("*.h")]:
        assert path.name in text or path.name == "__init__.py", path.name
