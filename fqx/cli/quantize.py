"""`fqx quantize`: a model in, an artefact out, and one line of what was won."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import torch

from fqx.api import Quantized, quantize
from fqx.audit.macs import Macs, count_macs
from fqx.audit.measure import (
    Call,
    call_of,
    latency,
    show_bytes,
    show_seconds,
    sqnr_over,
    weight_bytes,
)
from fqx.cli.console import FAILED, INTERRUPTED, OK, USAGE, fail, remark, say, show_table
from fqx.cli.resolve import batches_of, function_of, model_of, value_of
from fqx.cli.tables import coverage_rows, step_rows
from fqx.edge.modules import Module
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.trail import Halt
from fqx.kit.result import Failure, Result, Success, attempt, fold
from fqx.policy.recipe import Recipe, int8_static, leave_float
from fqx.policy.selectors import path

KEPT = 4
"""How many calibration batches are kept to measure on, if there are no others."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the arguments name, resolved."""

    model: Module
    batches: Iterable[object]
    kept: tuple[object, ...]
    example: Call
    evaluate: tuple[Call, ...]
    inputs: Callable[[object], object] | None
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Measured:
    """Before and after."""

    macs: Macs
    seconds: tuple[float, float]
    decibels: tuple[float, float]
    held: tuple[int, int]


def run(args: argparse.Namespace) -> int:
    """Quantize, save, measure, check."""
    if args.threads:
        torch.set_num_threads(args.threads)
    for place in (args.out, args.trail):
        folder = os.path.dirname(os.path.abspath(place)) if place else os.curdir
        if not os.path.isdir(folder):
            # known before the work, not after it
            return fail(_no_folder(place, folder), USAGE)
    return fold(_job(args), lambda job: _done(args, job), lambda fault: fail(fault, USAGE))


def _no_folder(place: str, folder: str) -> Fault:
    return Fault(
        FaultKind.UNWRITABLE_FILE,
        f"{place} cannot be written: there is no folder {folder}",
        "make the folder, or choose another",
    )


def _job(args: argparse.Namespace) -> Result[Job, Fault]:
    none: Result[Callable[[object], object] | None, Fault] = Success(None)
    picked = function_of(args.inputs).map(lambda found: found) if args.inputs else none
    return model_of(args.model).bind(
        lambda model: batches_of(args.calibration).bind(
            lambda batches: picked.bind(
                lambda inputs: _recipe(args).bind(
                    lambda recipe: _assembled(args, model, batches, inputs, recipe)
                )
            )
        )
    )


def _recipe(args: argparse.Namespace) -> Result[Recipe, Fault]:
    start: Result[object, Fault] = value_of(args.recipe) if args.recipe else Success(int8_static())
    return start.bind(
        lambda found: (
            Success(_with_floats(found, args.keep_float))
            if isinstance(found, Recipe)
            else Failure(
                Fault(
                    FaultKind.BAD_ARGUMENT,
                    f"{args.recipe} is a {type(found).__name__}, not a Recipe",
                    "name a value such as fqx.int8_static() | fqx.leave_float(fqx.path('head'))",
                )
            )
        )
    )


def _with_floats(recipe: Recipe, paths: Iterable[str]) -> Recipe:
    for place in paths:
        recipe = recipe | leave_float(path(place))
    return recipe


def _assembled(
    args: argparse.Namespace,
    model: Module,
    batches: Iterable[object],
    inputs: Callable[[object], object] | None,
    recipe: Recipe,
) -> Result[Job, Fault]:
    stream = iter(batches)
    kept = tuple(islice(stream, KEPT))
    if not kept and not args.example:
        return Failure(
            Fault(
                FaultKind.EMPTY_CALIBRATION,
                f"{args.calibration} gives no batches",
                "hand in at least one batch of real inputs",
            )
        )
    # a one-shot iterator has lost what was looked at; a list can simply be gone over again
    whole = chain(kept, stream) if iter(batches) is batches else batches
    example = value_of(args.example).map(call_of) if args.example else _call(kept[0], inputs)
    evaluate: Result[tuple[Call, ...], Fault] = Success(
        tuple(call for batch in kept for call in _calls(batch, inputs))
    )
    if args.evaluate:
        evaluate = batches_of(args.evaluate).map(
            lambda found: tuple(call for batch in found for call in _calls(batch, inputs))
        )
    return example.bind(
        lambda first: evaluate.map(
            lambda calls: Job(model, whole, kept, first, calls, inputs, recipe)
        )
    )


