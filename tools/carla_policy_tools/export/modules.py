"""Any network: an `nn.Module` of the user's own, or a TorchScript, ONNX or torch.export file that exists already.

Such a network knows nothing of its surroundings. What its outputs mean, which observations it sees and what its
action does to the vehicle, a model card must say: `carla-policy init` writes one to fill in.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import FunctionTransformer

from carla_policy.golden import FloatArray
from carla_policy.runtimes.torch import load_program
from carla_policy.specs import ActionSpec, ContinuousActionSpec, HeadSpec, ObservationSpec
from carla_policy_tools.export import reference
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.imports import import_target
from carla_policy_tools.export.overlay import check_section
from carla_policy_tools.export.source import ActionSpace, Prediction, Source

Forward = Callable[..., tuple[FloatArray, ...]]
"""From features `[1, n]` (and state `[1, size]`) to the head's parameters `[1, width]` (and the next state)."""


@dataclass(frozen=True)
class ModuleSource(Source):
    """Asks `forward` as the user's own code or the file's own library runs it."""

    forward: Forward | None = None

    def features(self, observations: FloatArray) -> FloatArray:
        rows = [self.transformer.transform(row[None].astype(self.input_dtype)) for row in observations]
        return np.concatenate(rows).astype(np.float32)

    def parameters(self, features: FloatArray, state: FloatArray | None) -> dict[str, FloatArray]:
        return self._run(features, state)[0]

    def predict(self, observation: FloatArray, state: FloatArray | None) -> Prediction:
        parameters, after = self._run(self.features(observation[None])[0], state)
        return Prediction(self.bound(reference.mode(self.head, parameters)), after)

    def explore(self, observation: FloatArray, state: FloatArray | None) -> FloatArray:
        parameters, _ = self._run(self.features(observation[None])[0], state)
        return self.bound(reference.sample(self.head, parameters, int(np.random.randint(2**31))))

    def bound(self, native: FloatArray) -> FloatArray:
        low, high = self.action.low, self.action.high
        if self.action.choices:
            return native
        if self.action.bounding == "unscale":
            start, end = (0.0, 1.0) if self.head["type"] == "beta" else (-1.0, 1.0)
            native = (low + (native.astype(np.float64) - start) / (end - start) * (high - low)).astype(np.float32)
        return np.clip(native, low, high)

    def _run(self, features: FloatArray, state: FloatArray | None) -> tuple[dict[str, FloatArray], FloatArray | None]:
        assert self.forward is not None
        inputs = (features[None],) if state is None else (features[None], state[None])
        try:
            outputs = self.forward(*inputs)
        except Exception as error:  # the user's own code
            shapes = ", ".join(str(part.shape) for part in inputs)
            raise ExportError(f"the network fails on {shapes}: {type(error).__name__}: {error}") from error
        names = self.parameter_names
        if len(outputs) != len(names) + bool(self.state_size):
            wanted = ", ".join((*names, *(["next_state"] if self.state_size else [])))
            raise ExportError(f"the network yields {len(outputs)} outputs; a {self.head['type']} head needs ({wanted})")
        after = outputs[-1][0] if self.state_size else None
        return {name: output[0] for name, output in zip(names, outputs, strict=False)}, after


def load_module(
    target: str, *, weights: Path | None, arguments: str, card: Mapping[str, Any], preprocessor: Any
) -> ModuleSource:
    """The `nn.Module` that `target`, `package.module:factory` or `file.py:factory`, makes, with `weights` in it."""
    factory = import_target(target)
    try:
        module = factory(**json.loads(arguments))
    except Exception as error:  # the user's own code
        raise ExportError(f"{target}: cannot be made with {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{target}: expected a torch.nn.Module, got {type(module).__name__}")
    if weights is not None:
        load_weights(module, read_weights(weights), str(weights))
    module = module.eval()
    return _source(module, _torch_forward(module), f"PyTorch module {target}", card, preprocessor)


def load_file(path: Path, *, card: Mapping[str, Any], preprocessor: Any) -> ModuleSource:
    """A network in a file: `.onnx`, `.pt2`, or TorchScript by any other name."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        if path.suffix == ".onnx":
            forward = _onnx_forward(path)
        elif path.suffix == ".pt2":
            forward = _torch_forward(load_program(path).module())
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                forward = _torch_forward(torch.jit.load(str(path), map_location="cpu").eval())  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'carla-policy-serving[onnx]'") from None
    except Exception as error:  # whatever a foreign file makes its library run into
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"{path}: does not load: {reason}; weights alone (a state_dict) go in by `carla-policy export torch`"
        ) from None
    return _source(path, forward, f"network of {path.name}", card, preprocessor)


def read_weights(path: Path) -> Any:
    """What `torch.save` wrote, tensors only: nothing in the file is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever a foreign file makes torch run into
        raise ExportError(
            f"{path}: not a state_dict as torch.save(module.state_dict(), ...) writes it: {type(error).__name__}"
        ) from None


def load_weights(module: torch.nn.Module, weights: Any, name: str) -> None:
    """Put a `state_dict` into `module`; every missing or surplus key is named."""
    try:
        module.load_state_dict(weights)
    except Exception as error:  # torch raises several kinds, with a line for each key
        raise ExportError(f"{name}: does not fit the network: {' '.join(str(error).split())}") from None


def _torch_forward(module: Callable[..., Any]) -> Forward:
    def forward(*inputs: FloatArray) -> tuple[FloatArray, ...]:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(part) for part in inputs))
        tensors = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        return tuple(tensor.numpy(force=True) for tensor in tensors)

    return forward


def _onnx_forward(path: Path) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def forward(*inputs: FloatArray) -> tuple[FloatArray, ...]:
        return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

    return forward


def _source(
    network: torch.nn.Module | Path, forward: Forward, description: str, card: Mapping[str, Any], preprocessor: Any
) -> ModuleSource:
    head = _section(card, "head", HeadSpec)
    action = _section(card, "action", ActionSpec)
    fields = _section(card, "observation", ObservationSpec).fields
    none = np.zeros(0, np.float32)
    if isinstance(action, ContinuousActionSpec):
        low, high = (np.array(end, np.float32) for end in (action.low, action.high))
        space = ActionSpace(low, high, bounding=action.bounding)
    else:
        space = ActionSpace(none, none, choices=len(action.table))
    return ModuleSource(
        description=description,
        versions={package: version for package in ("torch", "onnxruntime", "numpy") if (version := _version(package))},
        head=head.model_dump(),
        action=space,
        low=np.array([field.low for field in fields], np.float32),
        high=np.array([field.high for field in fields], np.float32),
        transformer=FunctionTransformer() if preprocessor is None else preprocessor,
        input_dtype=dict(card.get("preprocessor", {})).get("input_dtype", "float64"),
        network=network,
        state_size=int(dict(card.get("recurrent", {})).get("state_size", 0)),
        forward=forward,
    )


def _section(card: Mapping[str, Any], key: str, spec: Any) -> Any:
    if key not in card:
        raise ExportError(
            f"a network alone does not say its {key}: pass a --card with it; `carla-policy init` writes one to fill in"
        )
    return check_section(f"--card: {key}", spec, card[key])


def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
