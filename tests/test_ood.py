"""Observations unlike training: how far is what scipy says, what follows is what the card says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis

from carla_policy.answers import Answer
from carla_policy.batch import Request
from carla_policy.errors import ArtifactError
from carla_policy.loading import LoadedPolicy
from carla_policy.ood import NoveltyDetector, load_detector
from carla_policy.service import PolicyService
from carla_policy.specs import OodSpec
from carla_policy_tools.client import request_body
from tests.synthetic import observations

COLUMNS = 7
SEEN = {"speed": (5.0, 25.0), "steering": (-0.5, 0.5)}
Asking = Callable[..., Answer]


def spec(action: Literal["flag", "reject", "fallback"] = "flag", **changes: Any) -> OodSpec:
    values = {"threshold": 3.0, "false_positive_rate": 0.01, "held_out_rows": 100, **changes}
    return OodSpec(action=action, **values)


def detector(features: int, seed: int = 0, threshold: float = 3.0, rank: int | None = None) -> NoveltyDetector:
    """Any ellipsoid, and no ranges."""
    rng = np.random.default_rng(seed)
    ranges = np.full(features, -np.inf, np.float32), np.full(features, np.inf, np.float32)
    whitening = rng.normal(size=(rank or features, features))
    return NoveltyDetector(*ranges, rng.normal(size=features), whitening, threshold)


@pytest.fixture(scope="module")
def seen_policy(synthetic: LoadedPolicy) -> LoadedPolicy:
    """The synthetic policy, whose card says what training saw."""
    card = synthetic.policy.card
    fields = [f.model_copy(update={"seen": SEEN.get(f.name, (-50.0, 50.0))}) for f in card.observation.fields]
    observation = card.observation.model_copy(update={"fields": tuple(fields)})
    policy = replace(synthetic.policy, card=card.model_copy(update={"observation": observation}))
    return replace(synthetic, policy=policy)


@pytest.fixture
def asking(seen_policy: LoadedPolicy, tmp_path: Path) -> Callable[[OodSpec], Asking]:
    """A service with a detector around the features of a usual observation, asked with observations `[rows, 7]`."""

    def service_of(ood: OodSpec) -> Asking:
        policy = seen_policy.policy
        card = policy.card.model_copy(update={"ood": ood})
        usual = policy.preprocessor(usual_rows(1))[0].astype(np.float64)
        np.savez(tmp_path / "ood.npz", mean=usual, whitening=np.eye(COLUMNS))
        found = load_detector(tmp_path / "ood.npz", ood, card, COLUMNS)
        service = PolicyService(replace(seen_policy, policy=replace(policy, card=card, detector=found)))
        return lambda rows: service.encode(
            service.infer(service.parse([Request(json.dumps(request_body(rows)).encode())]))
        )[0]

    return service_of


def usual_rows(rows: int) -> Any:
    return np.tile(np.array([[15, 0, 0, 0, 0, 0, 0]], np.float32), (rows, 1))


def strange_rows() -> Any:
    """Usual, too slow, turned too far and too fast, and of values that are usual one by one only."""
    rows = usual_rows(4)
    rows[1, 0], rows[2, :2], rows[3, 2:] = 4.5, (26, 0.75), 50
    return rows


@given(seed=st.integers(0, 1000), features=st.integers(1, 12))
def test_distance_is_that_of_mahalanobis(seed: int, features: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(features, features)) + 3 * np.eye(features)
    inverse = np.linalg.inv(root @ root.T)
    whitening = np.linalg.cholesky(inverse).T
    found = replace(detector(features, seed), whitening=whitening)
    rows = rng.normal(size=(5, features)).astype(np.float32)
    expected = [mahalanobis(row.astype(np.float64), found.mean, inverse) for row in rows]
    np.testing.assert_allclose(found.distance(rows), expected, rtol=1e-6)
    novelty = replace(found, threshold=float(np.median(expected)))(rows, rows)
    assert novelty.is_ood.tolist() == (found.distance(rows) > np.median(expected)).tolist()


@given(seed=st.integers(0, 1000), features=st.integers(1, 40), rank=st.integers(1, 40), rows=st.integers(1, 70))
def test_a_row_s_distance_has_the_same_bits_in_every_batch(seed: int, features: int, rank: int, rows: int) -> None:
    found = detector(features, seed, rank=rank)
    values = np.random.default_rng(seed).normal(size=(rows, features)).astype(np.float32)
    together = found.distance(values)
    assert np.concatenate([found.distance(row[None]) for row in values]).tobytes() == together.tobytes()
    assert found.distance(values[::-1])[::-1].tobytes() == together.tobytes()
    assert found.distance(np.asfortranarray(values)).tobytes() == together.tobytes()
    order = np.random.default_rng(seed).permutation(rows)
    assert found.distance(values[order]).tobytes() == together[order].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_features_that_are_not_finite_are_infinitely_far_away(value: float) -> None:
    found, rows = replace(detector(3), mean=np.zeros(3), whitening=np.eye(3) * 1e300), np.zeros((3, 3), np.float32)
    rows[1, 2] = value
    novelty = replace(found, threshold=1e308)(np.zeros((3, 3), np.float32), rows)
    assert np.isinf(novelty.distance).tolist() == [False, True, False]
    assert novelty.is_ood.tolist() == [False, True, False]


@pytest.mark.parametrize(("margin", "outside"), [(0.0, {4.5, 25.5, 27.5}), (0.1, {27.5})])
def test_margin_widens_what_was_seen_by_a_share_of_its_width(
    seen_policy: LoadedPolicy, tmp_path: Path, margin: float, outside: set[float]
) -> None:
    np.savez(tmp_path / "ood.npz", mean=np.zeros(COLUMNS), whitening=np.eye(COLUMNS))
    found = load_detector(tmp_path / "ood.npz", spec(range_margin=margin), seen_policy.policy.card, COLUMNS)
    rows = usual_rows(6)
    rows[:, 0] = speeds = [4.5, 5.0, 15.0, 25.0, 25.5, 27.5]
    novelty = found(rows, np.zeros((6, COLUMNS), np.float32))
    assert [speed for speed, out in zip(speeds, novelty.outside[:, 0], strict=True) if out] == sorted(outside)
    assert (novelty.is_ood == novelty.outside[:, 0]).all()
    assert not novelty.outside[:, 1:].any()


def test_what_is_unusual_is_named_and_the_action_stays(asking: Callable[[OodSpec], Asking]) -> None:
    answer = json.loads(asking(spec())(strange_rows()).body)
    assert [(note["observation"], note["outside"]) for note in answer["ood"]] == [
        (1, ["speed"]),
        (2, ["speed", "steering"]),
        (3, []),
    ]
    assert [note["distance"] > note["threshold"] == 3.0 for note in answer["ood"]] == [False, False, True]
    assert "interventions" not in answer
    usual = json.loads(asking(spec())(usual_rows(2)).body)
    assert "ood" not in usual
    assert usual["actions"][0] == answer["actions"][0]


def test_reject_refuses_the_request_and_names_observations_and_columns(asking: Callable[[OodSpec], Asking]) -> None:
    answer = asking(spec("reject"))(strange_rows())
    body = json.loads(answer.body)
    assert (answer.status, body["type"]) == (422, "OUT_OF_DISTRIBUTION")
    assert body["message"].startswith("observations[1]: unlike training: speed (distance ")
    assert body["message"].endswith("(and 2 more)")
    assert [detail["loc"] for detail in body["details"]] == [f"observations[{row}]" for row in (1, 2, 3)]
    assert {detail["type"] for detail in body["details"]} == {"out_of_distribution"}
    assert "unlike training: the combination of its values" in body["details"][2]["msg"]
    assert asking(spec("reject"))(usual_rows(2)).status == 200


def test_fallback_replaces_the_action_of_strange_observations_only(asking: Callable[[OodSpec], Asking]) -> None:
    answer, flagged = (json.loads(asking(spec(how))(strange_rows()).body) for how in ("fallback", "flag"))
    assert answer["interventions"] == [{"observation": row, "kind": "ood"} for row in (1, 2, 3)]
    assert answer["actions"] == [flagged["actions"][0], *[{"throttle": 0.0, "brake": 1.0, "steer": 0.0}] * 3]
    assert answer["ood"] == flagged["ood"]


def test_infinite_distance_is_written_as_null(seen_policy: LoadedPolicy) -> None:
    far = replace(detector(COLUMNS), whitening=np.full((1, COLUMNS), 1e300))
    policy = seen_policy.policy
    card = policy.card.model_copy(update={"ood": spec()})
    service = PolicyService(replace(seen_policy, policy=replace(policy, card=card, detector=far)))
    body = json.dumps(request_body(observations(1, 5))).encode()
    (answer,) = service.encode(service.infer(service.parse([Request(body)])))
    assert json.loads(answer.body)["ood"] == [{"observation": 0, "outside": [], "distance": None, "threshold": 3.0}]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(7)}, r"expected the arrays mean and whitening, got \['mean'\]"),
        ({"mean": np.zeros(7), "whitening": np.eye(7), "x": np.eye(2)}, "expected the arrays mean and whitening"),
        ({"mean": np.zeros(6), "whitening": np.eye(7)}, r"mean: expected float64 \(7,\), got float64 \(6,\)"),
        ({"mean": np.zeros(7, np.float32), "whitening": np.eye(7)}, r"mean: expected float64 \(7,\), got float32"),
        ({"mean": np.zeros(7), "whitening": np.eye(6)}, r"whitening: expected float64 \(6, 7\), got float64 \(6, 6\)"),
        ({"mean": np.zeros(7), "whitening": np.zeros((0, 7))}, r"whitening: expected float64 \(0, 7\)"),
        ({"mean": np.zeros(7), "whitening": np.float64(1)}, "whitening: expected float64"),
        ({"mean": np.full(7, np.nan), "whitening": np.eye(7)}, "mean: expected finite numbers"),
        ({"mean": np.zeros(7), "whitening": np.full((7, 7), np.inf)}, "whitening: expected finite numbers"),
        ({"mean": np.zeros(7, object), "whitening": np.eye(7)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_by_array(
    seen_policy: LoadedPolicy, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "ood.npz", **arrays)
    with pytest.raises(ArtifactError, match=rf"^ood\.npz: {message}"):
        load_detector(tmp_path / "ood.npz", spec(), seen_policy.policy.card, COLUMNS)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"no archive"])
def test_file_that_is_no_npz_is_refused(seen_policy: LoadedPolicy, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ood.npz").write_bytes(content)
    reason = "cannot be read: No such file" if content is None else "cannot be read as an .npz file of plain arrays"
    with pytest.raises(ArtifactError, match=rf"^ood\.npz: {reason}"):
        load_detector(tmp_path / "ood.npz", spec(), seen_policy.policy.card, COLUMNS)
