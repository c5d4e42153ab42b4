"""Keep Python's cyclic garbage collector out of passes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic collection inside; afterwards it is on again if it was on before.

    A pass makes hundreds of thousands of small immutable values and no cycles. The collector would
    walk all of them again and again, and pass time would grow faster than the graph (measured on
    10,000 nodes: 60 % on top). Reference counting still frees everything at once. See
    `docs/decisions/0007-collector-pauses.md`.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
