"""ONNX (`model.onnx`) on onnxruntime, on the GPU where its build and the machine have one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray
from carla_policy.runtimes.tiling import Runtime, Signature


class OnnxRuntime(Runtime):
    def __init__(self, session: Any, signature: Signature, tile: int) -> None:
        super().__init__(signature, tile, "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu")
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
    """The graph in `path`, one thread; raises whatever a foreign file makes onnxruntime run into."""
    try:
        import onnxruntime
    except ImportError:
        raise ArtifactError(
            f"{path.name}: needs onnxruntime, which is not installed: pip install 'carla-policy-serving[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    return OnnxRuntime(onnxruntime.InferenceSession(str(path), options, providers), signature, tile)
