"""`fqx bench [MODEL]`: latency and accuracy of fqx and its peers, side by side in one run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from fqx.audit.measure import Call, call_of, show_seconds
from fqx.bench.contestants import CONTESTANTS, Contestant
from fqx.bench.models import MODELS, bundled
from fqx.bench.plot import plot
from fqx.bench.race import Settings, race, steps
from fqx.bench.report import Attributed, Report, Status
from fqx.bench.subject import Loaded, Subject
from fqx.bench.tables import (
    COLUMNS,
    NODES,
    RIGHT,
    TOTALS,
    into_page,
    markdown,
    node_rows,
    screen_rows,
    total_rows,
)
from fqx.cli.console import FAILED, INTERRUPTED, OK, USAGE, fail, remark, say, show_table
from fqx.cli.resolve import batches_of, function_of, model_of, value_of
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.files import replacing
from fqx.kit.progress import telling
from fqx.kit.result import Failure, Result, Success, attempt, fold, gather

KEPT = 4
"""How many calibration batches outputs are compared on, if there are no others."""

SLOWEST = 12
"""How many nodes `--profile` lists for each contestant."""


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; 1 if no row at all could be measured."""
    return fold(
        _places(args).bind(
            lambda _: _subjects(args).bind(
                lambda subjects: _contestants(args).map(lambda chosen: (subjects, chosen))
            )
        ),
        lambda job: _raced(args, *job),
        lambda fault: fail(fault, USAGE),
    )


def _raced(
    args: argparse.Namespace, subjects: Sequence[Subject], contestants: Sequence[Contestant]
) -> int:
    settings = Settings(
        threads=args.threads,
        batches=args.batch or ((None,) if args.model else (1,)),
        rounds=args.rounds,
        budget=args.budget,
        profiled=args.profile,
    )
    with telling(steps(len(subjects), len(contestants), settings)) as told:
        report = race(subjects, contestants, settings, told)
    _shown(report)
    written = gather(_written(args, report))
    if report.interrupted:
        remark("interrupted: this is what was measured so far")
        return INTERRUPTED
    measured = any(row.status is Status.MEASURED for row in report.rows)
    return fold(written, lambda _: OK if measured else FAILED, fail)


# What is measured.


def _subjects(args: argparse.Namespace) -> Result[tuple[Subject, ...], Fault]:
    if args.model:
        return _own(args)
    names = args.models or tuple(MODELS)
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        return Failure(_unknown("model", unknown[0], MODELS))
    return Success(tuple(bundled(name) for name in names))


def _contestants(args: argparse.Namespace) -> Result[tuple[Contestant, ...], Fault]:
    known = {item.name: item for item in CONTESTANTS}
    unknown = [name for name in args.contestants or () if name not in known]
    if unknown:
        return Failure(_unknown("contestant", unknown[0], known))
    return Success(tuple(known[name] for name in args.contestants or known))


def _own(args: argparse.Namespace) -> Result[tuple[Subject, ...], Fault]:
    """The user's model, loaded once here so that a wrong name is known before the run."""
    if not args.calibration:
        return Failure(
            Fault(
                FaultKind.BAD_ARGUMENT,
                f"{args.model} needs inputs to calibrate, time and compare on",
                "add --calibration MODULE:NAME, batches as in `fqx quantize`",
            )
        )
    given = (args.model, args.calibration, args.inputs, args.evaluate, args.example)
    name = args.model.rpartition(":")[2]
    return _loaded(*given).map(lambda _: (Subject(name, partial(load_own, *given)),))


def load_own(
    model: str, calibration: str, inputs: str | None, evaluate: str | None, example: str | None
) -> Loaded:
    """The user's model and inputs by their names; raises what is wrong. Runs in every child."""
    return _loaded(model, calibration, inputs, evaluate, example).unwrap()


def _loaded(
    model: str, calibration: str, inputs: str | None, evaluate: str | None, example: str | None
) -> Result[Loaded, Fault]:
    held = _calls(evaluate, inputs) if evaluate else _calls(calibration, inputs).map(_first)
    return model_of(model).bind(
        lambda made: _calls(calibration, inputs).bind(
            lambda batches: held.bind(
                lambda calls: _example(example, batches).map(
                    lambda call: Loaded(made, batches, calls, call)
                )
            )
        )
    )


