"""Weights of tensors: copies, fingerprints, layouts."""

from __future__ import annotations

import hashlib

import pytest
import torch

from fqx.ir.arg import DType
from fqx.ir.fault import FaultKind
from fqx.ir.names import Digest
from fqx.ir.weight import Layout, Role, Weight
from fqx.num.tensors import (
    TORCH_DTYPES,
    dtype_of,
    fingerprint_of,
    is_intact,
    tensor_of,
    torch_dtype,
    weight_of,
)

TENSORS = {
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "bool": torch.tensor([True, False]),
    "bfloat16": torch.arange(6).reshape(2, 3).bfloat16(),
    "int64": torch.tensor([-1, 2**40]),
    "complex": torch.tensor([1 + 2j, -3j]),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "expanded": torch.arange(3.0)[:, None].expand(3, 4),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_weight_holds_a_copy_of_its_tensor(name: str) -> None:
    tensor = TENSORS[name]
    weight = weight_of(tensor, Role.BUFFER)
    held = tensor_of(weight).unwrap()
    assert torch.equal(held, tensor)
    assert (weight.shape, torch_dtype(weight.dtype)) == (tuple(tensor.shape), tensor.dtype)
    assert is_intact(weight)
    if tensor.numel():
        assert held.data_ptr() != tensor.data_ptr()


def test_a_shared_weight_holds_the_tensor_itself() -> None:
    tensor = torch.randn(3)
    weight = weight_of(tensor, Role.PARAMETER, share=True)
    tensor[0] += 1.0
    assert not is_intact(weight)


def test_layouts_are_kept_and_take_no_part_in_fingerprints() -> None:
    plain = torch.randn(2, 3, 4, 5)
    rows = weight_of(plain, Role.PARAMETER)
    last = weight_of(plain.to(memory_format=torch.channels_last), Role.PARAMETER)
    assert (rows.layout, last.layout) == (Layout.CONTIGUOUS, Layout.CHANNELS_LAST)
    assert rows.fingerprint == last.fingerprint
    assert rows != last
    kept = tensor_of(last).unwrap()
    assert kept.is_contiguous(memory_format=torch.channels_last)
    deep = torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d)
    assert weight_of(deep, Role.PARAMETER).layout is Layout.CHANNELS_LAST_3D


def test_the_fingerprint_is_sha256_of_type_shape_and_bytes() -> None:
    tensor = torch.tensor([[1, -2], [3, 4]], dtype=torch.int16)
    body = b"".join(int(x).to_bytes(2, "little", signed=True) for x in (1, -2, 3, 4))
    wanted = hashlib.sha256(b'["int16",[2,2]]\n' + body).hexdigest()
    assert fingerprint_of(tensor) == wanted


def test_fingerprints_tell_bits_types_and_shapes_apart() -> None:
    zeros = torch.zeros(4)
    others = (-zeros, zeros.reshape(2, 2), zeros.half(), zeros.int(), torch.zeros(3))
    assert len({fingerprint_of(one) for one in (zeros, *others)}) == 6
    nan = torch.tensor([float("nan")])
    assert fingerprint_of(nan) == fingerprint_of(nan.clone())


def test_parameters_leave_their_gradient_history_behind() -> None:
    made = weight_of(torch.nn.Parameter(torch.ones(2)) * 2, Role.PARAMETER, requires_grad=True)
    held = tensor_of(made).unwrap()
    assert not held.requires_grad
    assert held.grad_fn is None
    assert made.requires_grad


def test_an_absent_payload_is_a_fault() -> None:
    bare = Weight(DType.FLOAT32, (2,), Role.PARAMETER, Digest("0" * 64))
    assert tensor_of(bare).failure().kind is FaultKind.MISSING_PAYLOAD
    assert not is_intact(bare)


def test_dtype_names_are_torchs() -> None:
    assert all(dtype_of(torch_dtype(dtype)) is dtype for dtype in DType)
    assert len(TORCH_DTYPES) == len(DType)
    assert dtype_of(torch.float8_e4m3fn) is None
