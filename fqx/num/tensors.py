"""The door between the graph's weights and torch tensors, and between dtype names and torch's."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from fqx.ir.arg import DType, canonical
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Digest
from fqx.ir.weight import Layout, Role, Weight
from fqx.kit.result import Failure, Result, Success

TORCH_DTYPES: Mapping[DType, torch.dtype] = MappingProxyType(
    {dtype: getattr(torch, dtype.value) for dtype in DType}
)
"""torch's dtype of each element type."""

_NAMES: Mapping[torch.dtype, DType] = MappingProxyType(
    {torch_type: dtype for dtype, torch_type in TORCH_DTYPES.items()}
)

_MEMORY_FORMATS: Mapping[Layout, torch.memory_format] = MappingProxyType(
    {
        Layout.CONTIGUOUS: torch.contiguous_format,
        Layout.CHANNELS_LAST: torch.channels_last,
        Layout.CHANNELS_LAST_3D: torch.channels_last_3d,
    }
)


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's dtype of an element type."""
    return TORCH_DTYPES[dtype]


def dtype_of(dtype: torch.dtype) -> DType | None:
    """The element type of a torch dtype; None for one graphs do not hold (float8, bits)."""
    return _NAMES.get(dtype)


def memory_format(layout: Layout) -> torch.memory_format:
    """torch's memory format of a layout."""
    return _MEMORY_FORMATS[layout]


def layout_of(tensor: torch.Tensor) -> Layout:
    """How a tensor lies in memory; contiguous where two layouts fit, or none."""
    if tensor.is_contiguous():
        return Layout.CONTIGUOUS
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return Layout.CHANNELS_LAST
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return Layout.CHANNELS_LAST_3D
    return Layout.CONTIGUOUS


def content_bytes(tensor: torch.Tensor) -> bytes | memoryview:
    """The elements in row-major order, little-endian, whatever the strides."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return b""
    # viewing as bytes works for every dtype, bfloat16 included, which numpy does not know
    raw = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big":  # pragma: no cover
        width = flat.element_size() // (2 if flat.is_complex() else 1)
        raw = np.ascontiguousarray(raw.reshape(-1, width)[:, ::-1])
    return raw.data


def fingerprint_of(tensor: torch.Tensor) -> Digest:
    """SHA-256 over dtype, shape and content; layout, strides and device take no part.

    Equal bits give equal fingerprints: -0.0 and 0.0 differ, two NaNs of one bit pattern do not.
    """
    dtype = dtype_of(tensor.dtype)
    name = str(tensor.dtype) if dtype is None else dtype.value
    head = canonical([name, [int(size) for size in tensor.shape]])
    code = hashlib.sha256(head.encode() + b"\n")
    code.update(content_bytes(tensor))
    return Digest(code.hexdigest())


def weight_of(
    tensor: torch.Tensor,
    role: Role,
    *,
    persistent: bool = True,
    requires_grad: bool = False,
    share: bool = False,
) -> Weight:
    """A weight holding a copy of the tensor (the tensor itself with `share=True`).

    The copy is dense in the tensor's own layout (contiguous, channels last or channels last 3d) and
    carries no gradient history. Every dtype a graph can name is taken; others raise KeyError.
    """
    layout = layout_of(tensor)
    plain = tensor.detach()
    if not share:
        held = torch.empty(plain.shape, dtype=plain.dtype, memory_format=memory_format(layout))
        plain = held.copy_(plain)
    return Weight(
        dtype=_NAMES[tensor.dtype],
        shape=tuple(int(size) for size in tensor.shape),
        role=role,
        fingerprint=fingerprint_of(plain),
        layout=layout,
        persistent=persistent,
        requires_grad=requires_grad,
        payload=plain,
    )


def tensor_of(weight: Weight) -> Result[torch.Tensor, Fault]:
    """The tensor a weight holds; readers must not write into it.

    Fails with MISSING_PAYLOAD if the weight was loaded detached.
    """
    if isinstance(weight.payload, torch.Tensor):
        return Success(weight.payload)
    return Failure(
        Fault(
            FaultKind.MISSING_PAYLOAD,
            f"a {weight.dtype.value} weight of shape {weight.shape} has no values here",
            "load the artefact with its weights attached, or hand in the state_dict",
        )
    )


def is_intact(weight: Weight) -> bool:
    """Whether the values still are the ones the fingerprint was taken of."""
    return isinstance(weight.payload, torch.Tensor) and (
        fingerprint_of(weight.payload) == weight.fingerprint
    )
