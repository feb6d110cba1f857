"""What a worker takes down of its batches adds up to what happened, to the last row."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from carla_policy.actions import CONTROLS
from carla_policy.batch import Request
from carla_policy.breaker import CircuitBreaker
from carla_policy.loading import LoadedPolicy, load_policy
from carla_policy.metrics.buckets import CONTROL_EDGES, Histogram, bin_counts, bin_labels
from carla_policy.metrics.catalog import COMMON_LABELS, METRICS
from carla_policy.metrics.constants import constants, zeros
from carla_policy.metrics.pile import CAPACITY, Pile
from carla_policy.metrics.recorder import Recorder, Sample
from carla_policy.metrics.reporter import Reporter
from carla_policy.service import PolicyService
from carla_policy.specs import CircuitBreaker as CircuitBreakerSpec
from carla_policy_tools.archive import unpack
from carla_policy_tools.build import build
from carla_policy_tools.client import request_body
from carla_policy_tools.paths import CONFIG, archive_name
from tests.synthetic import make_artifact, observations

SENSORS = 5
Counts = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def service(synthetic: LoadedPolicy) -> PolicyService:
    return PolicyService(synthetic)


def ask(service: PolicyService, *bodies: bytes, **request: Any) -> list[Any]:
    batch = service.infer(service.parse([Request(body, **request) for body in bodies]))
    return [json.loads(answer.body) for answer in service.encode(batch)]


def rows(count: int, which: int = 0, **options: Any) -> bytes:
    return json.dumps(request_body(observations(count, SENSORS, seed=which), **options)).encode()


def taken(recorder: Recorder) -> Counts:
    counts: Counts = {}
    for name, labels, value in recorder.take():
        assert (name, labels) not in counts
        counts[name, labels] = value
    return counts


def bucket_counts(counts: Counts, name: str, *labels: str) -> list[float]:
    found = [
        (math.inf if own[-1] == "+Inf" else float(own[-1]), value)
        for (n, own), value in counts.items()
        if n == f"{name}_bucket" and own[:-1] == labels
    ]
    return [value for _, value in sorted(found)]


def test_every_answer_and_row_is_counted_by_what_became_of_it(service: PolicyService) -> None:
    ask(service, rows(3), rows(1), b"{", b"{}", b"")
    ask(service, rows(2))
    counts = taken(service.recorder)
    assert counts["policy_requests_total", ("ok", "none")] == 3
    assert counts["policy_requests_total", ("refused", "INVALID_JSON")] == 1
    assert counts["policy_requests_total", ("refused", "SCHEMA")] == 1
    assert counts["policy_requests_total", ("refused", "EMPTY_BODY")] == 1
    assert counts["policy_rows_total", ("policy",)] == 6
    assert counts["policy_evaluated_rows_total", ()] == 6
    assert counts["policy_batch_requests_count", ()] == 2
    assert counts["policy_batch_requests_sum", ()] == 6
    assert bucket_counts(counts, "policy_batch_requests")[0] == 1  # one batch of one
    assert not taken(service.recorder), "what was taken is gone"


def test_controls_add_up_over_many_batches_and_bulk_requests(service: PolicyService) -> None:
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    bins: dict[tuple[str, str], Any] = {}
    number = 0
    for seed, size in enumerate([1, 5, 300, CAPACITY - 3, 2, CAPACITY + 7, 900, 1, 1]):
        deterministic = bool(seed % 3)
        options: dict[str, Any] = {} if deterministic else {"deterministic": False, "seed": seed}
        (answer,) = ask(service, rows(size, seed, **options))
        number += size
        selection = "deterministic" if deterministic else "stochastic"
        for control in CONTROLS:
            values = np.array([action[control] for action in answer["actions"]])
            sums[selection, control, "positive"] += values[values > 0].sum()
            sums[selection, control, "negative"] -= values[values < 0].sum()
            bins[selection, control] = bins.get((selection, control), 0) + bin_counts(control, values)
    counts = taken(service.recorder)
    for key, value in sums.items():
        assert counts.get(("policy_action_magnitude_total", key), 0.0) == pytest.approx(value, rel=1e-5, abs=1e-9), key
    for (selection, control), expected in bins.items():
        got = [counts.get(("policy_actions_total", (selection, control, label)), 0) for label in bin_labels(control)]
        assert got == expected.tolist()
    assert counts["policy_rows_total", ("policy",)] == number
    assert counts["policy_evaluated_rows_total", ()] == number


def test_norms_and_spread_are_those_of_the_network(service: PolicyService, synthetic: LoadedPolicy) -> None:
    seen = observations(50, SENSORS, seed=3)
    ask(service, json.dumps(request_body(seen)).encode())
    policy = synthetic.policy
    features = policy.preprocessor(seen)
    parameters = policy.runtime(features)
    counts = taken(service.recorder)
    assert counts["policy_observation_norm_total", ()] == pytest.approx(
        np.linalg.norm(features, axis=1).sum(), rel=1e-5
    )
    for column, name in enumerate(policy.layout.names):
        expected = np.exp(parameters["log_std"][:, column].astype(np.float64)).sum()
        assert counts["policy_action_stddev_total", (name,)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("head", ["beta", "categorical", "deterministic", "squashed_gaussian", "epsilon_greedy"])
def test_spread_of_other_heads(head: str, tmp_path: Path) -> None:
    build(make_artifact(tmp_path, "v1.0.0", head=head), tmp_path)
    unpack(tmp_path / archive_name("v1.0.0"), tmp_path / "unpacked")
    loaded = load_policy(tmp_path / "unpacked")
    service = PolicyService(loaded)
    seen = observations(40, SENSORS, seed=3)
    ask(service, json.dumps(request_body(seen)).encode())
    counts = taken(service.recorder)
    parameters = {
        name: values.astype(np.float64)
        for name, values in loaded.policy.runtime(loaded.policy.preprocessor(seen)).items()
    }
    if head == "categorical":
        odds = np.exp(parameters["logits"])
        shares = odds / odds.sum(axis=1, keepdims=True)
        expected = -(shares * np.log(shares)).sum()
        assert counts["policy_entropy_nats_total", ()] == pytest.approx(expected, rel=1e-5)
    elif head == "beta":
        from scipy.stats import beta

        stds = beta.std(parameters["alpha"], parameters["beta"]).sum(axis=0)
        for name, expected in zip(loaded.policy.layout.names, stds, strict=True):
            assert counts["policy_action_stddev_total", (name,)] == pytest.approx(expected, rel=1e-5)
    if head in ("categorical", "epsilon_greedy"):
        chosen = loaded.policy.select(
            loaded.policy.runtime(loaded.policy.preprocessor(seen)), deterministic=True, seed=0
        )
        for index, count in enumerate(np.bincount(chosen[:, 0].astype(int))):
            assert counts.get(("policy_action_index_total", (str(index),)), 0) == count
    if head in ("deterministic", "epsilon_greedy"):
        assert not any(name in ("policy_action_stddev_total", "policy_entropy_nats_total") for name, _ in counts)
    started = {(name, labels) for name, labels, _ in zeros(loaded)}
    assert counts.keys() <= started


def test_what_the_envelope_does_is_counted_by_kind_and_by_row(synthetic: LoadedPolicy) -> None:
    def broken(features: Any) -> dict[str, Any]:
        outputs = synthetic.policy.runtime(features)
        outputs["mean"] = outputs["mean"].copy()
        outputs["mean"][1] = np.nan
        return outputs

    service = PolicyService(replace(synthetic, policy=replace(synthetic.policy, runtime=broken)))
    ask(service, rows(3))
    counts = taken(service.recorder)
    assert counts["policy_requests_total", ("fallback", "none")] == 1
    assert counts["policy_interventions_total", ("fallback",)] == 1
    assert counts["policy_rows_total", ("fallback",)] == 1
    assert counts["policy_rows_total", ("policy",)] == 2
    assert ("policy_rows_total", ("adjusted",)) not in counts
    assert counts.keys() <= {(name, labels) for name, labels, _ in zeros(synthetic)}
    assert counts["policy_evaluated_rows_total", ()] == 3, "what is not finite is the mean, the spread is"


def test_failures_of_the_service_are_counted_as_failed(service: PolicyService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service._reader, "draft", lambda _: 1 / 0)
    (answer,) = ask(service, rows(1))
    assert answer["type"] == "INTERNAL"
    assert taken(service.recorder)["policy_requests_total", ("failed", "INTERNAL")] == 1


def test_sub_resources_are_no_predictions(service: PolicyService) -> None:
    ask(service, b"", resource="healthz")
    ask(service, b"", resource="nothing")
    assert not taken(service.recorder)


def test_stages_add_up_to_no_more_than_the_request(service: PolicyService) -> None:
    for seed in range(20):
        ask(service, rows(1, seed), rows(2, seed))
    counts = taken(service.recorder)
    stages = {labels[0]: value for (name, labels), value in counts.items() if name == "policy_stage_seconds_sum"}
    assert stages.keys() == {"parse", "preprocess", "infer", "decide", "encode"}
    total = counts["policy_request_seconds_sum", ()]
    assert 0.0 < sum(stages.values()) <= total / 2, "each of two requests in a batch takes as long as the batch"
    assert counts["policy_request_seconds_count", ()] == 40
    assert bucket_counts(counts, "policy_request_seconds")[-1] == 40
    assert counts["policy_stage_seconds_count", ("infer",)] == 20


def test_time_in_the_queue_is_known_where_a_proxy_notes_it(service: PolicyService) -> None:
    start = f"t={int((time.time() - 2.0) * 1e3)}"
    ask(service, rows(1), rows(1), headers={"x-request-start": start})
    counts = taken(service.recorder)
    assert counts["policy_queue_seconds_count", ()] == 2
    assert 3.9 < counts["policy_queue_seconds_sum", ()] < 20.0


def test_requests_with_a_deadline_count_as_all_others(service: PolicyService) -> None:
    """Their pass runs in a thread of its own."""
    ask(service, rows(3), headers={"x-policy-deadline-ms": "30000"})
    counts = taken(service.recorder)
    assert counts["policy_evaluated_rows_total", ()] == 3
    assert counts["policy_stage_seconds_count", ("infer",)] == 1


def test_an_episode_is_reported_with_its_return_and_length(service: PolicyService) -> None:
    for value, length in ((-12.5, 40), (100.0, 400), (0.5, 1)):
        body = json.dumps({"return": value, "length": length}).encode()
        assert ask(service, body, resource="episodes") == [{"status": "recorded", "version": "v1.0.0"}]
    counts = taken(service.recorder)
    assert counts["policy_episodes_total", ()] == 3
    assert counts["policy_episode_steps_total", ()] == 441
    assert counts["policy_episode_return_total", ("positive",)] == 100.5
    assert counts["policy_episode_return_total", ("negative",)] == 12.5
    assert not any(name == "policy_requests_total" for name, _ in counts)


@pytest.mark.parametrize(
    ("body", "kind", "loc"),
    [
        (b"", "EMPTY_BODY", None),
        (b"{", "INVALID_JSON", None),
        (b'{"return": 1}', "SCHEMA", "length"),
        (b'{"return": 1, "length": 0}', "SCHEMA", "length"),
        (b'{"return": 1, "length": 1.5}', "SCHEMA", "length"),
        (b'{"return": 1e300, "length": 1}', "SCHEMA", "return"),
        (b'{"return": NaN, "length": 1}', "INVALID_JSON", None),
        (b'{"return": "1", "length": 1}', "SCHEMA", "return"),
        (b'{"return": 1, "length": 1, "lenght": 1}', "SCHEMA", "lenght"),
        (b'{"return": 1, "return": 2, "length": 1}', "DUPLICATE_KEY", None),
        (b"[" * 5000, "SCHEMA", None),
    ],
)
def test_a_report_that_does_not_fit_is_refused_and_not_counted(
    service: PolicyService, body: bytes, kind: str, loc: str | None
) -> None:
    (answer,) = ask(service, body, resource="episodes")
    assert answer["type"] == kind
    if loc:
        assert answer["details"][0]["loc"] == loc
    assert not taken(service.recorder)


def test_a_batch_that_cannot_be_taken_down_is_answered_all_the_same(
    service: PolicyService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service.recorder, "_record", lambda *_: 1 / 0)
    (answer,) = ask(service, rows(1))
    assert len(answer["actions"]) == 1
    assert "is not in the metrics" in caplog.text


def test_what_waits_to_be_summed_up_is_bounded_by_rows() -> None:
    """A bulk request's arrays are not kept until the next report."""
    summed: list[list[str]] = []
    pile: Pile[str] = Pile(summed.append)
    pile.add("small", CAPACITY - 1)
    assert summed == []
    pile.add("last", 1)
    assert summed == [["small", "last"]]
    pile.add("bulk", 16 * CAPACITY)
    assert summed[1:] == [["bulk"]]
    pile.flush()
    assert len(summed) == 2


