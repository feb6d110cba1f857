"""Replay the golden vectors: a version that does not reproduce its training outputs does not load.

Every stage is compared with what the training side recorded: features, head parameters, deterministic actions and
seeded samples, a recurrent policy's next state, and the controls behind the safety envelope. A difference beyond the
card's `parity.atol` (times the number itself where that is beyond 1) fails, naming the vector, the field, what was
expected and what came. So does a row whose bits depend on its place in a batch, by however little. Below `parity.atol`
the share of bit-equal values and the largest difference are reported, so that another processor's rounding shows and
does not block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from carla_policy.actions import CONTROLS
from carla_policy.card import GOLDEN_FILE
from carla_policy.errors import ArtifactError
from carla_policy.golden import FloatArray, GoldenVectors
from carla_policy.policy import Evaluation, Policy

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
    evaluation = policy.evaluate(golden.observations, features, golden.states)
    _check_batching(policy, golden, features, evaluation)
    stages = _stages(policy, golden, features, evaluation)
    return tuple(_compare(stage, expected, got, atol=atol, columns=names) for stage, expected, got, names in stages)


def _stages(
    policy: Policy, golden: GoldenVectors, features: FloatArray, evaluation: Evaluation
) -> Iterator[tuple[str, FloatArray, FloatArray, tuple[str, ...]]]:
    names = policy.layout.names
    yield "features", golden.features, features, ()
    for name, expected in golden.parameters.items():
        yield name, expected, evaluation.parameters[name], names if policy.layout.parameter_width == len(names) else ()
    if golden.next_states is not None and evaluation.next_state is not None:
        yield "next_states", golden.next_states, evaluation.next_state, ()
    mode = policy.select(evaluation.parameters, deterministic=True, seed=0)
    yield "deterministic_actions", golden.deterministic_actions, mode, names
    samples = [
        policy.select(evaluation.rows(slice(row, row + 1)).parameters, deterministic=False, seed=int(seed))
        for row, seed in enumerate(golden.seeds)
    ]
    yield "sampled_actions", golden.sampled_actions, np.concatenate(samples), names
    expected_controls = policy.decide(golden.deterministic_actions, evaluation).controls
    yield "controls", expected_controls, policy.decide(mode, evaluation).controls, CONTROLS


def _check_batching(policy: Policy, golden: GoldenVectors, features: FloatArray, reference: Evaluation) -> None:
    rows, tile = len(features), policy.card.inference.tile
    advice = "the network must keep no state and draw no random numbers"
    if tile > 1:
        advice = f"on this processor inference.tile = {tile} does not make rows independent, 1 does"
    expected = _outputs(reference)
    orders = [np.roll(np.arange(rows), shift) for shift in sorted({1, tile // 2 + 1})]
    for order in (*orders, *(np.array([row]) for row in range(ROWS_TRIED_ALONE))):
        states = None if golden.states is None else golden.states[order]
        for name, values in _outputs(policy.evaluate(golden.observations[order], features[order], states)).items():
            differs = np.argwhere(_bits(values) != _bits(expected[name][order]))
            if len(differs):
                row = int(order[differs[0][0]])
                raise ArtifactError(
                    f"{policy.card.model_file}: vector {row}, {name}: the same observation gets other bits in another "
                    f"place of a batch; {advice}"
                )


def _outputs(evaluation: Evaluation) -> dict[str, FloatArray]:
    """All that the network yields, and the distance from training as float32."""
    outputs = dict(evaluation.parameters)
    if evaluation.next_state is not None:
        outputs["next_state"] = evaluation.next_state
    if evaluation.novelty is not None:
        outputs["ood.distance"] = evaluation.novelty.distance.astype(np.float32)
    return outputs


def _compare(
    stage: str, expected: FloatArray, got: FloatArray, *, atol: float, columns: tuple[str, ...]
) -> StageParity:
    if got.shape != expected.shape:
        raise ArtifactError(f"{GOLDEN_FILE}: {stage}: expected shape {expected.shape}, got {got.shape}")
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    beyond = np.argwhere(~(difference <= atol * np.maximum(1.0, np.abs(expected.astype(np.float64)))))
    if len(beyond):
        row, column = (int(position) for position in beyond[0])
        field = f"{stage}.{columns[column]}" if columns else f"{stage}[{column}]"
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
