"""Compile a fitted scikit-learn transformer to element-wise steps on plain arrays.

Each step repeats what `transform` does, in its order and floating-point type; the result counts only if it is
bit-equal to `transform` on the golden observations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.golden import FloatArray
from carla_policy.preprocessing import CompiledPreprocessor, SklearnPreprocessor, Step


class NotCompilable(Exception):
    """The transformer has no element-wise form, or one that is not bit-equal; the message says why."""


def compile_preprocessor(training: SklearnPreprocessor, observations: FloatArray) -> CompiledPreprocessor:
    """The compiled form of `training`, proven on `observations` `[rows, columns]`; `NotCompilable` if there is none."""
    dtype, columns = training.dtype, len(training.columns or observations[0])
    steps = tuple(
        Step(operation, np.ascontiguousarray(np.broadcast_to(np.asarray(operand).astype(dtype), (columns,))))
        for operation, operand in _steps(training.transformer)
    )
    compiled = CompiledPreprocessor(steps, dtype, training.columns)
    expected, got = training(observations), compiled(observations)
    if expected.shape != got.shape:
        raise NotCompilable(f"compiled form gives shape {got.shape}, transform gives {expected.shape}")
    differs = np.argwhere(expected.view(np.int32) != got.view(np.int32))
    if len(differs):
        row, column = differs[0]
        raise NotCompilable(
            f"compiled form differs from transform in {len(differs)} of {expected.size} values, first at golden "
            f"vector {row}, feature {column}: {got[row, column]!s} instead of {expected[row, column]!s}"
        )
    return compiled


StepList = list[tuple[str, NDArray[Any]]]


def _steps(transformer: Any) -> StepList:
    if transformer is None or (isinstance(transformer, str) and transformer == "passthrough"):
        return []
    kind = type(transformer).__name__
    if kind not in _COMPILERS:
        raise NotCompilable(f"{kind} has no element-wise form")
    return _COMPILERS[kind](transformer)


def _standard_scaler(scaler: Any) -> StepList:
    steps: StepList = [("subtract", scaler.mean_)] if scaler.with_mean else []
    return [*steps, ("divide", scaler.scale_)] if scaler.with_std else steps


def _robust_scaler(scaler: Any) -> StepList:
    steps: StepList = [("subtract", scaler.center_)] if scaler.with_centering else []
    return [*steps, ("divide", scaler.scale_)] if scaler.with_scaling else steps


def _min_max_scaler(scaler: Any) -> StepList:
    steps: StepList = [("multiply", scaler.scale_), ("add", scaler.min_)]
    if scaler.clip:
        low, high = scaler.feature_range
        steps += [("maximum", np.asarray(low)), ("minimum", np.asarray(high))]
    return steps


def _max_abs_scaler(scaler: Any) -> StepList:
    steps: StepList = [("divide", scaler.scale_)]
    if getattr(scaler, "clip", False):
        steps += [("maximum", np.asarray(-1.0)), ("minimum", np.asarray(1.0))]
    return steps


def _observation_normalizer(normalizer: Any) -> StepList:
    steps: StepList = [("subtract", normalizer.mean), ("divide", normalizer.scale)]
    if normalizer.clip is not None:
        steps += [("maximum", np.asarray(-normalizer.clip)), ("minimum", np.asarray(normalizer.clip))]
    return steps


def _function_transformer(transformer: Any) -> StepList:
    if transformer.func is not None:
        raise NotCompilable("FunctionTransformer with a function has no element-wise form")
    return []


def _pipeline(pipeline: Any) -> StepList:
    return [step for _, transformer in pipeline.steps for step in _steps(transformer)]


_COMPILERS: dict[str, Callable[[Any], StepList]] = {
    "StandardScaler": _standard_scaler,
    "RobustScaler": _robust_scaler,
    "MinMaxScaler": _min_max_scaler,
    "MaxAbsScaler": _max_abs_scaler,
    "ObservationNormalizer": _observation_normalizer,
    "FunctionTransformer": _function_transformer,
    "Pipeline": _pipeline,
}
