"""Text for the terminal."""

from collections.abc import Callable, Sequence

from simkit.training.log import Row


def silent(message: str) -> None:
    """Say nothing: for functions that are handed something to tell with."""


def epoch_printer(epochs: int, echo: Callable[[str], None], describe: Callable[[Row], str]) -> Callable[[Row], None]:
    """Return what tells about twenty epochs of the whole training, the first ones and the last; for `simkit.training.fit`.

    Args:
        describe: what there is to say of an epoch, between its number and the time.
    """
    every = max(1, epochs // 20)

    def show(row: Row) -> None:
        epoch = int(row["epoch"])
        if epoch > 3 and epoch % every and epoch < epochs:
            return
        echo(f"epoch {epoch:>5}/{epochs}  {describe(row)}  ({row['seconds']:.0f} s)")

    return show


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with aligned columns, the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