def _first(calls: tuple[Call, ...]) -> tuple[Call, ...]:
    return calls[:KEPT]


def _example(spec: str | None, batches: Sequence[Call]) -> Result[Call, Fault]:
    return value_of(spec).map(call_of) if spec else Success(batches[0])


def _calls(spec: str, inputs: str | None) -> Result[tuple[Call, ...], Fault]:
    pick = function_of(inputs) if inputs else Success(_whole)
    return pick.bind(
        lambda picked: batches_of(spec).bind(
            lambda batches: attempt(
                lambda: tuple(call_of(picked(batch)) for batch in batches),
                lambda error: Fault(
                    FaultKind.BAD_ARGUMENT,
                    f"{spec} raises {type(error).__name__}: {error}",
                    "it must give batches, and --inputs take one of them",
                ),
            )
        )
    ).bind(lambda calls: Success(calls) if calls else Failure(_empty(spec)))


def _whole(batch: object) -> object:
    return batch


def _empty(spec: str) -> Fault:
    return Fault(
        FaultKind.EMPTY_CALIBRATION,
        f"{spec} gives no batches",
        "hand in at least one batch of real inputs",
    )


def _unknown(what: str, name: str, known: Iterable[str]) -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        f"there is no {what} called {name!r}",
        f"{what}s are {', '.join(known)}",
    )


# What is printed and written.


def _shown(report: Report) -> None:
    say(str(report.surroundings), style="bold")
    for threads in dict.fromkeys(row.threads for row in report.rows):
        title = f"{threads} thread{'s' * (threads > 1)}, {report.rounds} rounds"
        show_table(COLUMNS, screen_rows(report, threads), title, RIGHT)
    for item in report.profiles:
        _profile(item)


def _profile(item: Attributed) -> None:
    found = item.profile
    title = (
        f"{item.model}, {item.contestant}, {item.threads} thread{'s' * (item.threads > 1)}: "
        f"{show_seconds(found.seconds)} in nodes, {show_seconds(found.whole)} a call; "
        f"int8 kernels {item.utilisation:.0%}, convolutions {item.convolutions:.0%} "
        f"of the peak of {item.peak / 1e9:.0f} GMAC/s"
    )
    say(title, style="bold")
    show_table(TOTALS, total_rows(found, found.groups()), right=(1, 2, 3, 4))
    show_table(("kernel", *TOTALS[1:]), total_rows(found, found.kernels()), right=(1, 2, 3, 4))
    show_table(NODES, node_rows(found, item.peak, SLOWEST), right=(3, 4, 5))


def _places(args: argparse.Namespace) -> Result[None, Fault]:
    """Whether the files can be written, known before the run and not after it."""
    for place in (args.json, args.markdown, args.plot):
        folder = os.path.dirname(os.path.abspath(place)) if place else os.curdir
        if not os.path.isdir(folder):
            return Failure(_unwritable(place, f"there is no folder {folder}"))
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        return Failure(
            Fault(
                FaultKind.BAD_ARGUMENT,
                "--plot draws with matplotlib, which is not installed",
                "pip install 'fqx[bench]', or leave --plot out",
            )
        )
    return Success(None)


def _written(args: argparse.Namespace, report: Report) -> Iterator[Result[None, Fault]]:
    if args.json:
        text = json.dumps(report.to_json(), indent=2)
        yield _saved(args.json, lambda: _write(args.json, f"{text}\n"))
    if args.markdown:
        yield _saved(args.markdown, lambda: _write_page(args.markdown, markdown(report)))
    if args.plot:
        yield _saved(args.plot, lambda: plot(report, args.plot))


def _saved(place: str, write: Callable[[], None]) -> Result[None, Fault]:
    return attempt(write, lambda error: _unwritable(place, str(error)), (OSError, ValueError)).map(
        lambda _: say(f"wrote {place}")
    )


def _write_page(place: str, text: str) -> None:
    old = Path(place)
    _write(place, into_page(old.read_text() if old.exists() else "", text))


def _write(place: str, text: str) -> None:
    with replacing(place) as made:
        made.write_text(text)


def _unwritable(place: str, why: str) -> Fault:
    return Fault(
        FaultKind.UNWRITABLE_FILE,
        f"{place} cannot be written: {why}",
        "choose another place, or for a plot another suffix (.png, .svg)",
    )
