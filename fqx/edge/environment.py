"""Where an artefact was made, and whether this machine can run it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from fqx.ir.arg import Json


def environment() -> Mapping[str, Json]:
    """Versions, instruction set and threads: what a measurement depends on, for the record."""
    return {
        "fqx": installed("fqx"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def installed(package: str) -> str:
    """The installed version of a package, `unknown` if it is used from its source alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
