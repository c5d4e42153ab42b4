"""Files that are never there by half."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends well.

    The temporary name keeps the suffix. If the block raises, the old file is as it was and the
    temporary one is gone. Raises OSError where renaming fails.
    """
    target = Path(os.fspath(path))
    made = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    try:
        yield made
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)