def _call(batch: object, inputs: Callable[[object], object] | None) -> Result[Call, Fault]:
    return attempt(
        lambda: call_of(inputs(batch) if inputs else batch),
        lambda error: Fault(
            FaultKind.BAD_ARGUMENT,
            f"--inputs raises {type(error).__name__} on the first batch: {error}",
            "write it as a function from a batch to the model's inputs",
        ),
    )


def _calls(batch: object, inputs: Callable[[object], object] | None) -> Iterator[Call]:
    found = fold(_call(batch, inputs), lambda call: (call,), lambda _: ())
    yield from found


def _done(args: argparse.Namespace, job: Job) -> int:
    result = quantize(
        job.model,
        job.example[0],
        job.batches,
        kwargs=job.example[1],
        recipe=job.recipe,
        target=args.target,
        how=args.how,
        leaves=tuple(args.leaf),
        objective=args.objective,
        inputs=job.inputs,
    )
    return fold(result, lambda found: _report(args, job, found), _halted)


def _halted(halt: Halt) -> int:
    usage = (FaultKind.BAD_ARGUMENT, FaultKind.UNSUPPORTED_TARGET, FaultKind.UNKNOWN_LEAF)
    if halt.fault.kind is FaultKind.INTERRUPTED:
        return fail(halt.fault, INTERRUPTED)
    return fail(halt.fault, USAGE if halt.fault.kind in usage else 3)


def _report(args: argparse.Namespace, job: Job, found: Quantized) -> int:
    show_table(*step_rows(found.trail), right=(0, 2, 3))
    show_table(*coverage_rows(found.coverage()), right=(2, 3))
    for note in found.trail.notes:
        remark(f"note: {note}")
    return fold(
        _saved(args, found).bind(lambda _: _measured(job, found)),
        lambda measured: _checked(args, measured),
        lambda halt: _halted(halt),
    )


def _saved(args: argparse.Namespace, found: Quantized) -> Result[None, Halt]:
    done: Result[None, Halt] = Success(None)
    if args.out:
        done = done.bind(lambda _: found.save(args.out).map(lambda d: _told(args.out, d)))
    if args.trail:
        weights = "detached" if args.detached else "attached"
        done = done.bind(
            lambda _: found.save(
                args.trail, "trail", "detached" if weights == "detached" else "attached"
            ).map(lambda d: _told(args.trail, d))
        )
    return done


def _told(place: str, digest: str) -> None:
    say(f"saved {place} ({show_bytes(os.path.getsize(place))})  digest {digest}")


def _measured(job: Job, found: Quantized) -> Result[Measured, Halt]:
    return found.materialize().bind(
        lambda module: attempt(
            lambda: _measure(job, found, module),
            lambda error: Halt(
                Fault(
                    FaultKind.BATCH_DOES_NOT_FIT,
                    f"measuring failed: {type(error).__name__}: {str(error)[:200]}",
                    "check --evaluate and --inputs; what was saved is complete",
                ),
                found.trail,
            ),
        )
    )


def _measure(job: Job, found: Quantized, module: Callable[..., object]) -> Measured:
    args, kwargs = job.evaluate[0] if job.evaluate else job.example
    before, after = latency(job.model, args, kwargs), latency(module, args, kwargs)
    noise = sqnr_over(job.model, module, job.evaluate or (job.example,))
    return Measured(
        count_macs(module, args, kwargs),
        (before.median, after.median),
        (float("inf"), noise),
        (weight_bytes(found.trail.base), weight_bytes(found.graph)),
    )


def _checked(args: argparse.Namespace, found: Measured) -> int:
    say(repr(found.macs))
    say(_line(found), style="bold")
    failures = []
    if args.min_int8 is not None and found.macs.share < args.min_int8:
        failures.append(f"int8 share {found.macs.share:.1%} is below {args.min_int8:.1%}")
    if args.min_sqnr is not None and found.decibels[1] < args.min_sqnr:
        failures.append(f"SQNR {found.decibels[1]:.1f} dB is below {args.min_sqnr:.1f} dB")
    for failure in failures:
        remark(f"check failed: {failure}")
    return FAILED if failures else OK


def _line(found: Measured) -> str:
    small, fast = found.held, found.seconds
    gain = fast[0] / fast[1] if fast[1] else 0.0
    return (
        f"size {show_bytes(small[0])} -> {show_bytes(small[1])}"
        f"   latency {show_seconds(fast[0])} -> {show_seconds(fast[1])} ({gain:.2f}x)"
        f"   SQNR {_decibels(found.decibels[0])} -> {_decibels(found.decibels[1])}"
    )


def _decibels(value: float) -> str:
    return "exact" if value == float("inf") else f"{value:.1f} dB"
