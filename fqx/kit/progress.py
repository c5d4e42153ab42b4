"""A progress bar for loops that take a while; silent where nobody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
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


@contextmanager
def telling(total: int, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """A function to call at each of `total` steps with a line that says which one it is.

    Draws a bar on the terminal's error stream; nothing if `shown` is false or it is no terminal.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=total)

        def told(line: str) -> None:
            bar.update(task, description=line, advance=1)

        yield told
