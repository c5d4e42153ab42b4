"""The machine and the versions a measurement belongs to."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fqx.ir.arg import Json
from fqx.kit.result import attempt

PACKAGES = ("fqx", "torch", "onnxruntime", "torchao", "transformers")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Processor, number of cores this process may use, instruction set, VNNI, versions."""

    processor: str
    cores: int
    isa: str
    vnni: bool
    versions: Mapping[str, str]

    def __str__(self) -> str:
        vnni = "VNNI" if self.vnni else "no VNNI"
        held = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.processor}, {self.cores} cores, {self.isa}, {vnni}; {held}"

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {
            "processor": self.processor,
            "cores": self.cores,
            "isa": self.isa,
            "vnni": self.vnni,
            "versions": dict(self.versions),
        }


def surroundings() -> Surroundings:
    """Those of this process; packages that are not installed are left out."""
    isa = torch.backends.cpu.get_cpu_capability()
    found = {name: _version(name) for name in PACKAGES}
    return Surroundings(
        _processor(),
        _cores(),
        isa,
        bool(torch.cpu._is_vnni_supported()),
        {name: number for name, number in found.items() if number},
    )


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor() -> str:
    """The name Linux gives it, else what Python knows."""
    text = attempt(lambda: Path("/proc/cpuinfo").read_text(), str, (OSError,)).value_or("")
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    if package == "torch":
        return str(torch.__version__)
    return attempt(lambda: version(package), str, (PackageNotFoundError,)).value_or("")
