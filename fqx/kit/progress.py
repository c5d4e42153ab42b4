"""A progress bar for loops that take a while; silent where nobody is looking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], label: str, shown: bool = True) -> Iterator[T]:
    """The items, one after the other, with a bar on the terminal's error stream.

    Nothing is drawn if `shown` is false or the error stream is no terminal.
    """
    if not shown:
        yield from items
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    total = len(items) if isinstance(items, Sized) else None
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total)
        for item in items:
            yield item
            progress.advance(task)
