"""`python -m tests.golden [--write]`: compare the golden files with what the code does now, or rewrite them."""

from __future__ import annotations

import argparse
import difflib
import sys

from tests.golden import FILES, FOLDER


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the files; review the difference like code")
    write = parser.parse_args().write
    different = 0
    for name, make in FILES.items():
        path = FOLDER / name
        new = make()
        old = path.read_text() if path.exists() else ""
        if write:
            path.write_text(new)
        elif old != new:
            different += 1
            sys.stdout.writelines(
                difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"{name} as stored", f"{name} now")
            )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
