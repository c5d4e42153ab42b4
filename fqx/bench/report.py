"""What a run found, as values and as plain data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from fqx.audit.profile import Profile
from fqx.bench.surroundings import Surroundings
from fqx.ir.arg import Json

FORMAT = 1
"""The number of the JSON form."""


class Status(Enum):
    """Whether a contestant's row holds numbers, and why not."""

    MEASURED = "measured"
    UNFINISHED = "unfinished"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of one call: median, quartiles and fastest of `calls`."""

    median: float
    lower: float
    upper: float
    best: float
    calls: int


def spread(seconds: Sequence[float]) -> Spread:
    """The spread of at least one time; quartiles lie between the times nearest to them."""
    if len(seconds) == 1:
        return Spread(seconds[0], seconds[0], seconds[0], seconds[0], 1)
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Spread(median, lower, upper, min(seconds), len(seconds))


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant on one model with one number of threads and one batch size.

    `batch` None is the example as it was given. `sqnr` is in dB against the eager float32 model on
    held-out inputs, infinite where nothing differs. `prepared`: the seconds it took to get ready.
    """

    model: str
    contestant: str
    threads: int
    batch: int | None
    status: Status
    seconds: Spread | None = None
    sqnr: float | None = None
    prepared: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Json]:
        """Plain data; an exact output has the SQNR `"exact"`."""
        times: Json = None
        if self.seconds is not None:
            found = self.seconds
            times = {
                "median": found.median,
                "lower": found.lower,
                "upper": found.upper,
                "best": found.best,
                "calls": found.calls,
            }
        return {
            "model": self.model,
            "contestant": self.contestant,
            "threads": self.threads,
            "batch": self.batch,
            "status": self.status.value,
            "seconds": times,
            "sqnr": _plain(self.sqnr),
            "prepared": self.prepared,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Attributed:
    """Where one fqx contestant's time went, and the machine's int8 peak in MACs a second."""

    model: str
    contestant: str
    threads: int
    batch: int | None
    profile: Profile
    peak: float

    @property
    def utilisation(self) -> float:
        """The part of the peak that the int8 kernels reach: their MACs / their time / peak."""
        busy = [node for node in self.profile.nodes if node.int8_macs]
        seconds = sum(node.seconds for node in busy)
        return sum(node.int8_macs for node in busy) / seconds / self.peak if seconds else 0.0

    @property
    def convolutions(self) -> float:
        """The same of the int8 convolutions alone; 0 where there are none."""
        busy = [node for node in self.profile.nodes if node.int8_macs and "conv" in node.kernel]
        seconds = sum(node.seconds for node in busy)
        return sum(node.int8_macs for node in busy) / seconds / self.peak if seconds else 0.0

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {
            "model": self.model,
            "contestant": self.contestant,
            "threads": self.threads,
            "batch": self.batch,
            "peak": self.peak,
            "utilisation": self.utilisation,
            "convolutions": self.convolutions,
            "profile": self.profile.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run; `interrupted` if it was cut short, the rows then hold what there is."""

    surroundings: Surroundings
    rounds: int
    rows: tuple[Row, ...]
    profiles: tuple[Attributed, ...] = ()
    interrupted: bool = False

    def baseline(self, row: Row) -> Row | None:
        """The first measured float32 row of the same model, threads and batch."""
        key = (row.model, row.threads, row.batch)
        same = (item for item in self.rows if (item.model, item.threads, item.batch) == key)
        return next((item for item in same if item.contestant == "fp32" and item.seconds), None)

    def faster(self, row: Row) -> float | None:
        """How many times faster than eager float32 a row's median is."""
        base = self.baseline(row)
        if base is None or base.seconds is None or row.seconds is None:
            return None
        return base.seconds.median / row.seconds.median

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {
            "format": FORMAT,
            "surroundings": self.surroundings.to_json(),
            "rounds": self.rounds,
            "interrupted": self.interrupted,
            "rows": [row.to_json() for row in self.rows],
            "profiles": [item.to_json() for item in self.profiles],
        }


def _plain(sqnr: float | None) -> Json:
    return sqnr if sqnr is None or math.isfinite(sqnr) else "exact" if sqnr > 0 else "none"
