"""`fqx verify`: replay a trail and prove its digest."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from fqx.cli.console import FAILED, FAULT, OK, USAGE, fail, say, show_table
from fqx.cli.resolve import batches_of, function_of, model_of
from fqx.cli.tables import short
from fqx.edge.artefact import read
from fqx.edge.modules import Module
from fqx.edge.state_file import read_state_dict
from fqx.edge.verify import Verified, verify
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.trail import Halt
from fqx.kit.result import Result, Success, fold


def run(args: argparse.Namespace) -> int:
    """Verify an artefact; 1 if something does not come out as recorded."""
    found = read(args.artefact, args.digest).bind(
        lambda found: (
            _given(args)
            .alt(Halt)
            .bind(
                lambda given: verify(
                    found.trail, given.state, given.model, given.batches, given.inputs
                )
            )
        )
    )
    return fold(found, _told, _failed)


@dataclass(frozen=True, slots=True)
class _Given:
    state: Mapping[str, torch.Tensor] | None
    model: Module | None
    batches: Iterable[object] | None
    inputs: Callable[[object], object] | None


def _given(args: argparse.Namespace) -> Result[_Given, Fault]:
    state: Result[Mapping[str, torch.Tensor] | None, Fault] = Success(None)
    model: Result[Module | None, Fault] = Success(None)
    batches: Result[Iterable[object] | None, Fault] = Success(None)
    inputs: Result[Callable[[object], object] | None, Fault] = Success(None)
    if args.state_dict:
        state = read_state_dict(args.state_dict).map(lambda found: found)
    if args.model:
        model = model_of(args.model).map(lambda found: found)
    if args.calibration:
        batches = batches_of(args.calibration).map(lambda found: found)
    if args.inputs:
        inputs = function_of(args.inputs).map(lambda found: found)
    return state.bind(
        lambda weights: model.bind(
            lambda module: batches.bind(
                lambda data: inputs.map(lambda pick: _Given(weights, module, data, pick))
            )
        )
    )


def _told(found: Verified) -> int:
    rows = [(short(step.text), step.outcome, step.why, step.digest[:12]) for step in found.steps]
    show_table(("step", "how", "why", "digest"), rows)
    say(repr(found))
    return OK


def _failed(halt: Halt) -> int:
    codes = {FaultKind.DIGEST_DIFFERS: FAILED, FaultKind.BAD_ARGUMENT: USAGE}
    return fail(halt.fault, codes.get(halt.fault.kind, FAULT))
