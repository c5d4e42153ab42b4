"""The kernels as torch operators, `torch.ops.fqx.*`, that exported programs call.

Importing this module defines them; `torch.export.load` of a program saved by `fqx.export_pt2`
needs nothing else of fqx. Each takes tensors and the text of its call, works on plain integers and
unpacked weights, and keeps the packs (`fqx.edge.op_cache`) as long as the weights live. Kernels
that see torch's quantized tensors get them over the same memory, so no quantized dtype is in an
exported program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fqx.edge.fakes import SEVERAL, Fake, fake_of, settled
from fqx.edge.kernels import BINDERS
from fqx.edge.op_cache import OpCache
from fqx.edge.op_text import OpCall
from fqx.edge.packing import PLAIN_TEMPLATE, quantized_template, viewed
from fqx.ir.names import OpName

NAMESPACE = "fqx"


def op_name(op: OpName) -> str:
    """The name of a kernel's operator within `torch.ops.fqx`."""
    return op.replace(".", "_")


def operator(op: OpName) -> Any:
    """The operator of a kernel; None for a kernel that torch traces through by itself."""
    if fake_of(op) is None:
        return None
    return getattr(getattr(torch.ops, NAMESPACE), op_name(op)).default


def _define(library: torch.library.Library, cache: OpCache) -> None:
    for op in BINDERS:
        fake = fake_of(op)
        if fake is not None:
            _define_one(library, cache, op, fake)


def _define_one(library: torch.library.Library, cache: OpCache, op: OpName, fake: Fake) -> None:
    name, result = op_name(op), "Tensor[]" if op in SEVERAL else "Tensor"
    define: Callable[[str], object] = library.define
    define(f"{name}(Tensor[] tensors, str call) -> {result}")

    def run(tensors: Sequence[Tensor], call: str) -> Any:
        made = cache.run(op, tensors, call, _seen)
        return _given(made, fake, tensors[0])

    def empty(tensors: Sequence[Tensor], call: str) -> Any:
        known = cache.read(call)
        return fake(known.attrs, known.arrange(tensors))

    implement: Callable[..., object] = library.impl
    implement(name, run, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{name}", empty, lib=library)


def _seen(call: OpCall, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors as the kernel takes them: some as quantized ones over the same memory."""
    if not any(call.seen):
        return tensors
    pairs = zip(tensors, call.seen, strict=True)
    return [x if pair is None else viewed(x, quantized_template(*pair)) for x, pair in pairs]


def _given(made: Any, fake: Fake, x: Tensor) -> Any:
    if isinstance(made, Tensor):
        plain = viewed(made, PLAIN_TEMPLATE) if made.is_quantized else made
        return settled(plain, fake, x)
    return [settled(item, fake, x) for item in made]


def _library() -> torch.library.Library:
    make: Callable[..., torch.library.Library] = torch.library.Library
    made = make(NAMESPACE, "FRAGMENT")
    _define(made, OpCache())
    return made


LIBRARY = _library()
"""Keeps the definitions; they are gone when it is."""
