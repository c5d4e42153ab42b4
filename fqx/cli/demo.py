"""`fqx demo`: the whole road on real inputs; its record is saved, loaded elsewhere and verified."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import fqx
from fqx.audit.coverage import coverage
from fqx.audit.macs import count_macs
from fqx.audit.measure import latency, show_bytes, show_seconds, sqnr_over, weight_bytes
from fqx.cli.console import FAILED, OK, say, show_table
from fqx.edge.modules import GraphModule, Module
from fqx.ir.trail import Halt, Step, Trail
from fqx.kit.result import Result, gather
from fqx.policy.target import Target
from fqx.testing import digits, minilm

How = Literal["export", "symbolic"]
WAYS: tuple[How, ...] = ("export", "symbolic")
ALLOWED_LOSS = 0.005
LEAST_SQNR = 20.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One quantized program with what was measured on it."""

    how: How
    target: Target
    trail: Trail
    module: GraphModule
    accuracy: float
    seconds: float
    share: float


def run_demo(what: str = "digits", folder: Path | None = None) -> int:
    """Run the demo `digits` or `minilm` and give the exit code.

    The trail is written to `folder`, or to a temporary one that is removed. The code is 0 if
    accuracy (digits: within half a point of float32 on every target) or SQNR (minilm: 20 dB) holds
    and the record verifies, 1 if not. A fault is raised by `unwrap`.
    """
    demo = {"digits": _digits, "minilm": _minilm}[what]
    with _calm():
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            return demo(folder)
        with tempfile.TemporaryDirectory(prefix="fqx-demo-") as made:
            return demo(Path(made))


