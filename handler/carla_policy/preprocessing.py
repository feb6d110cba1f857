"""From observations to features, exactly as in training.

What a worker runs is the *compiled* preprocessor: the scikit-learn transformer's own sequence of element-wise
operations on plain arrays, in the same order and floating-point type, so that the result has the same bits without
importing scikit-learn. A transformer that has no such form runs as it is, one row at a time: slower by two orders
of magnitude, but a matrix product inside of it then never depends on the batch.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from carla_policy.arrays import first_not_finite, load_arrays
from carla_policy.card import PREPROCESSOR_FILE, ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray
from carla_policy.safe_pickle import load_preprocessor_pickle

COMPILED_FILE = "preprocessor.npz"
OPERATIONS: dict[str, Callable[..., Any]] = {
    "subtract": np.subtract,
    "divide": np.divide,
    "multiply": np.multiply,
    "add": np.add,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


class Preprocessor(Protocol):
    @property
    def form(self) -> str:
        """`compiled` or `scikit-learn`."""

    def __call__(self, observations: FloatArray) -> FloatArray:
        """Features `[rows, features]` of observations `[rows, columns]`, each row by itself."""


@dataclass(frozen=True)
class Step:
    """One element-wise operation with an operand per column."""

    operation: str
    operand: NDArray[Any]


@dataclass(frozen=True)
class CompiledPreprocessor:
    steps: tuple[Step, ...]
    dtype: np.dtype[Any]
    columns: tuple[int, ...] | None = None
    is_bounded: bool = False
    """Whether the features of observations within the card's bounds are known to be finite."""
    form = "compiled"

    @cached_property
    def _operations(self) -> list[tuple[Callable[..., Any], NDArray[Any]]]:
        return [(OPERATIONS[step.operation], step.operand) for step in self.steps]

    def __call__(self, observations: FloatArray) -> FloatArray:
        values = _selected(observations, self.columns).astype(self.dtype)
        for operation, operand in self._operations:
            operation(values, operand, out=values)
        if self.is_bounded:
            return values.astype(np.float32, copy=False)
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)

    def save(self, path: Path) -> None:
        """Write the steps as `.npz`, named by position and operation.

        The same bytes for the same steps, whatever Python: `np.savez` leaves headers to it, which 3.11 changed.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
            for index, step in enumerate(self.steps):
                array = io.BytesIO()
                np.save(array, step.operand)
                packed.writestr(zipfile.ZipInfo(f"{index:03d}_{step.operation}.npy"), array.getvalue())


def load_compiled(path: Path, card: ModelCard) -> CompiledPreprocessor:
    """Read what `CompiledPreprocessor.save` wrote; `ArtifactError` names the step that does not fit the card."""
    dtype, selection = np.dtype(card.preprocessor.input_dtype), card.preprocessor.columns
    columns = len(selection) if selection else card.observation.columns
    arrays = load_arrays(path)
    steps = []
    for index, (key, operand) in enumerate(sorted(arrays.items())):
        number, _, operation = key.partition("_")
        if number != f"{index:03d}" or operation not in OPERATIONS:
            raise ArtifactError(f"{path.name}: {key}: not a step of a compiled preprocessor")
        if operand.dtype != dtype or operand.shape != (columns,):
            expected = f"{columns} finite numbers of type {dtype}"
            raise ArtifactError(f"{path.name}: {key}: expected {expected}, got {operand.dtype} {operand.shape}")
        if found := first_not_finite(operand):
            raise ArtifactError(f"{path.name}: {key}: expected finite numbers, but {found}")
        steps.append(Step(operation, operand))
    compiled = CompiledPreprocessor(tuple(steps), dtype, selection)
    with np.errstate(all="ignore"):
        # Each step keeps or turns the order of numbers, so what lies between the bounds ends between their features.
        ends = compiled(np.stack(card.observation.bounds))
    return replace(compiled, is_bounded=bool(np.isfinite(ends).all()))


@dataclass(frozen=True)
class SklearnPreprocessor:
    """The fitted transformer itself, for pipelines that have no compiled form."""

    transformer: Any
    dtype: np.dtype[Any]
    columns: tuple[int, ...] | None = None
    form = "scikit-learn"

    def __call__(self, observations: FloatArray) -> FloatArray:
        rows: Sequence[NDArray[Any]] = [
            self.transformer.transform(row[None].astype(self.dtype)) for row in _selected(observations, self.columns)
        ]
        with np.errstate(over="ignore"):
            return np.concatenate(rows).astype(np.float32)


def load_preprocessor(model_dir: Path, card: ModelCard) -> Preprocessor:
    """The compiled preprocessor where the archive carries one, else the transformer itself."""
    compiled = model_dir / COMPILED_FILE
    if compiled.exists():
        return load_compiled(compiled, card)
    transformer = load_preprocessor_pickle(model_dir / PREPROCESSOR_FILE)
    return SklearnPreprocessor(transformer, np.dtype(card.preprocessor.input_dtype), card.preprocessor.columns)


def _selected(observations: FloatArray, columns: tuple[int, ...] | None) -> FloatArray:
    return observations if columns is None else np.ascontiguousarray(observations[:, list(columns)])
