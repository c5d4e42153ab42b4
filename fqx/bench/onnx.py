"""onnxruntime as a contestant: the exported model in float32, and its own quantization of it."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fqx.audit.measure import Call
from fqx.bench.runner import Absent, Runner
from fqx.bench.subject import Loaded, resized
from fqx.edge.modules import Module

Feeds = dict[str, Any]
"""numpy arrays by the names of a session's inputs."""

NEEDED = ("onnxruntime", "onnx", "onnxscript")


def onnx_float(loaded: Loaded, threads: int) -> Runner:
    """The model as torch.onnx exports it, all graph optimizations on."""
    return _runner(loaded, threads, lambda path, _: path, "CPU provider")


def onnx_int8(loaded: Loaded, threads: int) -> Runner:
    """`quantize_static` (QDQ, per channel, after its preprocessing), or `quantize_dynamic`.

    Static with uint8 activations and int8 weights, ranges by min-max over the calibration inputs.
    """
    if loaded.kind == "dynamic":
        return _runner(loaded, threads, lambda path, _: _dynamic(path), "quantize_dynamic")
    return _runner(loaded, threads, _static, "static QDQ, per channel")


Change = Callable[[Path, Sequence[Call]], Path]
"""From an exported file, and calls of its shapes to calibrate on, to the file that is run."""


def _runner(loaded: Loaded, threads: int, change: Change, note: str) -> Runner:
    """Exports the model once for every shape of its inputs: static shapes run best."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise Absent(f"{package} is not installed")
    made: dict[tuple[object, ...], Any] = {}

    def bind(call: Call) -> Callable[[], object]:
        tensors = _tensors(call)
        key = tuple(tensor.shape for tensor in tensors)
        if key not in made:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "float.onnx"
                _export(loaded.model, call, path)
                made[key] = _session(change(path, resized(loaded.calibration, call)), threads)
        session = made[key]
        feeds = _feeds(session, call)
        return lambda: [torch.from_numpy(item) for item in session.run(None, feeds)]

    bind(loaded.example)
    return Runner(bind, note=note)


def _tensors(call: Call) -> list[torch.Tensor]:
    return [item for item in tree_leaves(call) if isinstance(item, torch.Tensor)]


def _feeds(session: Any, call: Call) -> Feeds:
    names = [item.name for item in session.get_inputs()]
    return {name: tensor.numpy() for name, tensor in zip(names, _tensors(call), strict=True)}


def _export(model: Module, call: Call, path: Path) -> None:
    args, kwargs = call
    with torch.no_grad():
        torch.onnx.export(
            model, args, str(path), kwargs=dict(kwargs), dynamo=True, verbose=False,
            external_data=False,
        )  # fmt: skip


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # a pool that spins after its turn would take the processor from the next contestant
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _static(path: Path, calls: Sequence[Call]) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, done = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    # every shape is known, and the symbolic inference fails on some text models
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(done),
        _Reader(_session(path, 1), calls),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return done


def _dynamic(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, done = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    # every shape is known, and the symbolic inference fails on some text models
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_dynamic(str(ready), str(done), per_channel=True, weight_type=QuantType.QInt8)
    return done


class _Reader:
    """What onnxruntime calls a calibration data reader."""

    def __init__(self, session: Any, calls: Sequence[Call]) -> None:
        self.feeds: Iterator[Feeds] = iter([_feeds(session, call) for call in calls])

    def get_next(self) -> Feeds | None:
        """The next inputs, None after the last."""
        return next(self.feeds, None)
