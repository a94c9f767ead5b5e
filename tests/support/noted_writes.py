"""`python -m tests.support.noted_writes`: the self-play command, which notes in the file SHMZERO_WRITES when it begins to
write records and when it is done."""

from __future__ import annotations

import os
import sys
from typing import Any

from shmzero import selfplay
from shmzero.runs import record_writer


class NotingWriter(record_writer.RecordWriter):
    def write(self, units: Any) -> Any:
        with open(os.environ["SHMZERO_WRITES"], "a") as file:
            print("begun", file=file, flush=True)
            found = super().write(units)
            print("done", file=file, flush=True)
        return found


if __name__ == "__main__":
    record_writer.RecordWriter = NotingWriter  # type: ignore[misc]
    sys.exit(selfplay.main())
