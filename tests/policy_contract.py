"""What every packaged policy must keep, whoever trained it: inherit `PolicyContract` and say which archive.

class TestMyPolicy(PolicyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls) -> Path:
        return Path("model_store/carla_policy-v1.2.3.mar")
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from carla_policy.batch import Request
from carla_policy.errors import OutOfRange
from carla_policy.loading import LoadedPolicy, load_policy
from carla_policy.policy import Decision, Evaluation, Policy
from carla_policy.service import PolicyService
from carla_policy_tools.archive import unpack
from carla_policy_tools.build import verify
from carla_policy_tools.client import request_body
from tests.reading import read


def decide(policy: Policy, evaluation: Evaluation) -> Decision:
    return policy.decide(policy.select(evaluation.parameters, deterministic=True, seed=0), evaluation)


class PolicyContract:
    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls) -> Path:
        raise NotImplementedError("say which archive must keep the contract")

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
        directory = tmp_path_factory.mktemp("contract")
        unpack(archive, directory)
        return load_policy(directory)

    @pytest.fixture(scope="class")
    @classmethod
    def within_bounds(cls, loaded: LoadedPolicy) -> np.ndarray:
        """Observations anywhere within the card's bounds, corners included, not only where training went."""
        low, high = (
            np.array([getattr(f, end) for f in loaded.policy.card.observation.fields], np.float32)
            for end in ("low", "high")
        )
        share = np.random.default_rng(3).uniform(size=(300, len(low)))
        share[0], share[1] = 0.0, 1.0
        share[2:100] = np.round(share[2:100])
        return np.clip(low + share * (high - low), low, high).astype(np.float32)

    def test_archive_verifies_in_a_process_that_sees_nothing_else(self, archive: Path, loaded: LoadedPolicy) -> None:
        verification = verify(archive)
        assert verification.version == loaded.policy.card.version
        assert verification.vectors == len(loaded.golden)

    def test_every_stage_is_within_the_stated_tolerance_of_training(self, loaded: LoadedPolicy) -> None:
        atol = loaded.policy.card.parity.atol
        assert {parity.stage for parity in loaded.parity} >= {"features", "deterministic_actions", "sampled_actions"}
        assert all(parity.max_abs_difference <= atol for parity in loaded.parity)

    def test_a_row_has_the_same_bits_wherever_it_stands_in_a_batch(
        self, loaded: LoadedPolicy, within_bounds: np.ndarray
    ) -> None:
        policy = loaded.policy
        reference = policy.act(within_bounds).controls
        order = np.random.default_rng(0).permutation(len(within_bounds))
        assert policy.act(within_bounds[order]).controls.tobytes() == reference[order].tobytes()
        for start, rows in ((0, 1), (5, 2), (9, 7), (40, 65)):
            part = policy.act(within_bounds[start : start + rows]).controls
            assert part.tobytes() == reference[start : start + rows].tobytes()

    def test_controls_are_finite_and_in_range_for_any_observation_within_bounds(
        self, loaded: LoadedPolicy, within_bounds: np.ndarray
    ) -> None:
        for deterministic in (True, False):
            controls = loaded.policy.act(within_bounds, deterministic=deterministic, seed=11).controls
            assert controls.dtype == np.float32
            assert np.isfinite(controls).all()
            assert (controls >= (0.0, 0.0, -1.0)).all()
            assert (controls <= 1.0).all()

    def test_a_seed_reproduces_the_sample_and_a_shorter_request_is_its_prefix(
        self, loaded: LoadedPolicy, within_bounds: np.ndarray
    ) -> None:
        policy = loaded.policy
        samples = policy.act(within_bounds, deterministic=False, seed=2**64 - 1).controls
        again = policy.act(within_bounds[:9], deterministic=False, seed=2**64 - 1).controls
        assert again.tobytes() == samples[:9].tobytes()
        other = policy.act(within_bounds, deterministic=False, seed=2**64 - 2).controls
        assert (other.tobytes() == samples.tobytes()) == (policy.card.head.type == "deterministic")

    def test_features_that_are_not_finite_get_the_fallback_action_and_leave_their_neighbours_alone(
        self, loaded: LoadedPolicy
    ) -> None:
        policy, observations = loaded.policy, loaded.golden.observations[:8]
        features = loaded.golden.features[:8].copy()
        states = None if loaded.golden.states is None else loaded.golden.states[:8]
        healthy = decide(policy, policy.evaluate(observations, features, states))
        features[3, 0] = np.nan
        decision = decide(policy, policy.evaluate(observations, features, states))
        assert (3, "fallback") in [(note.observation, note.kind) for note in decision.interventions]
        expected = policy.fall_back(observations[3:4], "fallback").controls[0]
        assert decision.controls[3].tobytes() == expected.tobytes()
        others = [row for row in range(8) if row != 3]
        assert decision.controls[others].tobytes() == healthy.controls[others].tobytes()

    def test_every_field_outside_its_bounds_is_refused_by_name(self, loaded: LoadedPolicy) -> None:
        card = loaded.policy.card
        for column, field in enumerate(card.observation.fields):
            row = loaded.golden.observations[:1].copy()
            row[0, column] = np.float32(field.high) + max(1.0, abs(field.high)) * np.float32(0.5)
            with pytest.raises(OutOfRange) as refusal:
                read(json.dumps(request_body(row)).encode(), card)
            path = ("speed", "steering")[column] if column < 2 else f"sensors[{column - 2}]"
            assert refusal.value.details[0]["loc"] == f"observations[0].{path}"
            assert field.name in str(refusal.value)

    def test_service_answers_golden_observations_with_golden_actions(self, loaded: LoadedPolicy) -> None:
        policy, golden = loaded.policy, loaded.golden
        service = PolicyService(loaded)
        body = request_body(golden.observations)
        if service.state_codec is not None and golden.states is not None:
            body["state"] = service.state_codec.encode(golden.states)
        (answer,) = service.encode(service.infer(service.parse([Request(json.dumps(body).encode())])))
        actions = json.loads(answer.body)["actions"]
        got = np.array([[a["throttle"], a["brake"], a["steer"]] for a in actions])
        evaluation = policy.evaluate(golden.observations, policy.preprocessor(golden.observations), golden.states)
        expected = policy.decide(golden.deterministic_actions, evaluation).controls
        assert np.abs(got - expected).max() <= policy.card.parity.atol

    def test_metadata_says_what_is_served(self, loaded: LoadedPolicy) -> None:
        metadata = json.loads(json.dumps(PolicyService(loaded).metadata()))
        assert metadata["version"] == loaded.policy.card.version
        assert metadata["inputShape"] == [loaded.policy.card.observation.columns]
        assert {"name", "device", "actionSpace", "head", "safety", "card", "gitSha"} <= metadata.keys()
