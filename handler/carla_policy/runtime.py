"""Run the network: features in, the head's parameters out, in tiles of a fixed number of rows.

A matrix product may round differently for another number of rows. So every forward pass has exactly `tile` rows,
the last one padded, and a row's bits depend on nothing but the row. With a tile of one row they are also the bits
of a training framework that predicts one observation at a time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray


@dataclass(frozen=True)
class TorchScriptRuntime:
    module: Any
    device: torch.device
    tile: int
    output_names: tuple[str, ...]

    def __call__(self, features: FloatArray) -> dict[str, FloatArray]:
        """Head parameters by name, each `[rows, dims]` float32, of `features` `[rows, features]`."""
        rows = len(features)
        padding = -rows % self.tile
        if padding:
            features = np.concatenate([features, np.repeat(features[-1:], padding, axis=0)])
        with torch.inference_mode():
            tiles = torch.from_numpy(features).to(self.device).split(self.tile)  # type: ignore[no-untyped-call]
            outputs = zip(*(self.module(tile) for tile in tiles), strict=True)
            return {
                name: torch.cat(parts)[:rows].numpy(force=True)
                for name, parts in zip(self.output_names, outputs, strict=True)
            }


def select_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_torchscript(
    path: Path, *, tile: int, output_names: tuple[str, ...], features: int, dims: int
) -> TorchScriptRuntime:
    """Load and freeze the module in `path` and try it once; `ArtifactError` where it is not what the head needs."""
    device = select_device()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            loaded = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
            module = torch.jit.freeze(loaded.eval())
            outputs = module(torch.zeros(tile, features, device=device))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ArtifactError(
            f"{path.name}: does not load and run as TorchScript on {features} features: {reason}"
        ) from None
    got = [_describe(output) for output in outputs] if isinstance(outputs, tuple) else type(outputs).__name__
    if got != [f"float32 {(tile, dims)}"] * len(output_names):
        expected = f"a tuple ({', '.join(output_names)}), each float32 {(tile, dims)}"
        raise ArtifactError(f"{path.name}: expected {expected}, got {got}")
    return TorchScriptRuntime(module, device, tile, output_names)


def _describe(output: Any) -> str:
    if not isinstance(output, torch.Tensor):
        return type(output).__name__
    return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
