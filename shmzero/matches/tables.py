"""Results of matches as tables, lines or JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shmzero.matches.duplicate import MatchResult


class Output:
    """Tables on standard output: rich on a terminal, aligned columns elsewhere. Progress on standard error."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        self._quiet = quiet

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self._errors.is_terminal:
            self._errors.print(" " * (self._errors.width - 1), end="\r")  # the last line of progress
        if self._quiet:
            return
        if self._console.is_terminal:
            from rich.table import Table

            table = Table(title=title, title_justify="left")
            for i, name in enumerate(header):
                table.add_column(name, justify="left" if i == 0 else "right")
            for row in rows:
                table.add_row(*row)
            self._console.print(table)
            return
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        print(title)
        for row in [header, *rows]:
            first, *rest = (text.rjust(width) for text, width in zip(row, widths, strict=True))
            print("  ".join([first.strip().ljust(widths[0]), *rest]))

    def line(self, text: str) -> None:
        """One line of progress, on a terminal only."""
        if self._errors.is_terminal:
            self._errors.print(text[: self._errors.width - 1].ljust(self._errors.width - 1), end="\r", markup=False)

    def progress(self, what: str) -> Callable[[int], None]:
        """Shows rounds played, on a terminal only."""
        if not self._errors.is_terminal:
            return lambda rounds: None
        start = shown = time.monotonic()

        def show(rounds: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= 0.2:
                shown = now
                line = f"{what}: {rounds} rounds, {rounds / (now - start):,.0f}/s"
                self._errors.print(line[: self._errors.width - 1].ljust(self._errors.width - 1), end="\r", markup=False)

        return show


def match_rows(results: Sequence[MatchResult]) -> list[list[str]]:
    return [
        [r.villain, r.mode, f"{r.mean:+.3f}", f"{r.low:+.3f}", f"{r.high:+.3f}", f"{r.win_share:.3f}",
         f"{r.fair_share:.3f}", str(r.deals), str(r.rounds), f"{r.seconds:.1f}"]
        for r in results
    ]  # fmt: skip


def bid_rows(results: Sequence[MatchResult]) -> list[list[str]]:
    return [
        [
            r.villain,
            r.mode,
            str(size),
            f"{r.exact_bid[size]:.3f}",
            f"{r.villain_exact_bid[size]:.3f}",
            f"{r.ceiling[size]:.3f}",
        ]
        for r in results
        for size in r.exact_bid
    ]
