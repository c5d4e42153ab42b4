"""What no float input and no parameter flows into is never computed on integers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fqx.ir.arg import DType, NodeRef
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.policy.plan import make_plan
from fqx.policy.recipe import Recipe, Rule, Scheme
from fqx.policy.selectors import everything
from fqx.policy.target import Target
from fqx.policy.verdicts import Verdict
from fqx.targets.native import native
from fqx.targets.reference import reference
from fqx.testing.draft import Draft

LONE = Recipe((Rule(everything(), Scheme(uint8_affine(), int8_channel(), lone=True), "lone"),))
STEPS = st.tuples(
    st.sampled_from(["add", "mul", "relu", "flags"]), st.integers(0, 99), st.integers(0, 99)
)


@given(
    st.lists(STEPS, min_size=1, max_size=12), st.sampled_from([native("x86").unwrap(), reference()])
)
def test_only_activations_run_on_integers(
    steps: list[tuple[str, int, int]], target: Target
) -> None:
    draft = Draft()
    ids = draft.input("ids", 4, 4, dtype=DType.INT64)
    held = draft.weight("w", torch.ones(4, 4))
    # each value with whether an activation flows into it
    values: list[tuple[NodeRef, bool]] = [
        (draft.input("x", 4, 4), True),
        (draft.call("to", ":to", x=ids, dtype=DType.FLOAT32), False),
        (draft.call("full", ":full", shape=(4, 4), value=1.0, dtype=DType.FLOAT32), False),
        (draft.call("contiguous", ":held", x=held), True),
    ]
    flows: dict[str, bool] = {}
    for index, (op, one, two) in enumerate(steps):
        (x, is_live), (y, is_other) = values[one % len(values)], values[two % len(values)]
        name = f"{op}.{index}"
        if op == "flags":
            flags = draft.call("gt", f"gt.{index}", x=x, y=0.0)
            made, flows[name] = draft.call("to", name, x=flags, dtype=DType.FLOAT32), False
        elif op == "relu":
            made, flows[name] = draft.call("relu", name, x=x), is_live
        else:
            made, flows[name] = draft.call(op, name, x=x, y=y), is_live or is_other
        values.append((made, flows[name]))
    plan = make_plan(draft.graph(*(value for value, _ in values)), LONE, target).unwrap()
    for name, is_live in flows.items():
        found = next(plan[node] for node in plan.order if node == name)
        assert is_live or found.verdict is not Verdict.INT8
