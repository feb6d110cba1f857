"""From observations to an action: self-test, tiles, preprocessors and seeds, below the service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler

from carla_policy.errors import ArtifactError
from carla_policy.heads import draw_seed
from carla_policy.loading import LoadedPolicy
from carla_policy.preprocessing import SklearnPreprocessor
from carla_policy.runtimes.torch import TorchRuntime
from carla_policy.selftest import replay
from carla_policy_tools.compilation import compile_preprocessor
from tests.synthetic import observations

ROWS = observations(64, 5, seed=5)


def with_runtime(synthetic: LoadedPolicy, runtime: Any) -> Any:
    return replace(synthetic.policy, runtime=runtime)


def test_network_that_yields_nan_for_a_golden_observation_is_refused(synthetic: LoadedPolicy) -> None:
    def runtime(features: Any) -> Any:
        return {name: values * np.float32(np.nan) for name, values in synthetic.policy.runtime(features).items()}

    with pytest.raises(ArtifactError, match=r"golden\.npz: vector 0, mean\.acceleration: expected .*, got nan"):
        replay(with_runtime(synthetic, runtime), synthetic.golden)


def test_drawn_seed_is_exact_in_javascript() -> None:
    assert max(draw_seed() for _ in range(64)) < 2**53


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31])
def test_every_forward_pass_has_exactly_one_tile(synthetic: LoadedPolicy, rows: int) -> None:
    passes = []

    def module(tile: torch.Tensor) -> Any:
        passes.append(len(tile))
        return synthetic.policy.runtime.module(tile)

    runtime = TorchRuntime(module, synthetic.policy.runtime.signature, 16, torch.device("cpu"))
    parameters = runtime(synthetic.golden.features[:rows])
    assert set(passes) == {16}
    assert {values.shape for values in parameters.values()} == {(rows, 2)}


def test_network_that_hides_features_that_are_not_finite_gets_the_fallback_action(synthetic: LoadedPolicy) -> None:
    policy = with_runtime(synthetic, lambda features: synthetic.policy.runtime(np.nan_to_num(features)))
    features = synthetic.golden.features[:3].copy()
    features[1, 0] = np.inf
    evaluation = policy.evaluate(synthetic.golden.observations[:3], features)
    decision = policy.decide(policy.select(evaluation.parameters, deterministic=True, seed=0), evaluation)
    assert [(note.observation, note.kind) for note in decision.interventions] == [(1, "fallback")]


def test_transformer_without_compiled_form_sees_one_row_at_a_time() -> None:
    seen = []

    class Recorder:
        def transform(self, rows: np.ndarray) -> np.ndarray:
            seen.append((rows.shape, rows.dtype))
            return rows

    features = SklearnPreprocessor(Recorder(), np.dtype("float64"))(ROWS)
    assert seen == [((1, ROWS.shape[1]), np.dtype("float64"))] * len(ROWS)
    assert features.tobytes() == ROWS.tobytes()


def test_compiled_form_clips_beyond_the_fitted_range_too() -> None:
    for scaler in (MinMaxScaler((-1, 1), clip=True), MinMaxScaler((0, 2))):
        training = SklearnPreprocessor(scaler.fit(ROWS.astype(np.float64)), np.dtype("float64"))
        beyond = ROWS * np.float32(3)
        assert compile_preprocessor(training, ROWS)(beyond).tobytes() == training(beyond).tobytes()