@pytest.mark.parametrize("control", CONTROLS)
def test_bins_are_named_after_their_upper_edge_and_hold_it(control: str) -> None:
    edges = CONTROL_EDGES[control].astype(np.float32)
    assert bin_counts(control, edges).tolist() == [1] * len(edges)
    assert [float(label) for label in bin_labels(control)] == pytest.approx(edges.tolist())
    assert bin_counts(control, np.array([edges[0] - np.float32(0.1), 1.0], np.float32))[[0, -1]].tolist() == [1, 1]


def test_histogram_cumulates_weights_up_to_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.add(np.array([0.5, 1.0, 1.5, 7.0]), np.array([1, 2, 3, 4]))
    wanted = [
        ("bucket", "1", 3.0),
        ("bucket", "2", 6.0),
        ("bucket", "+Inf", 10.0),
        ("sum", "", 35.0),
        ("count", "", 10.0),
    ]
    assert list(histogram.take()) == wanted
    assert {value for _, _, value in histogram.take()} == {0.0}


def test_metrics_yaml_lists_what_the_catalog_lists() -> None:
    declared = yaml.safe_load((CONFIG / "metrics.yaml").read_text("utf-8"))["model_metrics"]
    listed = {m["name"]: (kind, tuple(m["dimensions"])) for kind, group in declared.items() for m in group}
    assert listed == {name: (metric.kind, (*COMMON_LABELS, *metric.labels)) for name, metric in METRICS.items()}


