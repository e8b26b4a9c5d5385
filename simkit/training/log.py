"""The log of a training run: one row per validated epoch, as CSV and, where wanted, for TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from simkit.errors import MissingDependencyError
from simkit.files import write_text

Row = dict[str, float]


class TrainingLog:
    """Rows in memory and in ``log.csv``, which is replaced as a whole so that a resumed run holds no row twice."""

    def __init__(self, folder: Path, rows: list[Row], *, tensorboard: bool, active: bool) -> None:
        self.path = folder / "log.csv"
        self.rows = rows
        self.active = active
        self.writer = None
        if tensorboard and active:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingDependencyError("tensorboard is not installed; pip install 'simkit[logging]'") from None
            self.writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, row: Row) -> None:
        """Append a row and write the file."""
        self.rows.append(row)
        if not self.active:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_text(self.path, text.getvalue())
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self.writer is not None:
            self.writer.close()
