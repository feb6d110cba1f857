"""Runtimes: what runs a network. The kind of its file says which; only that one is imported."""

from __future__ import annotations

from pathlib import Path

from carla_policy.errors import ArtifactError
from carla_policy.runtimes.tiling import Runtime, Signature

KINDS = {".pt": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}


def load_runtime(path: Path, signature: Signature, tile: int) -> Runtime:
    """The network in `path`, tried once on zeros; `ArtifactError` where it is not what the card's head needs."""
    try:
        runtime = _load(path, signature, tile)
        outputs = runtime.run(signature.zeros(tile))
    except ArtifactError:
        raise
    except Exception as error:  # each library has errors of its own, and a foreign file may raise any of them
        raise ArtifactError(f"{path.name}: {_reason(KINDS[path.suffix], error, signature)}") from None
    got = [f"{output.dtype} {output.shape}" for output in outputs]
    expected = [f"float32 {(tile, width)}" for width in signature.outputs.values()]
    if got != expected:
        named = ", ".join(f"{name} {what}" for name, what in zip(signature.outputs, expected, strict=True))
        raise ArtifactError(f"{path.name}: expected the outputs ({named}), got {got}")
    return runtime


def _load(path: Path, signature: Signature, tile: int) -> Runtime:
    if path.suffix == ".onnx":
        from carla_policy.runtimes.onnx import load_onnx

        return load_onnx(path, signature, tile)
    from carla_policy.runtimes.torch import load_torch

    return load_torch(path, signature, tile)


def _reason(kind: str, error: Exception, signature: Signature) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    inputs = ", ".join(f"{width} {name}" for name, width in signature.inputs.items())
    advice = ""
    if kind == "TorchScript" and ("constants.pkl" in str(error) or "zip archive" in str(error)):
        advice = "; a state_dict or a pickled module is none: `carla-policy export torch` makes an artifact of it"
    return f"does not load and run as {kind} on {inputs}: {text}{advice}"


__all__ = ["Runtime", "Signature", "load_runtime"]
