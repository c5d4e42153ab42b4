"""Contestants in their own processes, on nets of a few channels."""

from __future__ import annotations

import multiprocessing
from functools import partial

from fqx.bench.child import timed
from fqx.bench.contestants import CONTESTANTS, Contestant, plain, quantized
from fqx.bench.race import Settings, race, steps
from fqx.bench.report import Status
from fqx.bench.subject import Subject
from fqx.cli.bench import load_own
from fqx.testing.small import dies

SMALL = "fqx.testing.small"
NET = Subject("net", partial(load_own, f"{SMALL}:small_net", f"{SMALL}:batches", None, None, None))
QUICK = Settings(rounds=2, budget=0.001, patience=60.0, batches=(1, 3), profiled=True, side=64)
KNOWN = {item.name: item for item in CONTESTANTS}


def test_everybody_has_a_row_with_numbers_or_a_reason() -> None:
    broken = Contestant("broken", "", partial(quantized, target="nowhere"))
    entered = (KNOWN["fp32"], broken, Contestant("dead", "", dies), KNOWN["fqx-coverage"])
    lines: list[str] = []
    report = race([NET], entered, QUICK, lines.append)
    first, second, third, fourth, *rest = report.rows
    assert (first.status, first.sqnr, first.batch) == (Status.MEASURED, float("inf"), 1)
    assert second.status is Status.FAILED
    assert "nowhere" in second.note
    assert third.status is Status.FAILED
    assert "exit code 7" in third.note
    assert (fourth.status, fourth.threads) == (Status.MEASURED, 1)
    assert fourth.sqnr is not None
    assert 15 < fourth.sqnr < 80
    assert fourth.seconds is not None
    assert fourth.seconds.best <= fourth.seconds.lower <= fourth.seconds.median
    assert [row.batch for row in rest] == [3, 3, 3, 3]
    assert not report.interrupted
    (taken,) = report.profiles
    assert taken.contestant == "fqx-coverage"
    assert taken.peak > 0
    assert {"int8", "quantize"} <= {total.name for total in taken.profile.groups()}
    assert len(lines) <= steps(1, len(entered), QUICK)
    assert multiprocessing.active_children() == []


def test_an_interrupted_run_gives_what_was_measured() -> None:
    def interrupt(line: str) -> None:
        if "round 2" in line:
            raise KeyboardInterrupt

    report = race([NET], (Contestant("once", "", plain),), QUICK, interrupt)
    assert report.interrupted
    one, three = report.rows
    assert one.status is Status.UNFINISHED
    assert one.seconds is not None
    assert (three.status, three.seconds) == (Status.UNFINISHED, None)
    assert multiprocessing.active_children() == []


def test_the_timer_leaves_out_the_first_call() -> None:
    calls: list[int] = []
    taken = timed(lambda: calls.append(1), 0.0)
    assert len(taken) == len(calls) - 1 == 2
    assert all(seconds >= 0 for seconds in taken)
