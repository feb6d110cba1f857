"""Runtimes: what runs a network. The kind of its file says which; only that one is imported."""

from __future__ import annotations

from pathlib import Path

from carla_policy.errors import ArtifactError
from carla_policy.runtimes.tiling import Runtime, Signature


def load_runtime(path: Path, signature: Signature, tile: int) -> Runtime:
    """The network in `path`, tried once on zeros; `ArtifactError` where it is not what the card's head needs."""
    if path.suffix == ".onnx":
        from carla_policy.runtimes.onnx import load_onnx

        runtime: Runtime = load_onnx(path, signature, tile)
    else:
        from carla_policy.runtimes.torch import load_torch

        runtime = load_torch(path, signature, tile)
    got = [f"{output.dtype} {output.shape}" for output in runtime.run(signature.zeros(tile))]
    expected = [f"float32 {(tile, width)}" for width in signature.outputs.values()]
    if got != expected:
        named = ", ".join(f"{name} {what}" for name, what in zip(signature.outputs, expected, strict=True))
        raise ArtifactError(f"{path.name}: expected the outputs ({named}), got {got}")
    return runtime


__all__ = ["Runtime", "Signature", "load_runtime"]
