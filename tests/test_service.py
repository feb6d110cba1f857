"""The service: every request of a batch is answered by itself, whatever its neighbours are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from carla_policy.answers import Answer
from carla_policy.batch import Request
from carla_policy.card import ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.loading import LoadedPolicy
from carla_policy.messages import ErrorAnswer, PredictAnswer
from carla_policy.policy import Policy
from carla_policy.runtimes.torch import TorchRuntime
from carla_policy.selftest import replay
from carla_policy.service import PolicyService
from carla_policy.wire import Draft, JsonReader
from carla_policy_tools.client import request_body
from tests.synthetic import observations

ROWS = observations(64, 5, seed=5)
BAD = [b"", b"{", b"null", b'{"observations": []}', b'{"observations": [{"speed": NaN}]}', b"\xff"]


def answer_all(service: PolicyService, bodies: list[bytes]) -> list[Answer]:
    return service.encode(
        service.infer(service.parse([Request(body, request_id=str(n)) for n, body in enumerate(bodies)]))
    )


def ask(service: PolicyService, rows: Any, **options: Any) -> dict[str, Any]:
    (answer,) = answer_all(service, [json.dumps(request_body(rows, **options)).encode()])
    assert answer.status == 200, answer.body
    content: dict[str, Any] = json.loads(answer.body)
    return content


@pytest.fixture(scope="module")
def service(synthetic: LoadedPolicy) -> PolicyService:
    return PolicyService(synthetic)


@settings(max_examples=60)
@given(data=st.data())
def test_bad_requests_never_touch_their_batch_mates(service: PolicyService, data: st.DataObject) -> None:
    good = [json.dumps(request_body(ROWS[n : n + 1 + n % 3])).encode() for n in range(8)]
    alone = [json.loads(answer_all(service, [body])[0].body)["actions"] for body in good]
    kinds = data.draw(st.lists(st.one_of(st.integers(0, 7), st.sampled_from(BAD)), min_size=1, max_size=12))
    answers = answer_all(service, [good[kind] if isinstance(kind, int) else kind for kind in kinds])
    for kind, answer in zip(kinds, answers, strict=True):
        if isinstance(kind, int):
            assert json.loads(answer.body)["actions"] == alone[kind]
        else:
            assert 400 <= answer.status < 500


def test_answers_and_errors_fit_their_types(service: PolicyService) -> None:
    stochastic = json.dumps(request_body(ROWS[:2], deterministic=False)).encode()
    answers = answer_all(service, [stochastic, b"{"])
    TypeAdapter(PredictAnswer).validate_json(answers[0].body, strict=True)
    error = TypeAdapter(ErrorAnswer).validate_json(answers[1].body, strict=True)
    assert (error["code"], error["requestId"]) == (400, "1")
    assert answers[1].phrase == "Bad Request"


def test_answer_says_version_and_timing(service: PolicyService) -> None:
    (answer,) = answer_all(service, [json.dumps(request_body(ROWS[:1])).encode()])
    content = json.loads(answer.body)
    assert content.keys() == {"actions", "version", "timingMs", "deterministic"}
    assert content["version"] == answer.headers["x-policy-version"] == "v1.0.0"
    assert content["timingMs"] > 0
    assert [stage.partition(";")[0] for stage in answer.headers["server-timing"].split(", ")] == [
        "parse",
        "preprocess",
        "infer",
        "decide",
        "total",
    ]


def test_stochastic_answer_is_reproduced_by_its_seed(service: PolicyService) -> None:
    drawn = ask(service, ROWS[:5], deterministic=False)
    assert ask(service, ROWS[:5], deterministic=False, seed=drawn["seed"])["actions"] == drawn["actions"]
    assert ask(service, ROWS[:5], deterministic=False)["seed"] != drawn["seed"]


def test_stochastic_answer_is_reproduced_offline_in_three_lines(
    synthetic: LoadedPolicy, service: PolicyService
) -> None:
    parameters = synthetic.policy.evaluate(ROWS[:6], synthetic.policy.preprocessor(ROWS[:6])).parameters
    z = np.random.Generator(np.random.Philox(42)).standard_normal((6, 2))
    action = np.float32(np.float64(parameters["mean"]) + np.exp(np.float64(parameters["log_std"])) * z)
    acceleration, steer = np.clip(action, -1, 1).T
    answer = ask(service, ROWS[:6], deterministic=False, seed=42)
    assert [row["throttle"] for row in answer["actions"]] == np.maximum(acceleration, 0).tolist()
    assert [row["brake"] for row in answer["actions"]] == np.maximum(-acceleration, 0).tolist()
    assert [row["steer"] for row in answer["actions"]] == steer.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("deterministic", [True, False])
def test_fallback_is_reported(synthetic: LoadedPolicy, value: float, deterministic: bool) -> None:
    broken = _with_runtime(
        synthetic.policy,
        lambda features: {name: np.full((len(features), 2), value, np.float32) for name in ("mean", "log_std")},
    )
    answer = ask(PolicyService(replace(synthetic, policy=broken)), ROWS[:2], deterministic=deterministic)
    assert answer["actions"] == [{"throttle": 0.0, "brake": 1.0, "steer": 0.0}] * 2
    assert answer["interventions"] == [{"observation": n, "kind": "fallback"} for n in (0, 1)]


def test_headers_tell_a_proxy_what_was_out_of_the_ordinary(synthetic: LoadedPolicy, service: PolicyService) -> None:
    nothing = {name: np.full((2, 2), np.nan, np.float32) for name in ("mean", "log_std")}
    silent = _with_runtime(synthetic.policy, lambda _: nothing)
    body = json.dumps(request_body(ROWS[:2])).encode()
    (plain,) = answer_all(service, [body])
    (noted,) = answer_all(PolicyService(replace(synthetic, policy=silent)), [body])
    assert noted.headers.keys() - plain.headers.keys() == {"x-policy-interventions"}
    assert noted.headers["x-policy-interventions"] == "fallback"


def test_server_that_drains_refuses_new_work_and_goes_on_when_it_does_not(synthetic: LoadedPolicy) -> None:
    draining = True
    service = PolicyService(synthetic, lambda: draining)
    bodies = [json.dumps(request_body(ROWS[:1])).encode(), b"{"]
    refused = answer_all(service, bodies)
    assert [answer.status for answer in refused] == [503, 503]
    assert json.loads(refused[0].body)["type"] == "DRAINING"
    draining = False
    assert [answer.status for answer in answer_all(service, bodies)] == [200, 400]


def test_request_that_breaks_the_network_gets_the_fallback_action_alone(synthetic: LoadedPolicy) -> None:
    def runtime(features: Any) -> Any:
        if (features == synthetic.policy.preprocessor(ROWS[3:4])).all(axis=1).any():
            raise RuntimeError("CUDA error")
        return synthetic.policy.runtime(features)

    service = PolicyService(replace(synthetic, policy=_with_runtime(synthetic.policy, runtime)))
    answers = answer_all(service, [json.dumps(request_body(ROWS[n : n + 1])).encode() for n in range(6)])
    assert [answer.status for answer in answers] == [200] * 6
    assert json.loads(answers[3].body)["interventions"] == [{"observation": 0, "kind": "fallback"}]
    assert json.loads(answers[3].body)["actions"] == [{"throttle": 0.0, "brake": 1.0, "steer": 0.0}]
    for n in (0, 1, 2, 4, 5):
        assert json.loads(answers[n].body)["actions"] == ask(PolicyService(synthetic), ROWS[n : n + 1])["actions"]


def test_fault_of_the_service_itself_is_answered_to_the_request_that_met_it(
    service: PolicyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = JsonReader.draft

    def draft(reader: JsonReader, body: bytes) -> Draft:
        if body == b"fault":
            raise KeyError("speed")
        return own(reader, body)

    monkeypatch.setattr(JsonReader, "draft", draft)
    good = json.dumps(request_body(ROWS[:1])).encode()
    answers = answer_all(service, [good, b"fault", good])
    assert [answer.status for answer in answers] == [200, 500, 200]
    error = json.loads(answers[1].body)
    assert (error["type"], error["requestId"]) == ("INTERNAL", "1")
    assert "KeyError" not in error["message"]


def test_resources(service: PolicyService) -> None:
    requests = [Request(b"", resource=name) for name in ("healthz", "warmup", "metadata", "nothing")]
    health, warm, metadata, unknown = service.encode(service.infer(service.parse(requests)))
    assert json.loads(health.body) == {"status": "ok", "version": "v1.0.0", "gitSha": "0" * 40, "circuit": "off"}
    assert json.loads(warm.body)["status"] == "warm"
    assert json.loads(metadata.body) == service.metadata()
    assert unknown.status == 404
    assert "healthz, metadata, warmup" in json.loads(unknown.body)["message"]


def test_health_fails_when_the_policy_does_not_answer_as_trained_any_more(synthetic: LoadedPolicy) -> None:
    drifted = _with_runtime(
        synthetic.policy,
        lambda features: {
            name: values + np.float32(1e-3) for name, values in synthetic.policy.runtime(features).items()
        },
    )
    service = PolicyService(replace(synthetic, policy=drifted))
    (answer,) = service.encode(service.infer(service.parse([Request(b"", resource="healthz")])))
    assert answer.status == 500


def test_without_tiles_a_row_s_bits_depend_on_its_batch_and_the_self_test_sees_it(synthetic: LoadedPolicy) -> None:
    def untiled(features: Any) -> Any:
        runtime = synthetic.policy.runtime
        return TorchRuntime(runtime.module, runtime.signature, len(features), torch.device("cpu"))(features)

    policy = _with_runtime(synthetic.policy, untiled)
    together, alone = policy.act(ROWS).controls, np.concatenate([policy.act(row[None]).controls for row in ROWS])
    assert together.tobytes() != alone.tobytes()
    with pytest.raises(ArtifactError, match="the same observation gets other bits in another place of a batch"):
        replay(policy, synthetic.golden)


def test_difference_within_tolerance_is_reported_and_does_not_block(synthetic: LoadedPolicy) -> None:
    nudged = replace(synthetic.golden, features=np.nextafter(synthetic.golden.features, np.float32(np.inf)))
    card = _card_with(synthetic.policy.card, atol=1e-5)
    parity = {stage.stage: stage for stage in replay(replace(synthetic.policy, card=card), nudged)}
    assert (parity["features"].bit_equal_share, parity["features"].max_ulp) == (0.0, 1)
    assert parity["mean"].bit_equal_share == 1.0
    with pytest.raises(ArtifactError, match=r"features\[\d+\]: expected .* differs by more than parity\.atol = 0"):
        replay(replace(synthetic.policy, card=_card_with(synthetic.policy.card, atol=0.0)), nudged)


def _with_runtime(policy: Policy, runtime: Any) -> Policy:
    return replace(policy, runtime=runtime)


def _card_with(card: ModelCard, *, atol: float) -> ModelCard:
    return card.model_copy(update={"parity": card.parity.model_copy(update={"atol": atol})})
