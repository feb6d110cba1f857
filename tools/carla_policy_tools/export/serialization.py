"""Write a network as TorchScript, ONNX or torch.export, with any number of rows."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from carla_policy.runtimes.tiling import Signature
from carla_policy_tools.export.choices import FILE_OF_RUNTIME
from carla_policy_tools.export.errors import ExportError


def file_of(network: torch.nn.Module | Path, runtime: str | None) -> str:
    """Name of the network's file in an artifact; a network that is a file already keeps its format."""
    if not isinstance(network, Path):
        return FILE_OF_RUNTIME[runtime or "torchscript"]
    own = {".onnx": "onnx", ".pt2": "pt2"}.get(network.suffix, "torchscript")
    if runtime not in (None, own):
        raise ExportError(f"--runtime {runtime}: {network} is {own} already, and is served as it is")
    return FILE_OF_RUNTIME[own]


def write_network(network: torch.nn.Module | Path, path: Path, signature: Signature) -> None:
    """Write `network` to `path`, whose suffix says as what; a file is copied as it is."""
    if isinstance(network, Path):
        shutil.copyfile(network, path)
        return
    write = {".pt": _write_torchscript, ".onnx": _write_onnx, ".pt2": _write_exported}[path.suffix]
    examples = tuple(torch.rand(2, width) for width in signature.inputs.values())
    try:
        with warnings.catch_warnings(), _quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            write(network.eval(), examples, signature, path)
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'carla-policy-serving[onnx]'") from None
    except Exception as error:  # tracing and exporting run the network's own code
        raise ExportError(f"the network cannot be written as {path.name}: {type(error).__name__}: {error}") from error


def _write_torchscript(network: torch.nn.Module, examples: tuple[torch.Tensor, ...], _: Signature, path: Path) -> None:
    if isinstance(network, torch.jit.ScriptModule):
        path.write_bytes(_script_bytes(network))
        return
    traced = torch.jit.trace(network, examples, check_trace=False)  # type: ignore[no-untyped-call]
    path.write_bytes(_script_bytes(torch.jit.freeze(traced)))


def _script_bytes(module: Any) -> bytes:
    """Written by Python: torch's own writer ends the process when a disk is full."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def _write_onnx(network: torch.nn.Module, examples: tuple[torch.Tensor, ...], signature: Signature, path: Path) -> None:
    import onnx  # noqa: F401 - the exporter needs both, and says so less clearly
    import onnxscript  # noqa: F401

    torch.onnx.export(
        network,
        examples,
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
        dynamic_shapes=_any_rows(examples),
    )


def _write_exported(network: torch.nn.Module, examples: tuple[torch.Tensor, ...], _: Signature, path: Path) -> None:
    program = torch.export.export(network, examples, dynamic_shapes=_any_rows(examples))
    torch.export.save(program, path)


def _any_rows(examples: tuple[torch.Tensor, ...]) -> tuple[dict[int, object], ...]:
    return tuple({0: torch.export.Dim.AUTO} for _ in examples)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporters print progress and warnings about packages that nobody asked for."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
