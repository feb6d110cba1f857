"""ONNX (`model.onnx`) on onnxruntime, on the GPU where its build and the machine have one.

A graph may name other files, or memory, as the place of its weights, and operators that only some builds have, one of
which opens files too. So the graph is looked through first, and what runs is the bytes that were looked through.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carla_policy.errors import ArtifactError
from carla_policy.files import read_file
from carla_policy.golden import FloatArray
from carla_policy.runtimes.device import DEVICE_VARIABLE, wanted_device
from carla_policy.runtimes.tiling import Runtime, Signature

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""Of operators that the ONNX standard describes."""
MAX_BYTES = 1 << 30
_CUDA = "CUDAExecutionProvider"


class OnnxRuntime(Runtime):
    def __init__(self, session: Any, signature: Signature, tile: int) -> None:
        super().__init__(signature, tile, "cuda" if _CUDA in session.get_providers() else "cpu")
        self._session = session
        self._input_names = [node.name for node in session.get_inputs()]

    def run(self, inputs: Sequence[FloatArray]) -> list[FloatArray]:
        starts = range(0, len(inputs[0]), self.tile)
        tiles = [
            self._session.run(
                None,
                {name: part[start : start + self.tile] for name, part in zip(self._input_names, inputs, strict=True)},
            )
            for start in starts
        ]
        return [np.concatenate(parts) for parts in zip(*tiles, strict=True)]


def load_onnx(path: Path, signature: Signature, tile: int) -> OnnxRuntime:
    """The graph in `path`, one thread; `ArtifactError`, or whatever a foreign file makes onnxruntime run into."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ArtifactError(
            f"{path.name}: needs {error.name}, which is not installed: pip install 'carla-policy-serving[onnx]'"
        ) from None
    data = read_file(path, MAX_BYTES)
    _check_graph(path.name, onnx.load_model_from_string(data))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")
    chosen = providers(wanted_device(), onnxruntime.get_available_providers())
    session = onnxruntime.InferenceSession(data, options, chosen)
    if wanted_device() == "cuda" and _CUDA not in session.get_providers():
        raise ArtifactError(f"{DEVICE_VARIABLE}=cuda: onnxruntime finds no CUDA device here")
    return OnnxRuntime(session, signature, tile)


def providers(device: str, available: Sequence[str]) -> list[str]:
    """What onnxruntime is to use for `device`; `ArtifactError` where a GPU is asked for and its build knows none."""
    if device == "cuda" and _CUDA not in available:
        raise ArtifactError(
            f"{DEVICE_VARIABLE}=cuda: this onnxruntime knows no CUDA, only {', '.join(available)}; install "
            "onnxruntime-gpu, or ask for auto or cpu"
        )
    return [*([_CUDA] if device != "cpu" and _CUDA in available else []), "CPUExecutionProvider"]


def _check_graph(name: str, model: Any) -> None:
    """`ArtifactError` for a tensor whose data stand elsewhere, and for an operator that is not one of ONNX itself."""
    functions = {(function.domain, function.name) for function in model.functions}
    pending = [model]
    while pending:
        message = pending.pop()
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.external_data or message.data_location):
            location = {entry.key: entry.value for entry in message.external_data}.get("location", "")
            raise ArtifactError(
                f"{name}: {message.name!r:.80}: its data stand in another file, {location!r:.80}, which no artifact "
                "has; save the network with its weights inside"
            )
        if kind == "NodeProto" and message.domain not in DOMAINS and (message.domain, message.op_type) not in functions:
            raise ArtifactError(
                f"{name}: {message.op_type!r:.80} of {message.domain!r:.80}: not an operator of ONNX itself, which "
                "every onnxruntime has; export the network without it"
            )
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending += [value] if hasattr(value, "ListFields") else value
