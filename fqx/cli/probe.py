"""`fqx probe`: what this machine computes exactly."""

from __future__ import annotations

import argparse

from fqx.cli.console import FAULT, OK, USAGE, fail, say, show_table
from fqx.edge.environment import environment
from fqx.edge.machine import NAMES, probed, target_named
from fqx.ir.fault import Fault
from fqx.kit.result import fold
from fqx.policy.target import Target


def run(args: argparse.Namespace) -> int:
    """Probe the target asked for, or all of them."""
    if args.target:
        return fold(
            target_named(args.target).bind(probed),
            lambda target: _shown((target,)),
            lambda fault: fail(fault, USAGE),
        )
    say(", ".join(f"{name} {value}" for name, value in environment().items()))
    rows = [_row(name) for name in NAMES if name != "native"]
    show_table(("target", "activations", "weights", "units", "remark"), rows, right=(3,))
    return OK if any(row[1] != "-" for row in rows) else FAULT


def _shown(targets: tuple[Target, ...]) -> int:
    show_table(
        ("target", "activations", "weights", "units", "remark"),
        [_cells(target.label, target) for target in targets],
        right=(3,),
    )
    return OK


def _row(name: str) -> tuple[str, ...]:
    def refused(fault: Fault) -> tuple[str, ...]:
        return (name, "-", "-", "-", fault.reason)

    return fold(target_named(name).bind(probed), lambda target: _cells(name, target), refused)


def _cells(name: str, target: Target) -> tuple[str, ...]:
    act, weight = target.activation, target.weight
    exact = target.isa == "vnni"
    remark = "full 8-bit products are exact" if exact else "narrowed: wider ones saturate here"
    return (
        name,
        f"{act.dtype.value} {act.qmin}..{act.qmax}",
        f"{weight.dtype.value} {weight.qmin}..{weight.qmax}",
        str(len(target.units)),
        remark,
    )
