"""Requests and answers as .npy arrays: the same actions as by JSON, and nothing that a pickle could reach."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from carla_policy.answers import Answer
from carla_policy.batch import Request
from carla_policy.errors import InvalidState
from carla_policy.loading import LoadedPolicy
from carla_policy.npy import parse_npy
from carla_policy.service import PolicyService
from carla_policy.specs import RecurrentSpec
from carla_policy_tools.client import request_body
from tests.synthetic import observations

ROWS = observations(6, 5)
NPY = {"content-type": "application/x-npy"}


@pytest.fixture
def service(synthetic: LoadedPolicy) -> PolicyService:
    return PolicyService(synthetic)


def saved(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def answer(service: PolicyService, body: bytes, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    (answered,) = service.encode(service.infer(service.parse([Request(body, {**NPY, **named})])))
    return answered


def by_json(service: PolicyService, **options: Any) -> Any:
    body = json.dumps(request_body(ROWS, **options)).encode()
    (answered,) = service.encode(service.infer(service.parse([Request(body)])))
    actions = json.loads(answered.body)["actions"]
    return np.array([[row["throttle"], row["brake"], row["steer"]] for row in actions], np.float32)


@pytest.mark.parametrize("order", ["C", "F"])
def test_answer_is_an_array_with_the_bits_of_the_json_answer(service: PolicyService, order: Any) -> None:
    answered = answer(service, saved(np.asarray(ROWS, order=order)))
    assert (answered.status, answered.content_type) == (200, "application/x-npy")
    controls = np.load(io.BytesIO(answered.body), allow_pickle=False)
    assert (controls.dtype, controls.shape) == (np.float32, (6, 3))
    assert controls.tobytes() == by_json(service).tobytes()


def test_sampled_answer_carries_the_seed_that_reproduces_it(service: PolicyService) -> None:
    drawn = answer(service, saved(ROWS), x_policy_deterministic="false")
    seed = drawn.headers["x-policy-seed"]
    again = answer(service, saved(ROWS), x_policy_deterministic="False", x_policy_seed=seed)
    assert again.body == drawn.body
    assert np.load(io.BytesIO(again.body)).tobytes() == by_json(service, deterministic=False, seed=int(seed)).tobytes()


HUGE = saved(ROWS).replace(b"(6, 7), ", b"(8192,7)", 1)
PADDED = saved(ROWS)[:8] + (1000).to_bytes(2, "little") + saved(ROWS)[10:127].ljust(999) + b"\n" + saved(ROWS)[128:]
DEEP = b"\x93NUMPY\x01\x00" + (400).to_bytes(2, "little") + b"(" * 400


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"", 400, "EMPTY_BODY", "got nothing"),
        (b"{}", 400, "INVALID_NPY", "not a .npy file"),
        (saved(ROWS)[:-1], 400, "INVALID_NPY", "announces 168 bytes of numbers, got 167"),
        (saved(ROWS) + b"x", 400, "INVALID_NPY", "announces 168 bytes of numbers, got 169"),
        (saved(ROWS)[:40], 400, "INVALID_NPY", "not a .npy file"),
        (DEEP, 400, "INVALID_NPY", "not a .npy file"),
        (PADDED, 400, "INVALID_NPY", "not a .npy file"),
        (saved(ROWS).replace(b"\x01\x00", b"\x09\x00", 1), 400, "INVALID_NPY", "version"),
        (HUGE, 400, "INVALID_NPY", "announces 229376 bytes of numbers, got 168"),
        (saved(np.array([["x", {}]], object), allow_pickle=True), 422, "SCHEMA", "got 'object'"),
        (saved(ROWS.astype(np.float64)), 422, "SCHEMA", "got 'float64'"),
        (saved(ROWS.astype(">f4")), 422, "SCHEMA", "got '>f4'"),
        (saved(np.zeros(7, np.float32)), 422, "SHAPE", "expected an array [rows, 7]"),
        (saved(ROWS[:, :6]), 422, "SHAPE", "got [6, 6]"),
        (saved(ROWS[None]), 422, "SHAPE", "got [1, 6, 7]"),
        (saved(ROWS[:0]), 422, "SHAPE", "at least 1 observation"),
        (saved(np.zeros((8193, 7), np.float32)), 422, "BATCH_TOO_LARGE", "at most 8192"),
        (saved(np.full((1, 7), np.nan, np.float32)), 422, "OUT_OF_RANGE", "observations[0].speed"),
        (saved(np.full((1, 7), 1e30, np.float32)), 422, "OUT_OF_RANGE", "observations[0].speed"),
    ],
)
def test_refusals(service: PolicyService, body: bytes, status: int, kind: str, message: str) -> None:
    answered = answer(service, body)
    error = json.loads(answered.body)
    assert (answered.status, answered.content_type, error["type"]) == (status, "application/json", kind)
    assert message in error["message"]
    assert len(answered.body) < 2_000


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x_policy_deterministic", "1"),
        ("x_policy_deterministic", ""),
        ("x_policy_deterministic", "true" * 5000),
        ("x_policy_seed", "-1"),
        ("x_policy_seed", "1_0"),
        ("x_policy_seed", "\u0661"),
        ("x_policy_seed", str(2**64)),
        ("x_policy_seed", "9" * 5000),
    ],
)
def test_options_that_cannot_be_used_are_named(service: PolicyService, header: str, value: str) -> None:
    error = json.loads(answer(service, saved(ROWS), **{header: value}).body)
    assert error["type"] == "INVALID_OPTION"
    assert error["details"][0]["loc"] == header.replace("_", "-")
    assert len(error["message"]) < 200


def test_recurrent_version_takes_no_arrays(synthetic: LoadedPolicy) -> None:
    card = synthetic.policy.card.model_copy(update={"recurrent": RecurrentSpec(state_size=4)})
    with pytest.raises(InvalidState, match="state: this version is recurrent"):
        parse_npy(saved(ROWS), {}, card)
