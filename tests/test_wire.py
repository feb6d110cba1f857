"""Requests: what is read, and that every refusal has its fixed status and type and names the field."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from carla_policy import wire
from carla_policy.card import ModelCard
from carla_policy.errors import RequestError
from carla_policy.loading import LoadedPolicy
from carla_policy.media import media_type
from carla_policy.messages import PredictRequest
from carla_policy.specs import ObservationSpec, ObservedField
from carla_policy.wire import max_body_bytes
from tests.reading import read


@pytest.fixture
def card(synthetic: LoadedPolicy) -> ModelCard:
    return synthetic.policy.card


def observation(**changes: Any) -> dict[str, Any]:
    return {"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5, **changes}


def request(**changes: Any) -> bytes:
    return json.dumps({"observations": [observation()], **changes}).encode()


def refusal(body: bytes, card: ModelCard) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(body, card)
    return caught.value


def test_numbers_are_rounded_to_float32_on_arrival(card: ModelCard) -> None:
    prediction = read(request(observations=[observation(speed=0.1, steering=-0.0, sensors=[1e-40] * 5)]), card)
    assert prediction.observations.dtype == np.float32
    assert prediction.observations[0, 0] == np.float32(0.1)
    assert np.signbit(prediction.observations[0, 1])
    assert prediction.observations[0, 2] == np.float32(1e-40)


def test_options_have_defaults(card: ModelCard) -> None:
    prediction = read(request(), card)
    assert (prediction.deterministic, prediction.seed) == (True, None)
    prediction = read(request(deterministic=False, seed=2**64 - 1), card)
    assert (prediction.deterministic, prediction.seed) == (False, 2**64 - 1)


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"", 400, "EMPTY_BODY", "body: expected a JSON object"),
        (b" \n\t", 400, "EMPTY_BODY", "body: expected a JSON object"),
        (b"{", 400, "INVALID_JSON", "body: not a JSON document: Expecting"),
        (request() + b"x", 400, "INVALID_JSON", "Extra data"),
        (b"{'observations': []}", 400, "INVALID_JSON", "line 1 column 2"),
        (b'{"observations": [NaN]}', 400, "INVALID_JSON", "NaN"),
        (request().replace(b"1.0", b"NaN"), 400, "INVALID_JSON", "NaN"),
        (request().replace(b"1.0", b"-Infinity"), 400, "INVALID_JSON", "Infinity"),
        (request().replace(b"1.0", b"1e999"), 400, "INVALID_JSON", "beyond what a float64 holds"),
        (request().replace(b"1.0", b"1" * 5_000 + b".0"), 400, "INVALID_JSON", "beyond what a float64 holds"),
        (request().replace(b"1.0", b"1" * 5_000), 400, "INVALID_JSON", "5000 digits"),
        (b"[" * 100_000, 400, "INVALID_JSON", "nested deeper than 32 levels"),
        (b"\xef\xbb\xbf" + request(), 400, "INVALID_ENCODING", "byte order mark"),
        (request().decode().encode("utf-16"), 400, "INVALID_ENCODING", "looks like utf-16"),
        (b'{"\xff": 1}', 400, "INVALID_ENCODING", "not UTF-8 at byte 2"),
        (b"null", 422, "SCHEMA", "body: expected an object, got null"),
        (b"[]", 422, "SCHEMA", "body: expected an object, got an array"),
        (b"{}", 422, "SCHEMA", "observations: this field is required, but missing"),
        (request(observatons=1), 422, "SCHEMA", "observatons: not a field of a request; remove it"),
        (request(observations=[None]), 422, "SCHEMA", "observations[0]: expected an object, got null"),
        (
            request(observations=[observation(speed=True)]),
            422,
            "SCHEMA",
            "observations[0].speed: expected a valid number",
        ),
        (request(observations=[observation(), observation(speed="1")]), 422, "SCHEMA", "observations[1].speed: "),
        (request(observations=[observation(gear=1)]), 422, "SCHEMA", "observations[0].gear: not a field"),
        (request(observations=[observation(sensors=[None] * 5)]), 422, "SCHEMA", "observations[0].sensors[0]: "),
        (request(observations=[]), 422, "SHAPE", "observations: expected at least 1 observation, got 0"),
        (
            request(observations=[observation(sensors=[0] * 4)]),
            422,
            "SHAPE",
            "observations[0].sensors: expected 5 values, got 4",
        ),
        (
            request(observations=[observation(), observation(sensors=[])]),
            422,
            "SHAPE",
            "observations[1].sensors: expected 5",
        ),
        (request(observations=[observation(sensors=[[0]] * 5)]), 422, "SHAPE", "observations[0].sensors[0]: "),
        (
            request(observations=[observation(speed=1e308)]),
            422,
            "OUT_OF_RANGE",
            "observations[0].speed: speed must lie within",
        ),
        (
            request(observations=[observation(sensors=[0, 0, 51, 0, 0])]),
            422,
            "OUT_OF_RANGE",
            "observations[0].sensors[2]: ",
        ),
        (
            request(observations=[observation()] * 8193),
            422,
            "BATCH_TOO_LARGE",
            "expected at most 8192 observations, got 8193",
        ),
        (request(deterministic="yes"), 422, "INVALID_OPTION", "deterministic: expected a valid boolean, got a string"),
        (request(deterministic=1), 422, "INVALID_OPTION", "deterministic: "),
        (request(seed=-1), 422, "INVALID_OPTION", "seed: "),
        (request(seed=2**64), 422, "INVALID_OPTION", "seed: "),
        (request(seed=1.5), 422, "INVALID_OPTION", "seed: "),
        (request(seed=True), 422, "INVALID_OPTION", "seed: "),
    ],
)
def test_refusals(body: bytes, status: int, kind: str, message: str, card: ModelCard) -> None:
    error = refusal(body, card)
    assert (error.status, error.type) == (status, kind)
    assert message in str(error)
    assert len(str(error)) < 500
    assert "sys." not in str(error)  # Python's advice on how to make it accept more


def test_value_below_its_bound_is_refused_and_a_value_on_it_is_not(card: ModelCard) -> None:
    error = refusal(request(observations=[observation(speed=-0.5), observation(sensors=[0, -51, 0, 0, 0])]), card)
    assert [detail["loc"] for detail in error.details] == ["observations[0].speed", "observations[1].sensors[1]"]
    assert error.type == "OUT_OF_RANGE"
    on_them = [
        observation(speed=0, steering=-1, sensors=[-50] * 5),
        observation(speed=60, steering=1, sensors=[50] * 5),
    ]
    assert len(read(request(observations=on_them), card).observations) == 2


def test_limit_of_the_card_holds(card: ModelCard) -> None:
    small = card.model_copy(update={"inference": card.inference.model_copy(update={"max_observations": 2})})
    assert len(read(request(observations=[observation()] * 2), small).observations) == 2
    error = refusal(request(observations=[observation()] * 3), small)
    assert error.type == "BATCH_TOO_LARGE"
    assert str(error) == "observations: expected at most 2 observations, got 3; split the request"


def test_all_findings_are_listed_up_to_ten(card: ModelCard) -> None:
    error = refusal(request(observations=[observation(sensors=[0] * 4)] * 30), card)
    assert [detail["loc"] for detail in error.details] == [f"observations[{row}].sensors" for row in range(10)]
    assert "(and 29 more)" in str(error)


def test_body_of_a_million_faults_is_refused_after_a_few(card: ModelCard) -> None:
    faults = [
        b'{"observations": [' + b'"",' * 10**6 + b'""]}',
        request(observations=[observation(sensors=[""] * 900_000)]),
    ]
    for body in faults:
        error = refusal(body, card)
        assert (error.type, len(error.details)) == ("SCHEMA", 1)
    strangers = {f"x{number}": 0 for number in range(2_000)}
    unknown = json.dumps({"observations": [], **strangers}).encode()
    assert "2001 fields do not fit a request" in str(refusal(unknown, card))
    inside = request(observations=[observation(**strangers)])
    assert "2000 fields do not fit a request" in str(refusal(inside, card))


@pytest.mark.parametrize(
    "body",
    [
        request().replace(b'"speed"', b'"\\u0073peed"'),
        request(x=[""] * 100_000),
        request(x=[[]] * 40_000),
        request(observations=[observation(sensors=[[{}]] * 20_000)]),
    ],
    ids=["escape", "strings", "arrays", "objects"],
)
def test_body_that_cannot_be_a_plain_request_is_read_once(
    body: bytes, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict:
        """The reader of requests, which gets what has been read already and no bytes."""

        validate_python = staticmethod(TypeAdapter(PredictRequest).validate_python)

    monkeypatch.setattr(wire, "_REQUEST", Strict)
    with suppress(RequestError):
        read(body, card)


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "Application/JSON", 'application/json; charset="utf-8"']
)
def test_json_media_types_are_read(content_type: str | None) -> None:
    assert media_type({"content-type": content_type} if content_type else {}) == "application/json"


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        ("text/plain", None),
        ("application/x-www-form-urlencoded", None),
        ("multipart/form-data; boundary=x", None),
        ("application/json; charset=latin-1", None),
        ("application/json", "gzip"),
        ("application/json", "deflate"),
    ],
)
def test_other_media_types_are_refused(content_type: str, encoding: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        media_type({"content-type": content_type, **({"content-encoding": encoding} if encoding else {})})
    assert (caught.value.status, caught.value.type) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert "Content-Type: application/json" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (request()[:-1] + b', "seed": 1, "seed": 1}', "DUPLICATE_KEY", "the key 'seed' is twice"),
        (request().replace(b'"speed"', b'"speed": 2, "speed"'), "DUPLICATE_KEY", "the key 'speed' is twice"),
        (request().replace(b'"speed"', b'"sp\\u0065ed": 2, "speed"'), "DUPLICATE_KEY", "the key 'speed' is twice"),
        (request(x={"a": 1}).replace(b'"a": 1', b'"a": 1, "a": 1'), "DUPLICATE_KEY", "the key 'a' is twice"),
        (request(x=1).replace(b'"x": 1', b'"x": ' + b"[" * 32 + b"]" * 32), "INVALID_JSON", "deeper than 32"),
        (request(x=1).replace(b'"x": 1', b'"x": ' + b"[" * 31 + b"]" * 31), "SCHEMA", "x: not a field"),
        (request(x=1).replace(b'"x": 1', b'"x": ' + b"1" * 4301), "INVALID_JSON", "4301 digits"),
        (request(observations=[observation(speed=10**400)]), "OUT_OF_RANGE", "observations[0].speed: expected"),
        (request(seed=1).replace(b'"seed": 1', b'"seed": [NaN]'), "INVALID_JSON", "NaN is no JSON number"),
        (request(state="x").replace(b'"x"', b'"\\ud800"'), "INVALID_ENCODING", "half a surrogate pair"),
        (request(state="x").replace(b'"x"', b'"\\udc00\\ud800"'), "INVALID_ENCODING", "half a surrogate pair"),
        (request(state="x").replace(b'"x"', b'"\\\\ud800 \\ud83d\\ude00"'), "INVALID_STATE", "state: "),
        (request().decode().encode("utf-32-be"), "INVALID_ENCODING", "looks like utf-32-be"),
    ],
)
def test_what_lenient_readers_accept_is_refused(body: bytes, kind: str, message: str, card: ModelCard) -> None:
    error = refusal(body, card)
    assert error.type == kind, str(error)
    assert message in str(error)


def test_escaped_keys_are_read_to_the_same_bits(card: ModelCard) -> None:
    plain = request(observations=[observation(speed=0.1, sensors=[1e-7, 0.3, 12.123456789, -0.0, 5])])
    escaped = plain.replace(b'"speed"', b'"\\u0073peed"')
    assert read(plain, card).observations.tobytes() == read(escaped, card).observations.tobytes()


def test_body_larger_than_any_request_is_refused_unread(card: ModelCard) -> None:
    error = refusal(b"[" * (max_body_bytes(card) + 1), card)
    assert (error.type, error.details[0]["loc"]) == ("BATCH_TOO_LARGE", "body")


def test_largest_request_generously_written_fits(card: ModelCard) -> None:
    small = card.model_copy(update={"inference": card.inference.model_copy(update={"max_observations": 50})})
    row = observation(speed=1.2345678901234567e-05, sensors=[-1.2345678901234567e-05] * 5)
    body = json.dumps({"observations": [row] * 50, "deterministic": False}, indent=4).encode()
    assert len(read(body, small).observations) == 50


def test_largest_request_of_many_sensors_with_a_line_for_each_fits(card: ModelCard) -> None:
    more = (ObservedField(name=f"more_{n}", unit="m", low=-1.0, high=1.0) for n in range(300))
    wide = card.model_copy(
        update={
            "observation": ObservationSpec(fields=(*card.observation.fields, *more)),
            "inference": card.inference.model_copy(update={"max_observations": 50}),
        }
    )
    row = observation(sensors=[-1.2345678901234567e-105] * 305)
    assert len(read(json.dumps({"observations": [row] * 50}, indent=2).encode(), wide).observations) == 50
