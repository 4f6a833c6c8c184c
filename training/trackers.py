"""Where a run's numbers go: `log.csv`, next to TensorBoard through accelerate's own tracker."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from clvr.files import write_atomic


class CsvTracker(GeneralTracker):
    """One row a step; a new quantity adds a column. Floats are written so that they read back exactly."""

    name = "csv"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []

    @property
    def tracker(self) -> Path:
        return self.path

    def rewind(self, step: int) -> None:
        """Forget the rows from `step` on: they will be made again."""
        rows = [row for row in read(self.path) if int(row["step"]) < step]
        self._rewrite(rows, list(rows[0]) if rows else ["step"])

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The recipe lies beside the log."""

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **_: object) -> None:
        new = [key for key in values if key not in self.columns]
        if new:
            self._rewrite(read(self.path), [*self.columns, *new])
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow({"step": step, **values})

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())
        self.columns = columns


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a log; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
