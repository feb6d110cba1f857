"""TorchScript (`model.pt`) and torch.export (`model.pt2`) on torch, on the GPU where there is one."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray
from carla_policy.runtimes.device import DEVICE_VARIABLE, wanted_device
from carla_policy.runtimes.tiling import Runtime, Signature


class TorchRuntime(Runtime):
    """`module` takes one tile; `loop` takes any number of them, one after the other, if there is a faster way to."""

    def __init__(
        self,
        module: Callable[..., Any],
        signature: Signature,
        tile: int,
        device: torch.device,
        loop: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(signature, tile, str(device))
        self.module = module
        self.loop = loop or self._loop
        self._device = device
        self._on_cpu = device.type == "cpu"

    def run(self, inputs: Sequence[FloatArray]) -> list[FloatArray]:
        run = self.loop if len(inputs[0]) > self.tile else self.module
        with torch.inference_mode():
            if self._on_cpu:
                return [output.numpy() for output in _as_tuple(run(*map(torch.from_numpy, inputs)))]
            parts = [torch.from_numpy(part).to(self._device) for part in inputs]
            return [output.numpy(force=True) for output in _as_tuple(run(*parts))]

    def _loop(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        columns = [part.split(self.tile) for part in inputs]  # type: ignore[no-untyped-call]
        outputs = [_as_tuple(self.module(*tiles)) for tiles in zip(*columns, strict=True)]
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


def select_device() -> torch.device:
    """CUDA where there is one, else the CPU, unless the environment names one of them."""
    wanted = wanted_device()
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ArtifactError(f"{DEVICE_VARIABLE}=cuda: torch finds no CUDA device here")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def load_torch(path: Path, signature: Signature, tile: int) -> TorchRuntime:
    """The module in `path`; raises whatever a foreign file makes torch run into."""
    device = select_device()
    if path.suffix == ".pt2":
        return TorchRuntime(_load_exported(path, device), signature, tile, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        loop = _scripted_loop(loaded, signature, tile)
        return TorchRuntime(torch.jit.freeze(loaded).forward, signature, tile, device, loop)


def _scripted_loop(network: Any, signature: Signature, tile: int) -> Callable[..., Any] | None:
    """`network` over all tiles in one call of TorchScript's interpreter, which saves Python's share of each.

    `None` where its outputs are not those of `signature`; running it says so better.
    """
    inputs, outputs = range(len(signature.inputs)), range(len(signature.outputs))
    returned = network.forward.schema.returns[0].type
    is_tuple = isinstance(returned, torch.TupleType)
    if len(returned.elements() if is_tuple else (returned,)) != len(outputs):
        return None
    parts = ", ".join(f"x{n}[start:start + {tile}]" for n in inputs)
    source = [
        f"def forward(self, {', '.join(f'x{n}' for n in inputs)}):",
        *(f"    y{n}: List[Tensor] = []" for n in outputs),
        f"    for start in range(0, x0.size(0), {tile}):",
        f"        found = self.network({parts})",
        *(f"        y{n}.append(found{f'[{n}]' if is_tuple else ''})" for n in outputs),
        f"    return {', '.join(f'torch.cat(y{n})' for n in outputs)}",
    ]
    box = torch.nn.Module()
    box.network = network
    loop = torch.jit.script(box)
    loop.define("\n".join(source) + "\n")
    frozen: Callable[..., Any] = torch.jit.freeze(loop.eval()).forward
    return frozen


def _load_exported(path: Path, device: torch.device) -> Callable[..., Any]:
    from torch.export.passes import move_to_device_pass

    program = load_program(path)
    return move_to_device_pass(program, device).module() if device.type != "cpu" else program.module()


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The program in `path`; `ArtifactError` for compiled code, which torch.export would load and run."""
    with zipfile.ZipFile(path) as packed:
        if compiled := [name for name in packed.namelist() if "/data/aotinductor/" in f"/{name}"]:
            raise ArtifactError(f"{path.name}: {compiled[0]}: compiled code; expected what torch.export.save writes")
    with _tensors_only():
        return torch.export.load(path)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torch.export falls back to unpickling weights that are more than tensors; here that is an error."""
    load = torch.load

    def load_tensors(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **{**options, "weights_only": True})

    torch.load = load_tensors
    try:
        yield
    finally:
        torch.load = load


def _as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
