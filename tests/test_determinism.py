"""Given a FLOAT graph and statistics, every pass gives the same digest in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from fqx.edge.artefact import save_trail
from fqx.ir.trail import Trail
from fqx.kit.result import fold as on
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.fuse import fuse
from fqx.passes.observe import observe
from fqx.policy.recipe import int8_static
from fqx.testing.digests import targets
from fqx.testing.graphs import Sample, samples
from fqx.testing.small import batches, quantized_trail

ROOT = Path(__file__).parents[1]

# Hash seeds order sets; threads and instruction sets order float sums and choose kernels.
PROCESSES = (
    (1, {"PYTHONHASHSEED": "1"}),
    (2, {"PYTHONHASHSEED": "2", "ATEN_CPU_CAPABILITY": "default"}),
    (1, {"PYTHONHASHSEED": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}),
)


def drawn(number: int) -> list[Sample]:
    """The same graphs every time, straight from the catalogue."""
    found: list[Sample] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(samples())
    def collect(sample: Sample) -> None:
        found.append(sample)

    collect()
    return found


def calibrated(sample: Sample) -> list[Trail]:
    """The trail up to its statistics; none if the values overflow."""
    road = clean() | fuse() | observe(int8_static(), *targets())
    measured = road | calibrate([sample.inputs], progress=False)
    return on(measured.run(sample.graph), lambda trail: [trail], lambda _: [])


def test_every_process_comes_to_the_same_digests(tmp_path: Path) -> None:
    net = Sample(quantized_trail().base, (batches()[0],))
    trails = [trail for sample in (net, *drawn(8)) for trail in calibrated(sample)]
    files = [str(tmp_path / f"{index}.fqx") for index in range(len(trails))]
    for path, trail in zip(files, trails, strict=True):
        save_trail(path, trail).unwrap()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "fqx.testing.digests", str(threads), *files],
            cwd=ROOT,
            env={**os.environ, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for threads, extra in PROCESSES
    ]
    printed = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, printed, strict=True):
        assert process.returncode == 0, errors
    first, *others = [json.loads(out) for out, _ in printed]
    assert len(first) > 150
    for (_, extra), other in zip(PROCESSES[1:], others, strict=True):
        apart = {name for name in first if first[name] != other.get(name)}
        assert not apart and len(first) == len(other), (extra, sorted(apart)[:10])
