"""What cannot be captured: a fault with the module, the user's line and what to do."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqx.edge.capture import How, capture
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import fold

Call: TypeAlias = Callable[["Inner", Tensor], object]
BOTH: tuple[How, ...] = ("export", "symbolic")


class Inner(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.count: Tensor
        self.register_buffer("count", torch.zeros(4))
        self.plain = torch.ones(4)
        self.last: object = None
        self.call = call

    def forward(self, x: Tensor) -> object:
        return self.call(self, x)


class Outer(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.inner = Inner(call)

    def forward(self, x: Tensor) -> object:
        return self.inner(x)


def branches(self: Inner, x: Tensor) -> object:
    return x if x.sum() > 0 else -x


def loops(self: Inner, x: Tensor) -> object:
    return torch.stack([x[index] * index for index in range(x.shape[0])])


def counts(self: Inner, x: Tensor) -> object:
    self.count.add_(1)
    return x + self.count


def assigns(self: Inner, x: Tensor) -> object:
    self.count = self.count + 1
    return x


def writes_plain(self: Inner, x: Tensor) -> object:
    self.plain.add_(1)
    return x


def remembers(self: Inner, x: Tensor) -> object:
    self.last = x * 2
    return x


def draws(self: Inner, x: Tensor) -> object:
    return x + torch.rand(4)


def draws_alike(self: Inner, x: Tensor) -> object:
    return x + torch.rand_like(x)


def drops(self: Inner, x: Tensor) -> object:
    return F.dropout(x, 0.5)


def casts(self: Inner, x: Tensor) -> object:
    with torch.autocast("cpu", torch.bfloat16):
        return self.linear(x)


def leaves_torch(self: Inner, x: Tensor) -> object:
    return torch.from_numpy(x.numpy()) * 2


def asks_cond(self: Inner, x: Tensor) -> object:
    return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


def misfits(self: Inner, x: Tensor) -> object:
    return self.linear(x[:, :3])


def returns_a_set(self: Inner, x: Tensor) -> object:
    return {1, 2}


CASES: dict[Call, FaultKind] = {
    branches: FaultKind.CONTROL_FLOW,
    counts: FaultKind.UNFUNCTIONAL_WRITE,
    assigns: FaultKind.UNFUNCTIONAL_WRITE,
    writes_plain: FaultKind.UNFUNCTIONAL_WRITE,
    remembers: FaultKind.UNFUNCTIONAL_WRITE,
    draws: FaultKind.RANDOM_OP,
    draws_alike: FaultKind.RANDOM_OP,
    drops: FaultKind.MODEL_IN_TRAINING,
    casts: FaultKind.AMBIENT_AUTOCAST,
    leaves_torch: FaultKind.UNCAPTURABLE,
    misfits: FaultKind.UNCAPTURABLE,
    returns_a_set: FaultKind.UNCAPTURABLE,
}


def fault_of(model: nn.Module, *inputs: Tensor, how: How = "export") -> Fault:
    return capture(model, inputs, how=how).failure().fault


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_fault_has_its_kind_and_a_remedy(
    case: Call, how: How, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Outer(case).eval()
    plain = model.inner.plain.clone()
    fault = fault_of(model, torch.randn(2, 4), how=how)
    assert fault.kind is CASES[case]
    assert fault.remedy
    assert capfd.readouterr() == ("", "")
    assert torch.equal(model.inner.plain, plain)
    assert torch.equal(model.inner.count, torch.zeros(4))
    assert model.inner.last is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_export_names_the_module(case: Call) -> None:
    fault = fault_of(Outer(case).eval(), torch.randn(2, 4))
    if case is not returns_a_set:
        assert fault.module is not None
        assert fault.module.startswith("inner")
    if case not in (returns_a_set, assigns, remembers, casts):
        assert fault.source is not None
        assert "test_capture_faults.py:" in fault.source


@pytest.mark.parametrize("how", BOTH)
def test_a_fixed_batch_names_the_line(how: How) -> None:
    fault = fault_of(Outer(loops).eval(), torch.randn(2, 4), how=how)
    wanted = FaultKind.BATCH_IS_FIXED if how == "export" else FaultKind.CONTROL_FLOW
    assert fault.kind is wanted
    line = loops.__code__.co_firstlineno + 1
    assert fault.source is not None
    assert fault.source.endswith(f"test_capture_faults.py:{line}")


def test_cond_is_control_flow() -> None:
    assert fault_of(Outer(asks_cond).eval(), torch.randn(2, 4)).kind is FaultKind.CONTROL_FLOW


@pytest.mark.parametrize("how", BOTH)
def test_training_mode_names_the_modules(how: How) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    fault = fault_of(model, torch.randn(2, 4), how=how)
    assert fault.kind is FaultKind.MODEL_IN_TRAINING
    assert "1 (BatchNorm1d), 2 (Dropout)" in fault.reason


def test_training_mode_without_meaning_is_no_matter() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.0))
    assert len(capture(model, (torch.randn(2, 4),)).unwrap().graph) == 4


def test_ambient_autocast() -> None:
    with torch.autocast("cpu"):
        fault = fault_of(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert fault.kind is FaultKind.AMBIENT_AUTOCAST


def test_a_lazy_module_is_named() -> None:
    fault = fault_of(nn.Sequential(nn.LazyLinear(3)).eval(), torch.randn(2, 4))
    assert (fault.kind, fault.module) == (FaultKind.UNINITIALIZED_PARAMETER, "0")


def test_what_cannot_be_copied_is_named() -> None:
    model = Outer(misfits).eval()
    model.inner.last = threading.Lock()
    fault = fault_of(model, torch.randn(2, 4))
    assert (fault.kind, fault.module) == (FaultKind.UNCOPYABLE_MODEL, "inner")
    assert "'last'" in fault.reason


def test_inputs_that_do_not_fit() -> None:
    model = nn.Linear(4, 4).eval()
    for inputs in ((), (torch.ones(2, 4), torch.ones(2, 4)), ({1, 2},)):
        fault = capture(model, inputs).failure().fault
        assert fault.kind is FaultKind.INPUT_DOES_NOT_FIT


def test_a_function_is_no_module() -> None:
    found = capture(torch.relu, (torch.ones(2),))  # type: ignore[arg-type]  # the wrong thing
    assert fold(found, lambda _: "", lambda halt: halt.fault.name) == "Uncapturable"


def test_a_module_outside_the_tree_is_noted() -> None:
    def hidden(self: Inner, x: Tensor) -> object:
        return self.last(x) if callable(self.last) else x

    model = Outer(hidden).eval()
    object.__setattr__(model.inner, "last", None)
    model.inner.__dict__["last"] = [nn.Linear(4, 4)][0]
    trail = capture(model, (torch.randn(2, 4),)).unwrap()
    assert any("outside the model's parameters" in note for note in trail.notes)
    refused = capture(model, (torch.randn(2, 4),), how="symbolic").failure().fault
    assert "register" in refused.remedy


def scripted_child() -> nn.Module:
    child: Callable[[nn.Module], nn.Module] = torch.jit.script
    with warnings.catch_warnings():
        # torch deprecates TorchScript; models with it are what this is about
        warnings.simplefilter("ignore", DeprecationWarning)
        return nn.Sequential(nn.Linear(4, 4), child(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))


def test_torchscript_is_captured_by_the_other_front_end() -> None:
    model = scripted_child().eval()
    fault = fault_of(model, torch.randn(2, 4))
    assert fault.kind is FaultKind.UNCAPTURABLE
    assert fault.module == "1"
    assert "TorchScript" in fault.reason
    assert "how='symbolic'" in fault.remedy
    graph = capture(model, (torch.randn(2, 4),), how="symbolic").unwrap().graph
    assert [str(node.op) for node in graph] == ["input", "linear", "linear", "relu"]


@pytest.mark.parametrize("how", BOTH)
def test_a_torchscript_model_is_refused(how: How) -> None:
    fault = fault_of(scripted_child().eval().get_submodule("1"), torch.randn(2, 4), how=how)
    assert fault.kind is FaultKind.UNCAPTURABLE
    assert fault.module == ""


def test_torchscript_is_no_leaf() -> None:
    model = scripted_child().eval()
    result = capture(model, (torch.randn(2, 4),), leaves=("1",))
    fault = fold(result, lambda _: pytest.fail("no fault"), lambda halt: halt.fault)
    assert fault.kind is FaultKind.UNCAPTURABLE
    assert "how='symbolic'" in fault.remedy
