"""The contestants taking turns: each in its own process, one running at a time."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from fqx.bench.child import Answer, Attribute, Order, Profiled, Ready, Refused, Turn, serve
from fqx.bench.contestants import Contestant
from fqx.bench.peak import SIDE
from fqx.bench.report import Attributed, Report, Row, Status, spread
from fqx.bench.subject import Subject
from fqx.bench.surroundings import surroundings
from fqx.kit.result import attempt

PAUSE = 0.02
"""Seconds between two turns, in which the threads of the one before go to sleep."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run: threads and batch sizes, rounds, seconds of a turn, and of patience.

    `profiled` also attributes time; `side` is that of the product the int8 peak is measured on.
    """

    threads: tuple[int, ...] = (1,)
    batches: tuple[int | None, ...] = (1,)
    rounds: int = 10
    budget: float = 0.2
    patience: float = 900.0
    profiled: bool = False
    side: int = SIDE


Told = Callable[[str], None]
"""Called at every step with a line of what is going on."""


def race(
    subjects: Sequence[Subject],
    contestants: Sequence[Contestant],
    settings: Settings = Settings(),  # frozen
    told: Told = lambda _: None,
) -> Report:
    """Measure every contestant on every subject; a Ctrl-C gives what was measured so far.

    For each subject and number of threads the contestants are prepared one after the other, each in
    a process that stays alive; then they time calls in turns, another one first in every round. A
    contestant that raises, or whose process dies, is a row with the reason.
    """
    heats: list[_Heat] = []
    interrupted = False
    try:
        for subject in subjects:
            for threads in settings.threads:
                heat = _Heat(subject, threads, settings)
                heats.append(heat)
                heat.run(contestants, told)
    except KeyboardInterrupt:
        interrupted = True
    rows = tuple(row for heat in heats for row in heat.rows())
    profiles = tuple(item for heat in heats for item in heat.profiles)
    return Report(surroundings(), settings.rounds, rows, profiles, interrupted)


def steps(subjects: int, contestants: int, settings: Settings) -> int:
    """How often `race` tells what it does, if no contestant drops out."""
    each = contestants * (1 + settings.rounds * len(settings.batches)) + settings.profiled
    return subjects * len(settings.threads) * each


@dataclass
class _Lane:
    """One contestant in its process, and the seconds it has shown, by batch."""

    contestant: Contestant
    process: SpawnProcess
    pipe: Connection
    ready: Ready | None = None
    refused: dict[int | None, Refused] = field(default_factory=dict)
    seconds: dict[int | None, list[float]] = field(default_factory=dict)
    rounds: dict[int | None, int] = field(default_factory=dict)

    def ask(self, order: Order, patience: float) -> Answer:
        """Give an order and wait for the answer; a process that died is an answer too."""
        try:
            self.pipe.send(order)
            return self.hear(patience)
        except (EOFError, OSError):
            return self._lost()

    def hear(self, patience: float) -> Answer:
        """The child's next answer."""
        try:
            if not self.pipe.poll(patience):
                self.process.kill()
                return Refused(f"gave no answer within {patience:.0f} seconds")
            answer: Answer = self.pipe.recv()
            return answer
        except (EOFError, OSError):
            return self._lost()

    def _lost(self) -> Refused:
        self.process.join(5)
        return Refused(f"its process ended with exit code {self.process.exitcode}")

    def end(self, gently: bool) -> None:
        """Take the process away: told to end where it waits for orders, else whatever it does."""
        if gently and self.ready is not None:
            attempt(lambda: self.pipe.send(None), str, (OSError,))
            self.process.join(5)
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Heat:
    """All contestants on one subject with one number of threads."""

    def __init__(self, subject: Subject, threads: int, settings: Settings) -> None:
        self.subject = subject
        self.threads = threads
        self.settings = settings
        self.lanes: list[_Lane] = []
        self.profiles: list[Attributed] = []

    def run(self, contestants: Sequence[Contestant], told: Told) -> None:
        """Prepare, take turns, attribute; the processes are gone afterwards."""
        where = f"{self.subject.name}, {self.threads} thread{'s' * (self.threads > 1)}"
        done = False
        try:
            for contestant in contestants:
                told(f"{where}: preparing {contestant.name}")
                self._start(contestant)
            for batch in self.settings.batches:
                for number in range(self.settings.rounds):
                    self._round(number, batch, lambda name: told(f"{where}: {name}"))
            if self.settings.profiled:
                self._attribute(lambda name: told(f"{where}: attributing {name}"))
            done = True
        finally:
            for lane in self.lanes:
                lane.end(gently=done)

    def _start(self, contestant: Contestant) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(theirs, self.subject, contestant, self.threads), daemon=True
        )
        lane = _Lane(contestant, process, ours)
        with _uninterrupted():
            process.start()
        theirs.close()
        self.lanes.append(lane)
        answer = lane.hear(self.settings.patience)
        if isinstance(answer, Ready):
            lane.ready = answer
        elif isinstance(answer, Refused):
            lane.refused = dict.fromkeys(self.settings.batches, answer)

    def _round(self, number: int, batch: int | None, told: Told) -> None:
        """One turn each; the first to run is another one every time."""
        first = number % max(len(self.lanes), 1)
        size = "" if batch is None else f", batch {batch}"
        for lane in (*self.lanes[first:], *self.lanes[:first]):
            if batch in lane.refused:
                continue
            told(f"{lane.contestant.name}{size}, round {number + 1} of {self.settings.rounds}")
            time.sleep(PAUSE)
            answer = lane.ask(Turn(batch, self.settings.budget), self.settings.patience)
            if isinstance(answer, tuple):
                lane.seconds.setdefault(batch, []).extend(answer)
                lane.rounds[batch] = number + 1
            elif isinstance(answer, Refused):
                lane.refused[batch] = answer

    def _attribute(self, told: Told) -> None:
        """The profile of the first contestant that runs an int8 program of fqx."""
        batch = self.settings.batches[0]
        able = (
            lane
            for lane in self.lanes
            if lane.contestant.attributable and batch not in lane.refused
        )
        for lane in islice(able, 1):
            told(lane.contestant.name)
            answer = lane.ask(Attribute(batch, self.settings.side), self.settings.patience)
            if isinstance(answer, Profiled):
                self.profiles.append(
                    Attributed(
                        self.subject.name,
                        lane.contestant.name,
                        self.threads,
                        batch,
                        answer.profile,
                        answer.peak,
                    )
                )

    def rows(self) -> Iterator[Row]:
        """A row for every batch and contestant, numbers or not."""
        for batch in self.settings.batches:
            for lane in self.lanes:
                yield self._row(lane, batch)

    def _row(self, lane: _Lane, batch: int | None) -> Row:
        refused, seconds = lane.refused.get(batch), lane.seconds.get(batch, [])
        status, note = Status.UNFINISHED, ""
        if refused is not None:
            status = Status.ABSENT if refused.absent else Status.FAILED
            note = refused.reason
        elif lane.ready is not None:
            note = lane.ready.note
            if lane.rounds.get(batch, 0) == self.settings.rounds:
                status = Status.MEASURED
        return Row(
            self.subject.name,
            lane.contestant.name,
            self.threads,
            batch,
            status,
            spread(seconds) if seconds else None,
            lane.ready.sqnr if lane.ready else None,
            lane.ready.seconds if lane.ready else None,
            note,
        )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process started inside does not see the terminal's Ctrl-C: its parent ends it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
