"""torch.ao and torchao as contestants."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

from fqx.audit.measure import Call
from fqx.bench.runner import Absent, Runner, calling
from fqx.bench.subject import Loaded, resized
from fqx.compat.peers import torch_ao_dynamic, torch_ao_static, torchao_static


def torch_ao(loaded: Loaded, _: int) -> Runner:
    """torch.ao FX with the mapping of x86; `quantize_dynamic` for models that peers run so."""
    if loaded.kind == "dynamic":
        return calling(torch_ao_dynamic(loaded.model), note="quantize_dynamic")
    return calling(torch_ao_static(loaded.model, loaded.calibration), note="FX, mapping of x86")


def torchao_pt2e(loaded: Loaded, _: int) -> Runner:
    """PT2E and Inductor; the program is made anew for every batch size."""
    if importlib.util.find_spec("torchao") is None:
        raise Absent("torchao is not installed")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise Absent("Inductor needs a C++ compiler, and there is none")
    made: dict[tuple[object, ...], Callable[..., Any]] = {}

    def bind(call: Call) -> Callable[[], object]:
        args, kwargs = call
        key = tuple(getattr(item, "shape", None) for item in args)
        if key not in made:
            made[key] = torchao_static(loaded.model, args, resized(loaded.calibration, call))
        run = made[key]
        return lambda: run(*args, **kwargs)

    bind(loaded.example)
    return Runner(bind, note="Inductor, freezing")
