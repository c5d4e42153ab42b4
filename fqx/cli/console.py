"""How the command line speaks: results on stdout, progress and faults on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fqx.ir.fault import Fault

OK, FAILED, USAGE, FAULT, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: done; a check did not hold; wrong arguments; a fault; Ctrl-C."""


def out() -> Console:
    """Where results go. Not a terminal: plain text, wide enough for the tables."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=140)


def err() -> Console:
    """Where faults and remarks go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """A line of result, taken literally."""
    out().print(Text(text, style=style))


def remark(text: str) -> None:
    """A line that is no result."""
    err().print(Text(text, style="dim"))


def fail(fault: Fault, code: int = FAULT) -> int:
    """Show a fault and give the exit code."""
    console = err()
    head, *rest = str(fault).splitlines()
    console.print(Text(head, style="bold red"))
    for line in rest:
        console.print(Text(line))
    if fault.detail:
        console.print(Text(f"  {fault.detail[:600]}", style="dim"))
    return code


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    right: Iterable[int] = (),
) -> None:
    """A table; `right` are the columns of numbers."""
    console = out()
    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    numbers = frozenset(right)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table, soft_wrap=False)
    console.print()
