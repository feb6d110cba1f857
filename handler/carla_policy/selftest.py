"""Replay the golden vectors: a version that does not reproduce its training outputs does not load.

Every stage is compared with what the training side recorded: features, head parameters, deterministic actions and
seeded samples. A difference beyond the card's `parity.atol` fails, naming the vector, the field, what was expected
and what came. So does a row whose bits depend on its place in a batch, by however little. Below `parity.atol` the
share of bit-equal values and the largest difference are reported, so that another processor's rounding shows and
does not block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from carla_policy.card import GOLDEN_FILE, MODEL_FILE
from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray, GoldenVectors
from carla_policy.policy import Policy

ROWS_TRIED_ALONE = 32


@dataclass(frozen=True)
class StageParity:
    """How one stage compares with the training side; `max_ulp` counts representable float32 steps."""

    stage: str
    bit_equal_share: float
    max_abs_difference: float
    max_ulp: int


def replay(policy: Policy, golden: GoldenVectors) -> tuple[StageParity, ...]:
    """Compare all stages; `ArtifactError` at the first value that differs by more than `parity.atol`.

    Raises `ArtifactError` too where the same observation has other bits in another place of a batch, or alone.
    """
    atol = policy.card.parity.atol
    features = policy.preprocessor(golden.observations)
    parameters = policy.evaluate(features)
    _check_batching(policy, features, parameters)
    stages = _stages(policy, golden, features, parameters)
    return tuple(_compare(stage, expected, got, atol=atol, dims=dims) for stage, expected, got, dims in stages)


def _stages(
    policy: Policy, golden: GoldenVectors, features: FloatArray, parameters: Mapping[str, FloatArray]
) -> Iterator[tuple[str, FloatArray, FloatArray, tuple[str, ...]]]:
    yield "features", golden.features, features, ()
    for name, expected in golden.parameters.items():
        yield name, expected, parameters[name], policy.layout.names
    mode = policy.select(parameters, deterministic=True, seed=0)
    yield "deterministic_actions", golden.deterministic_actions, mode, policy.layout.names
    samples = [
        policy.select(
            {name: values[row : row + 1] for name, values in parameters.items()}, deterministic=False, seed=int(seed)
        )
        for row, seed in enumerate(golden.seeds)
    ]
    yield "sampled_actions", golden.sampled_actions, np.concatenate(samples), policy.layout.names


def _check_batching(policy: Policy, features: FloatArray, reference: Mapping[str, FloatArray]) -> None:
    rows, tile = len(features), policy.card.inference.tile
    advice = "the network must keep no state and draw no random numbers"
    if tile > 1:
        advice = f"on this processor inference.tile = {tile} does not make rows independent, 1 does"
    orders = [np.roll(np.arange(rows), shift) for shift in sorted({1, tile // 2 + 1})]
    for order in (*orders, *(np.array([row]) for row in range(ROWS_TRIED_ALONE))):
        for name, values in policy.evaluate(features[order]).items():
            differs = np.argwhere(_bits(values) != _bits(reference[name][order]))
            if len(differs):
                row = int(order[differs[0][0]])
                raise ArtifactError(
                    f"{MODEL_FILE}: vector {row}, {name}: the same observation gets other bits in another place of a "
                    f"batch; {advice}"
                )


def _compare(stage: str, expected: FloatArray, got: FloatArray, *, atol: float, dims: tuple[str, ...]) -> StageParity:
    if got.shape != expected.shape:
        raise ArtifactError(f"{GOLDEN_FILE}: {stage}: expected shape {expected.shape}, got {got.shape}")
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    beyond = np.argwhere(~(difference <= atol))
    if len(beyond):
        row, column = (int(position) for position in beyond[0])
        field = f"{stage}.{dims[column]}" if dims else f"{stage}[{column}]"
        raise ArtifactError(
            f"{GOLDEN_FILE}: vector {row}, {field}: expected {expected[row, column]!s}, got {got[row, column]!s}, "
            f"which differs by more than parity.atol = {atol:g} ({len(beyond)} of {difference.size} values do); "
            "this version does not reproduce its training outputs and is not served"
        )
    equal = float(np.mean(_bits(got) == _bits(expected)))
    return StageParity(stage, equal, float(difference.max()), int(np.abs(_ordered(got) - _ordered(expected)).max()))


def _bits(values: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.ascontiguousarray(values).view(np.int32)


def _ordered(values: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Integers in the order of the floats, neighbours one apart; both zeros are 0."""
    bits = _bits(values).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
