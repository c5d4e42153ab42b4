"""`make properties`: many drawn graphs and models through all laws, resumable.

    python -m properties --graphs 100000 --models 10000

Each law runs in chunks of a fixed seed. A finished chunk is written to the ledger, so an
interrupted run goes on where it stopped; a failing chunk is not, and fails again the same way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from rich.console import Console
from rich.progress import Progress

from properties import test_capture, test_passes, test_quantization

CHUNK = 250


@dataclass(frozen=True, slots=True)
class Job:
    """One law on one chunk of examples."""

    law: Callable[[], None]
    index: int
    examples: int

    @property
    def key(self) -> str:
        """How the ledger calls it."""
        return f"{self.law.__module__}.{self.law.__name__}/{self.index}/{self.examples}"

    def run(self) -> None:
        """Draw the chunk's examples; an AssertionError or ExceptionGroup tells of a failure."""
        quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
        profile = settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=False,
            database=None,
            suppress_health_check=quiet,
        )
        # One set of decorators a chunk: Hypothesis keeps the drawn state on the wrapper.
        seed(self.index)(profile(_again(self.law)))()


def _again(law: Callable[[], None]) -> Callable[[], None]:
    """The law as Hypothesis made it, with nothing left of an earlier chunk's settings."""
    for name in ("_hypothesis_internal_settings_applied", "_hypothesis_internal_use_seed"):
        if hasattr(law, name):
            delattr(law, name)
    return law


def jobs(graphs: int, models: int) -> Iterator[Job]:
    """Every law on its share of chunks: graph laws share `graphs`, model laws `models`."""
    for laws, total in ((GRAPH_LAWS, graphs), (MODEL_LAWS, models)):
        share = -(-total // len(laws))
        for start in range(0, share, CHUNK):
            for law in laws:
                yield Job(law, start // CHUNK, min(CHUNK, share - start))


GRAPH_LAWS: tuple[Callable[[], None], ...] = (
    *test_passes.GRAPH_LAWS,
    *test_quantization.GRAPH_LAWS,
)
MODEL_LAWS: tuple[Callable[[], None], ...] = test_capture.MODEL_LAWS


def run(graphs: int, models: int, ledger: Path, console: Console) -> int:
    """Run what the ledger does not hold yet; the number of failed jobs."""
    done = (
        {json.loads(line) for line in ledger.read_text().splitlines()} if ledger.exists() else set()
    )
    todo = [job for job in jobs(graphs, models) if job.key not in done]
    console.print(f"{len(done)} chunks are done, {len(todo)} to go")
    failures = 0
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("laws", total=len(todo))
        for job in todo:
            failures += not _survives(job, ledger, console)
            progress.advance(bar)
    console.print(f"{len(todo) - failures} passed, {failures} failed")
    return failures


def _survives(job: Job, ledger: Path, console: Console) -> bool:
    try:
        job.run()
    except Exception as error:  # noqa: BLE001  # whatever a law raises is its failure
        console.print(f"[red]{job.key}[/red]\n{error}", highlight=False)
        return False
    with ledger.open("a") as lines:
        lines.write(json.dumps(job.key) + "\n")
    return True


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--graphs", type=int, default=100_000, help="graphs to draw in all")
    parser.add_argument("--models", type=int, default=10_000, help="models to draw in all")
    parser.add_argument("--ledger", type=Path, default=Path(".hypothesis/deep.jsonl"))
    options = parser.parse_args(argv)
    try:
        return min(1, run(options.graphs, options.models, options.ledger, Console()))
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
