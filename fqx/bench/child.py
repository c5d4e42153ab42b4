"""One contestant in a process of its own: it prepares once and then times when told to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from fqx.audit.measure import Call, decibels, powers
from fqx.audit.profile import Profile, profile
from fqx.bench.contestants import Contestant
from fqx.bench.peak import int8_peak
from fqx.bench.runner import Absent, Runner
from fqx.bench.subject import Loaded, Subject, sized
from fqx.ir.trail import Halt
from fqx.kit.collector import uncollected
from fqx.kit.result import Result, attempt, fold

LEAST, MOST = 2, 100
"""How many calls one turn times, whatever its budget of seconds."""

WARM = 3
"""Calls before the first turn: kernels are packed, compilers have done their work."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Ready to be called: SQNR in dB on the held-out calls, seconds it took to prepare."""

    sqnr: float
    seconds: float
    note: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a contestant gives no numbers; `absent` if that was to be expected here."""

    reason: str
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """Told to a child: time calls of `batch` samples for about `budget` seconds."""

    batch: int | None
    budget: float


@dataclass(frozen=True, slots=True)
class Attribute:
    """Told to a child: attribute the time of a call of `batch` samples to kernels and nodes.

    The peak is that of a product of `side`³.
    """

    batch: int | None
    side: int


@dataclass(frozen=True, slots=True)
class Profiled:
    """A profile, and the int8 peak of the machine in multiply-accumulates a second."""

    profile: Profile
    peak: float


Order = Turn | Attribute | None
"""What the parent tells a child; None ends it."""

Answer = Ready | Refused | Profiled | tuple[float, ...]
"""What a child says: once whether it is ready, then seconds of every call of a turn."""


def serve(pipe: Connection, subject: Subject, contestant: Contestant, threads: int) -> None:
    """Prepare, say so, and obey orders until there are no more. Runs in the child."""
    _silence()
    prepared = attempt(lambda: _prepared(subject, contestant, threads), _refusal)
    fold(
        prepared,
        lambda found: _obey(pipe, found[0], found[1], found[2]),
        lambda refused: pipe.send(refused),
    )
    pipe.close()


def _silence() -> None:
    """Exporters and compilers print; what matters here comes through the pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _prepared(subject: Subject, contestant: Contestant, threads: int) -> tuple[Runner, Call, Ready]:
    loaded = subject.load()
    with torch.no_grad():
        # before preparing: a contestant may change the model it is given
        expected = [loaded.model(*args, **kwargs) for args, kwargs in loaded.held_out]
    torch.set_num_threads(threads)
    start = time.perf_counter()
    runner = contestant.prepare(loaded, threads)
    seconds = time.perf_counter() - start
    return runner, loaded.example, Ready(_sqnr(runner, loaded, expected), seconds, runner.note)


def _sqnr(runner: Runner, loaded: Loaded, expected: list[object]) -> float:
    signal = noise = 0.0
    with torch.no_grad():
        for call, wanted in zip(loaded.held_out, expected, strict=True):
            one, two = powers(wanted, runner.bind(call)())
            signal, noise = signal + one, noise + two
    return decibels(signal, noise)


def _refusal(error: Exception) -> Refused:
    """The first line of a fault of fqx, or the class and text of any other error."""
    cause = error.__cause__
    text = str(cause.fault).splitlines()[0] if isinstance(cause, Halt) else str(error)
    known = isinstance(error, Absent) or isinstance(cause, Halt)
    shown = " ".join((text if known else f"{type(error).__name__}: {text}").split())
    return Refused(shown[:300], isinstance(error, Absent))


def _obey(pipe: Connection, runner: Runner, example: Call, ready: Ready) -> None:
    pipe.send(ready)
    bound: dict[int | None, Callable[[], object]] = {}
    while True:
        order: Order = pipe.recv()
        if order is None:
            return
        pipe.send(_answer(runner, example, bound, order))


def _answer(
    runner: Runner,
    example: Call,
    bound: dict[int | None, Callable[[], object]],
    order: Turn | Attribute,
) -> Answer:
    """What an order asks for; `bound` keeps the functions of the batches seen so far."""

    def obeyed() -> Answer:
        call = sized(example, order.batch)
        if isinstance(order, Attribute):
            return _profiled(runner, call, order.side)
        if order.batch not in bound:
            bound[order.batch] = _warmed(runner.bind(call))
        return timed(bound[order.batch], order.budget)

    refused: Result[Answer, Answer] = attempt(obeyed, _refusal)
    return fold(refused, lambda found: found, lambda found: found)


def _warmed(run: Callable[[], object]) -> Callable[[], object]:
    with torch.no_grad():
        for _ in range(WARM):
            run()
    return run


def timed(run: Callable[[], object], budget: float) -> tuple[float, ...]:
    """Seconds of each of 2 to 100 calls, no new one after `budget` seconds; one goes uncounted.

    The uncounted one brings back into the caches what the other contestants drove out of them.
    """
    taken: list[float] = []
    with torch.no_grad(), uncollected():
        run()
        start = before = time.perf_counter()
        while len(taken) < LEAST or (len(taken) < MOST and before - start < budget):
            run()
            now = time.perf_counter()
            taken.append(now - before)
            before = now
    return tuple(taken)


def _profiled(runner: Runner, call: Call, side: int) -> Profiled:
    if runner.program is None:
        raise Absent("has no program whose nodes can be timed")
    before, found = int8_peak(side), profile(runner.program, *call)
    # what else the machine does can only lower a peak
    return Profiled(found, max(before, int8_peak(side)))
