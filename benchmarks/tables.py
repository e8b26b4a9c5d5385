"""How benchmarks print rows of figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table whose columns are the entries of the first row; what other rows lack is left empty."""
    names = list(rows[0]) if rows else []
    table = Table(*names, title=title)
    for row in rows:
        cells = [row.get(name, "") for name in names]
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=160).print(table)