@contextmanager
def _calm() -> Iterator[None]:
    """One thread, which a busy machine disturbs least, and no word about deprecated dtypes.

    Only target `native` uses those; its kernels take nothing else.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            yield
    finally:
        torch.set_num_threads(threads)


def digits_elsewhere(path: str) -> str:
    """Load a trail of the digits demo, run its program on the test digits: accuracy and digest."""
    torch.set_num_threads(1)
    data = digits.load_digits()
    trail = fqx.load(path).unwrap().trail
    module = fqx.materialize(trail.graph).unwrap()
    proof = fqx.verify(trail).unwrap()
    accuracy = digits.accuracy(module, data.test_images, data.test_labels)
    with torch.no_grad():
        bits = module(data.test_images).numpy().tobytes()
    return json.dumps(
        {
            "accuracy": accuracy,
            "outputs": hashlib.sha256(bits).hexdigest(),
            "digest": proof.digest,
        }
    )


def _digits(folder: Path) -> int:
    data = digits.load_digits()
    start = time.perf_counter()
    model = digits.train(data)
    trained = time.perf_counter() - start
    correct = digits.accuracy(model, data.test_images, data.test_labels)
    images = data.test_images[:64]
    floating = _seconds(model, (images,))
    say(
        f"A residual CNN on {len(data.train_labels)} handwritten digits, trained in {trained:.1f} s"
    )
    say(f"fp32: {correct:.1%} of {len(data.test_labels)} test digits right", "bold")

    outcomes = _quantized_digits(model, data).unwrap()
    say("")
    show_table(
        ("capture", "target", "accuracy", "fp32", "int8", "faster", "int8 MACs"),
        [_outcome_row(outcome, floating) for outcome in outcomes],
        "64 images a call, one thread, the fastest of 50 calls",
        right=range(2, 7),
    )
    one = outcomes[0]
    before, after = weight_bytes(one.trail.base), weight_bytes(one.trail.graph)
    say(f"weights: {show_bytes(before)} in fp32, {show_bytes(after)} in int8")
    twins = [item for item in outcomes if item.target == one.target]
    equal = len({item.trail.graph.digest for item in twins}) == 1
    say(f"both captures give {'the same program' if equal else 'different programs'}")
    _show_verdicts(one.trail)
    _show_steps(one.trail)
    record = _record(folder, one, data, model)
    close = all(outcome.accuracy >= correct - ALLOWED_LOSS - 1e-9 for outcome in outcomes)
    say(f"int8 within {ALLOWED_LOSS:.1%} of fp32 on every target: {'yes' if close else 'NO'}")
    return OK if close and record and equal else FAILED


def _quantized_digits(
    model: digits.DigitsNet, data: digits.Digits
) -> Result[tuple[Outcome, ...], Halt]:
    """Every capture with every target; one calibrated graph serves all targets."""
    wanted = (fqx.onednn(), fqx.native("x86").unwrap(), fqx.reference())
    targets = tuple(fqx.probe(target).alt(Halt).unwrap() for target in wanted)
    made: list[Result[Outcome, Halt]] = []
    for how in WAYS:
        trail = _calibrated(model, data, how, targets).unwrap()
        made += [_outcome(how, target, trail, data) for target in targets]
    return gather(made)


def _calibrated(
    model: digits.DigitsNet, data: digits.Digits, how: How, targets: Sequence[Target]
) -> Result[Trail, Halt]:
    road = (
        fqx.clean()
        | fqx.fuse()
        | fqx.observe(fqx.int8_static(), *targets)
        | fqx.calibrate(digits.batches(data))
        | fqx.smooth()
    )
    return fqx.capture(model, (data.test_images[:2],), how=how).bind(road.run)


def _outcome(how: How, target: Target, trail: Trail, data: digits.Digits) -> Result[Outcome, Halt]:
    road = fqx.convert(target) | fqx.fold() | fqx.lower(target)
    return road.run(trail).bind(
        lambda done: fqx.materialize(done.graph).map(
            lambda module: _measured(how, target, done, module, data)
        )
    )


def _measured(
    how: How, target: Target, trail: Trail, module: GraphModule, data: digits.Digits
) -> Outcome:
    images = data.test_images[:64]
    return Outcome(
        how,
        target,
        trail,
        module,
        digits.accuracy(module, data.test_images, data.test_labels),
        _seconds(module, (images,)),
        count_macs(module, (images,)).share,
    )


def _seconds(module: Module, inputs: Sequence[torch.Tensor]) -> float:
    """The fastest call of fifty, which a busy machine disturbs least."""
    return latency(module, inputs, runs=50).best


def _outcome_row(outcome: Outcome, floating: float) -> tuple[str, ...]:
    return (
        outcome.how,
        outcome.target.label,
        f"{outcome.accuracy:.1%}",
        show_seconds(floating),
        show_seconds(outcome.seconds),
        f"{floating / outcome.seconds:.2f}×",
        f"{outcome.share:.1%}",
    )


def _record(folder: Path, one: Outcome, data: digits.Digits, model: Module) -> bool:
    """Save the trail, run it in a fresh process, verify it here; whether everything agrees."""
    path = folder / "digits-trail.fqx"
    digest = fqx.save_trail(path, one.trail).unwrap()
    say(f"saved the trail: {show_bytes(path.stat().st_size)}, digest {digest[:12]}")
    found = _elsewhere(path)
    with torch.no_grad():
        bits = one.module(data.test_images).numpy().tobytes()
    same = (
        found.get("outputs") == hashlib.sha256(bits).hexdigest()
        and found.get("digest") == one.trail.graph.digest
    )
    say(f"a fresh process loads it, replays it and computes {'the same bits' if same else 'ELSE'}")
    proof = fqx.verify(
        one.trail, model.state_dict(), model=model, calibration=digits.batches(data)
    ).unwrap()
    say(repr(proof))
    return same


def _elsewhere(path: Path) -> Mapping[str, object]:
    code = f"from fqx.cli.demo import digits_elsewhere; print(digits_elsewhere({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        say(done.stderr.strip()[-2000:], "red")
        return {}
    found: Mapping[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def _minilm(folder: Path) -> int:
    model = minilm.encoder()
    held = minilm.held_out_batches()
    say("MiniLM-L6 sentence encoder, 16 × 64 tokens, published weights")
    start = time.perf_counter()
    done = fqx.quantize(model, held[0], calibration=minilm.calibration_batches()).unwrap()
    module = done.materialize().unwrap()
    say(f"quantized for onednn in {time.perf_counter() - start:.1f} s, no recipe given")
    _show_verdicts(done.trail)
    _show_steps(done.trail)
    fidelity = sqnr_over(
        lambda *inputs: model(*inputs)[0],
        lambda *inputs: module(*inputs)[0],
        [(batch, {}) for batch in held],
    )
    cosines = torch.cat([_cosine(model, module, batch) for batch in held])
    before, after = (_seconds(net, held[0]) for net in (model, module))
    macs = count_macs(module, held[0])
    show_table(
        ("", "fp32", "int8"),
        (
            ("latency", show_seconds(before), f"{show_seconds(after)}  {before / after:.2f}×"),
            (
                "weights",
                show_bytes(weight_bytes(done.trail.base)),
                show_bytes(weight_bytes(done.graph)),
            ),
            ("MACs in int8", "0.0%", f"{macs.share:.1%}"),
            ("SQNR of token vectors", "", f"{fidelity:.1f} dB"),
            ("cosine of embeddings", "", f"mean {cosines.mean():.5f}, least {cosines.min():.5f}"),
        ),
        f"on {len(cosines)} sentences it was not calibrated on; one thread, the fastest call",
        right=(1, 2),
    )
    path = folder / "minilm-trail.fqx"
    digest = fqx.save_trail(path, done.trail, "detached").unwrap()
    say(f"saved the trail without weights: {show_bytes(path.stat().st_size)}, digest {digest[:12]}")
    loaded = fqx.read(path).unwrap().trail
    say(repr(fqx.verify(loaded, model.state_dict()).unwrap()))
    return OK if fidelity >= LEAST_SQNR else FAILED


def _cosine(model: Module, module: Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        one, two = model(*batch)[1], module(*batch)[1]
        return torch.nn.functional.cosine_similarity(one, two)


def _show_verdicts(trail: Trail) -> None:
    table = coverage(trail)
    say("")
    show_table(
        ("op", "verdict", "nodes", "MACs", "why"),
        [
            (row.op, row.verdict.value, str(len(row.nodes)), f"{row.macs:,}", row.reason)
            for row in table.rows
        ],
        f"verdicts for {table.target}: {table.int8_share:.1%} of the multiply-accumulates in int8",
        right=(2, 3),
    )


def _show_steps(trail: Trail) -> None:
    for step in trail.steps:
        say(_step_line(step))


def _step_line(step: Step) -> str:
    counts: dict[str, int] = {}
    for edit in step.diff.edits:
        kind = type(edit).__name__.lower()
        counts[kind] = counts.get(kind, 0) + 1
    what = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
    return f"{step.text.split('(')[0]:<10} {step.before[:8]} → {step.after[:8]}  {what}"
