"""A compiled program is a second module with the first one's bits, traced without a break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch.utils import _pytree

import fqx
from fqx.edge.program import Program, Refused
from fqx.ir.fault import FaultKind
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.policy.recipe import Recipe, Rule, Scheme
from fqx.policy.selectors import everything
from fqx.testing.served import Inputs, served

LONE = Recipe((Rule(everything(), Scheme(uint8_affine(), int8_channel(), lone=True), "lone"),))


def program(
    name: str, target: str = "onednn", recipe: Recipe | None = None
) -> tuple[Program, Inputs]:
    model, inputs = served(name)
    torch.manual_seed(1)
    batches = [inputs(4), inputs(4)]
    done = fqx.quantize(
        model,
        batches[0],
        batches,
        target=target,
        recipe=recipe,
        objective="coverage",
        progress=False,
    ).unwrap()
    module = done.materialize().unwrap()
    assert isinstance(module, Program)
    return module, inputs


def same(one: object, two: object) -> bool:
    left, right = _pytree.tree_leaves(one), _pytree.tree_leaves(two)
    return len(left) == len(right) > 0 and all(map(torch.equal, left, right))


def calls(module: nn.Module) -> set[str]:
    flat: Any = module.get_submodule("program")
    return {str(node.target) for node in flat.graph.nodes if node.op == "call_function"}


CASES = [
    *((name, target, None) for name in ("convolutional", "mixed")
      for target in ("onednn", "native/x86", "reference")),
    ("attending", "onednn", None),
    ("normed", "onednn", LONE),
    ("convolutional", "onednn", fqx.int8_dynamic()),
    ("lstm", "onednn", fqx.int8_dynamic()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "target", "recipe"), CASES)
def test_programs_are_traced_whole_and_give_the_modules_bits(
    name: str, target: str, recipe: Recipe | None
) -> None:
    module, inputs = program(name, target, recipe)
    # fullgraph: a break would be an error; eager: torch's own kernels run what was traced
    compiled = module.compile(backend="eager")
    for batch in (2, 1):
        given = inputs(batch)
        assert same(compiled(*given), module(*given))


def test_fake_kernels_and_decompositions_fit() -> None:
    module, inputs = program("convolutional")
    given = inputs(3)
    assert same(module.compile(backend="aot_eager")(*given), module(*given))


def test_inductor_gives_the_bits_of_integer_kernels() -> None:
    module, inputs = program("perceptron")
    compiled = module.compile()
    given = inputs(2)
    assert same(compiled(*given), module(*given))
    assert inductor.freezing is False


def test_inductor_rounds_float_islands_as_float32() -> None:
    module, inputs = program("attending")
    given = inputs(2)
    # softmax, layer norms and gelu are summed and fused in another order, 2^-24 at a time: that
    # moves an integer behind them by one at most, 1 of 255 steps in 1 of 32 terms of a product, or
    # 50 dB even if it happened in every token
    assert fqx.sqnr(module(*given), module.compile()(*given)) > 50.0


def test_weights_are_packed_constants() -> None:
    module, _ = program("convolutional")
    compiled = module.compile(backend="eager")
    found = calls(compiled)
    assert {"onednn.qconv2d_pointwise.default", "onednn.qlinear_pointwise.default"} <= found
    assert not {"fqx.onednn_conv2d.default", "fqx.packed_conv2d.default"} & found
    assert any("_packed_" in name for name, _ in compiled.named_buffers())
    # the unpacked ones are gone
    assert "program.head.weight" not in dict(compiled.named_parameters())


def test_the_module_stays_as_it_is_and_apart() -> None:
    module, inputs = program("convolutional")
    given = inputs(2)
    before, wanted = {k: v.clone() for k, v in module.state_dict().items()}, module(*given)
    compiled = module.compile(backend="eager")
    assert same(compiled(*given), wanted)
    assert same(module(*given), wanted)
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    assert same(compiled(*given), wanted)


def test_the_arguments_of_torch_compile_are_taken() -> None:
    module, inputs = program("perceptron")
    given, wanted = inputs(2), module(*inputs(2))
    assert isinstance(wanted, Tensor)
    compiled = module.compile(backend="eager", dynamic=True, fullgraph=False, options={})
    assert same(compiled(*given), module(*given))
    with pytest.raises(TypeError):
        module.compile(backend="eager", no_such_argument=1)


def test_a_missing_compiler_is_named_before_anything_happens() -> None:
    module, inputs = program("perceptron")
    given = inputs(2)
    wanted = module(*given)
    with inductor.patch({"cpp.cxx": ("/no/such/compiler",)}), pytest.raises(Refused) as refused:
        module.compile()
    assert refused.value.fault.kind is FaultKind.UNSUPPORTED_TARGET
    assert "C++ compiler" in refused.value.fault.reason
    assert "aot_eager" in refused.value.fault.remedy
    assert same(module(*given), wanted)