def test_every_counter_that_grows_was_there_at_zero(service: PolicyService, synthetic: LoadedPolicy) -> None:
    """Prometheus does not see the increase of what it has never seen."""
    ask(service, rows(2), b"{", b"{}", rows(1, deterministic=False))
    ask(service, b'{"return": -1, "length": 5}', resource="episodes")
    started = {(name, labels): value for name, labels, value in zeros(synthetic)}
    assert set(started.values()) == {0}
    assert taken(service.recorder).keys() <= started.keys()
    for name, labels in started:
        assert len(labels) == len(METRICS[name].labels)


def test_constants_say_what_was_loaded_and_how_its_actions_are_distributed(synthetic: LoadedPolicy) -> None:
    found = {(name, labels): value for name, labels, value in constants(synthetic, 1.25)}
    assert found["policy_load_seconds", ()] == 1.25
    assert found["policy_selftest_vectors", ()] == len(synthetic.golden)
    assert found["policy_selftest_bit_equal_ratio", ("deterministic_actions",)] == 1.0
    assert found["policy_training_return", ("mean",)] == 0.0
    (labels,) = [labels for name, labels in found if name == "policy_build_info"]
    assert labels[1] == synthetic.policy.card.card_hash.removeprefix("sha256:")
    controls = synthetic.policy.act(synthetic.golden.observations).controls
    for column, control in enumerate(CONTROLS):
        shares = [found["policy_action_baseline_ratio", (control, label)] for label in bin_labels(control)]
        counts = bin_counts(control, controls[:, column])
        assert sum(shares) == pytest.approx(1.0)
        assert min(shares) > 0.0
        assert shares == pytest.approx((counts + 0.5) / (counts + 0.5).sum())


def test_reporter_hands_on_what_changed_and_the_state_of_the_circuit(synthetic: LoadedPolicy) -> None:
    breaker = CircuitBreaker(CircuitBreakerSpec(failures=1, recovery_s=60.0))
    recorder = Recorder(synthetic, breaker)
    emitted: list[tuple[str, tuple[str, ...], float]] = []
    enough = threading.Semaphore(0)

    def emit(samples: Iterable[Sample]) -> None:
        emitted.extend(samples)
        enough.release()

    reporter = Reporter(recorder, emit, "9000", interval_s=0.001)
    reporter.start([])
    breaker.record(failed=True)
    recorder.count_episode({"return": 2.0, "length": 3})
    for _ in range(10):
        assert enough.acquire(timeout=30)
    reporter.stop()
    states = [value for name, labels, value in emitted if name == "policy_circuit_state" and labels == ("9000",)]
    assert states[-1] == 2.0
    assert len(states) <= 2, "only changes are told"
    assert ("policy_episodes_total", (), 1.0) in emitted
