"""Something that runs a model's calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fqx.audit.measure import Call
from fqx.edge.modules import GraphModule


class Absent(Exception):
    """A contestant that cannot take part here, with the reason: not installed, or no such form."""


@dataclass(frozen=True, slots=True)
class Runner:
    """What a contestant prepared.

    `bind` turns a call's inputs into the contestant's own form once, and gives the function that is
    timed: it runs one call and returns its outputs. `program` is the materialized module, where
    there is one whose nodes can be timed.
    """

    bind: Callable[[Call], Callable[[], object]]
    program: GraphModule | None = None
    note: str = ""


def calling(
    function: Callable[..., object], program: GraphModule | None = None, note: str = ""
) -> Runner:
    """A runner that calls a torch module, or anything called like one."""

    def bind(call: Call) -> Callable[[], object]:
        args, kwargs = call
        return lambda: function(*args, **kwargs)

    return Runner(bind, program, note)
