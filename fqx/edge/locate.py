"""From an exception or a recorded stack to the user's own line, module and a fault."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from types import FrameType, TracebackType

import torch

from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Path

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_SITE = os.sep + "site-packages" + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def is_foreign_file(file: str) -> bool:
    """Whether a file is the user's: not torch's, Python's or this library's, not generated."""
    path = os.path.abspath(file)
    inside = path.startswith(_TORCH) or (path.startswith(_OURS) and "testing" not in path)
    inside = inside or (path.startswith(_STDLIB) and _SITE not in path)
    return not (file.startswith(("<", "torch/")) or "eval_with_key" in file or inside)


def short_file(file: str) -> str:
    """The file's name below the entry of `sys.path` it was imported from."""
    path = os.path.abspath(file)
    roots = sorted((os.path.abspath(entry) for entry in sys.path if entry), key=len, reverse=True)
    for root in (*roots, os.getcwd()):
        if path.startswith(root + os.sep):
            return path[len(root) + 1 :]
    return os.path.basename(path)


def user_line(stack: str | None) -> str | None:
    """`file:line` of the innermost frame of a printed stack that is the user's, if one is."""
    frames = [(file, line) for file, line in _FRAME.findall(stack or "") if is_foreign_file(file)]
    return f"{short_file(frames[-1][0])}:{frames[-1][1]}" if frames else None


def fault_of(error: BaseException, modules: Mapping[int, str], detail: str = "") -> Fault:
    """What an exception during capture means, with the user's line and innermost module.

    `modules` gives the path of each module of the captured copy by its `id`.
    """
    source, path = _place(error, modules)
    kind, reason, remedy = _meaning(error)
    return Fault(
        kind,
        reason,
        remedy.replace("LEAF", keep_whole(path or "")),
        module=None if path is None else Path(path),
        source=source,
        detail=detail or str(error)[:4000],
    )


def keep_whole(path: str) -> str:
    """The remedy for what no graph can hold: a module kept whole, or made to be."""
    if path:
        return f"keep the module whole and float: leaves=({path!r},)"
    return "move this code into a submodule and keep that whole and float: leaves=('its path',)"


def calling_line() -> str | None:
    """`file:line` of the innermost frame of the user that is running now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_foreign_file(frame.f_code.co_filename):
            return f"{short_file(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _place(error: BaseException, modules: Mapping[int, str]) -> tuple[str | None, str | None]:
    source: str | None = None
    path: str | None = None
    for one in _chain(error):
        found, module = _frames(one.__traceback__, modules)
        source = source or found
        path = path if path is not None else module
    return source, path


def _frames(
    trace: TracebackType | None, modules: Mapping[int, str]
) -> tuple[str | None, str | None]:
    source: str | None = None
    path: str | None = None
    while trace is not None:
        frame = trace.tb_frame
        if is_foreign_file(frame.f_code.co_filename):
            source = f"{short_file(frame.f_code.co_filename)}:{trace.tb_lineno}"
        path = modules.get(id(frame.f_locals.get("self")), path)
        trace = trace.tb_next
    return source, path


_LEAF = "LEAF"


def _meaning(error: BaseException) -> tuple[FaultKind, str, str]:
    text = str(error)
    name = type(error).__name__
    first = next((line.strip() for line in text.splitlines() if line.strip()), name)
    if (
        "symbolically traced variables" in text
        or name == "TraceError"
        or "cannot be interpreted as an integer" in text
    ):
        return (
            FaultKind.CONTROL_FLOW,
            "the code branches or loops on a traced value",
            f"use how='export', which follows shapes, or {_LEAF}",
        )
    if "not installed as a submodule" in text:
        return (
            FaultKind.UNCAPTURABLE,
            "the code calls a module that is not registered in its parent",
            "register it: as an attribute, or in an nn.ModuleList or nn.ModuleDict",
        )
    if "data-dependent" in text or name.startswith("GuardOnDataDependent"):
        return (
            FaultKind.CONTROL_FLOW,
            "the code branches on the contents of a tensor",
            f"write it with torch.where, or {_LEAF}",
        )
    if name == "UnsupportedOperatorException" or "fake" in text.lower():
        return (FaultKind.UNCAPTURABLE, f"no shapes are known for an operator: {first}", _LEAF)
    return (FaultKind.UNCAPTURABLE, f"{name}: {first}"[:400], _LEAF)
