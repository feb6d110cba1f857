"""The handler under TorchServe's own loader and context, without a server."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ts.context import RequestProcessor
from ts.model_loader import TsModelLoader

import policy_handler
from carla_policy_tools.client import request_body
from tests.conftest import SHIPPED
from tests.test_replay import rename_in_manifest

VERSION = SHIPPED[0]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def ts_service(unpacked: Callable[[str], Path]) -> Iterator[Any]:
    yield TsModelLoader().load("carla_policy", str(unpacked(VERSION)), "policy_handler.py", None, 8)
    sys.modules.pop("policy_handler", None)


def handle(service: Any, rows: list[tuple[dict[str, Any], dict[str, str]]]) -> list[tuple[int, dict[str, str], Any]]:
    """Status, response headers and decoded body of each row, as TorchServe would send them."""
    context = service.context
    context.request_ids = {index: f"id-{index}" for index in range(len(rows))}
    context.request_processor = [
        RequestProcessor({**headers, **{name: {"content-type": None} for name in row}}) for row, headers in rows
    ]
    bodies = service._entry_point([row for row, _ in rows], context)
    return [
        (context.get_response_status(index)[0], context.get_response_headers(index), _decoded(body))
        for index, body in enumerate(bodies)
    ]


def _decoded(body: Any) -> Any:
    if not isinstance(body, bytes):
        return body
    return np.load(io.BytesIO(body), allow_pickle=False) if body.startswith(b"\x93NUMPY") else json.loads(body)


@pytest.fixture(scope="module")
def body(ts_service: Any) -> bytearray:
    golden = ts_service._entry_point.__self__.service.loaded.golden
    return bytearray(json.dumps(request_body(golden.observations[:1])).encode())


def test_each_row_has_its_own_status_and_headers(ts_service: Any, body: bytearray) -> None:
    answers = handle(
        ts_service,
        [
            ({"body": body}, JSON),
            ({"body": bytearray(b"{")}, JSON),
            ({"body": body}, {"Content-Type": "text/plain"}),
            ({"body": body}, {"CONTENT-TYPE": "Application/JSON"}),
            ({}, {"content-type": "application/x-www-form-urlencoded"}),
            ({"body": bytearray()}, {"url_path": "healthz"}),
        ],
    )
    assert [status for status, _, _ in answers] == [200, 400, 415, 200, 415, 200]
    assert all(headers["content-type"] == "application/json" for _, headers, _ in answers)
    assert all(headers["x-policy-version"] == VERSION for _, headers, _ in answers)
    assert answers[1][2]["requestId"] == "id-1"
    assert answers[0][2]["actions"] == answers[3][2]["actions"]


def test_drain_file_makes_the_worker_refuse_new_work(
    ts_service: Any, body: bytearray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sys.modules[type(ts_service._entry_point.__self__).__module__]
    monkeypatch.setattr(module, "DRAIN_FILE", tmp_path / "draining")
    assert [status for status, _, _ in handle(ts_service, [({"body": body}, JSON)])] == [200]
    (tmp_path / "draining").touch()
    assert [status for status, _, _ in handle(ts_service, [({"body": body}, JSON)])] == [503]


def test_describe_answers_the_metadata(ts_service: Any) -> None:
    ((_, _, described),) = handle(ts_service, [({}, {"describe": "True"})])
    ((_, _, metadata),) = handle(ts_service, [({"body": bytearray()}, {"url_path": "metadata"})])
    assert described == metadata


def test_client_that_sends_a_describe_header_gets_its_prediction(ts_service: Any, body: bytearray) -> None:
    answers = handle(ts_service, [({"body": body}, {**JSON, "describe": "True"}), ({"body": body}, JSON)])
    assert answers[0][2]["actions"] == answers[1][2]["actions"]
    form = {"content-type": "application/x-www-form-urlencoded", "describe": "True"}
    assert [status for status, _, _ in handle(ts_service, [({}, form)])] == [415]


def test_trace_headers_come_back_and_nothing_unsafe_does(ts_service: Any, body: bytearray) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answers = handle(
        ts_service,
        [
            ({"body": body}, {**JSON, "Traceparent": trace, "X-Request-Id": "car-7:42"}),
            ({"body": body}, {**JSON, "traceparent": "a\r\nset-cookie: b", "x-request-id": "ü"}),
        ],
    )
    assert answers[0][1]["traceparent"] == trace
    assert answers[0][1]["x-client-request-id"] == "car-7:42"
    assert {"traceparent", "x-client-request-id"}.isdisjoint(answers[1][1])


def test_part_of_a_request_that_is_named_like_a_header_is_not_one(ts_service: Any, body: bytearray) -> None:
    ((status, _, _),) = handle(ts_service, [({"body": body, "url_path": bytearray(b"healthz")}, JSON)])
    assert status == 200


def test_form_whose_field_is_named_content_type_is_a_form(ts_service: Any, body: bytearray) -> None:
    row = {"body": body, "content-type": bytearray(b"application/json")}
    assert [status for status, _, _ in handle(ts_service, [(row, {"content-type": "multipart/form-data"})])] == [415]


@pytest.mark.parametrize("name", ["url_path", "URL_PATH"])
def test_path_that_a_client_sends_as_a_header_does_not_turn_a_prediction_into_something_else(
    ts_service: Any, body: bytearray, name: str
) -> None:
    answers = handle(ts_service, [({"body": body}, {**JSON, name: "metadata"}), ({"body": body}, JSON)])
    assert answers[0][2]["actions"] == answers[1][2]["actions"]


def test_arrays_are_answered_as_arrays(ts_service: Any) -> None:
    golden = ts_service._entry_point.__self__.service.loaded.golden
    file = io.BytesIO()
    np.save(file, golden.observations[:3])
    headers = {"content-type": "application/x-npy"}
    ((status, answered, array),) = handle(ts_service, [({"body": bytearray(file.getvalue())}, headers)])
    assert (status, answered["content-type"]) == (200, "application/x-npy")
    assert array.shape == (3, 3)


def test_answer_that_the_server_could_not_send_never_leaves(
    ts_service: Any, body: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ts_service._entry_point.__self__.service, "_max_answer_bytes", 40)
    ((status, _, error),) = handle(ts_service, [({"body": body}, JSON)])
    assert (status, error["type"]) == (422, "BATCH_TOO_LARGE")
    assert "split the request" in error["message"]


@pytest.mark.usefixtures("ts_service")
def test_worker_settings() -> None:
    assert os.environ["TS_DECODE_INPUT_REQUEST"] == "false"
    assert torch.get_num_threads() == 1
    assert torch.get_float32_matmul_precision() == "highest"


def test_version_that_fails_its_self_test_raises_the_error_that_torchserve_rolls_back(
    unpacked: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(unpacked(VERSION), tmp_path / "model"))
    golden = dict(np.load(directory / "golden.npz"))
    golden["mean"] = golden["mean"] + np.float32(1)
    np.savez(directory / "golden.npz", **golden)
    with pytest.raises(ValueError, match=r"golden\.npz: content has changed"):
        TsModelLoader().load("carla_policy", str(directory), "policy_handler.py", None, 1)


def test_describe_header_of_a_client_never_answers_for_a_batch(ts_service: Any, body: bytearray) -> None:
    answers = handle(ts_service, [({}, {"describe": "True"}), ({"body": body}, JSON)])
    assert [status for status, _, _ in answers] == [400, 200]


def test_client_alone_that_sends_a_describe_header_gets_its_prediction(ts_service: Any, body: bytearray) -> None:
    for headers in ({**JSON, "describe": "True"}, {"describe": "True"}):
        ((_, _, answer),) = handle(ts_service, [({"body": body}, headers)])
        assert "actions" in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({**JSON, "Content-Type": "application/json"}, 415),
        ({**JSON, "X-Policy-Seed": "1", "x-policy-seed": "1"}, 422),
        ({**JSON, "X-Request-Start": "t=1", "x-request-start": "t=1"}, 422),
        ({**JSON, "Accept": "a", "accept": "b"}, 200),
    ],
)
def test_header_in_two_spellings_is_refused_where_the_answer_depends_on_it(
    ts_service: Any, body: bytearray, headers: dict[str, str], status: int
) -> None:
    answers = handle(ts_service, [({"body": body}, headers), ({"body": body}, JSON)])
    assert [status for status, _, _ in answers] == [status, 200]


@pytest.mark.parametrize(
    ("name", "kind"), [("content-type", "UNSUPPORTED_MEDIA_TYPE"), ("x-policy-deadline-ms", "INVALID_OPTION")]
)
def test_header_is_repeated_in_an_error_in_ascii_and_shortened(
    ts_service: Any, body: bytearray, name: str, kind: str
) -> None:
    ((_, _, answer),) = handle(ts_service, [({"body": body}, {**JSON, name: "caf\xe9 \u202e" * 1_000})])
    assert answer["type"] == kind
    assert answer["message"].isascii()
    assert "caf\\xe9" in answer["message"]
    assert len(answer["message"]) < 400


def test_request_without_a_body_is_a_describe_job_only_by_its_header_and_without_a_path(ts_service: Any) -> None:
    ((status, _, error),) = handle(ts_service, [({}, {})])
    assert (status, error["type"]) == (400, "EMPTY_BODY")
    ((status, _, answer),) = handle(ts_service, [({}, {"describe": "True", "url_path": "healthz"})])
    ((_, _, expected),) = handle(ts_service, [({}, {"url_path": "healthz"})])
    assert (status, answer.keys()) == (200, expected.keys())


@pytest.mark.parametrize("name", ["traceparent", "x-request-id", "x-policy-seed", "content-encoding"])
def test_part_whose_name_is_that_of_a_header_is_none(ts_service: Any, body: bytearray, name: str) -> None:
    answers = handle(ts_service, [({name: body}, {}), ({"body": body}, JSON)])
    assert [status for status, _, _ in answers] == [400, 200]


def test_compressed_body_is_refused(ts_service: Any, body: bytearray) -> None:
    ((status, _, _),) = handle(ts_service, [({"body": body}, {**JSON, "Content-Encoding": "gzip"})])
    assert status == 415


def test_worker_has_one_torch_thread(unpacked: Callable[[str], Path]) -> None:
    torch.set_num_threads(2)
    try:
        TsModelLoader().load("carla_policy", str(unpacked(VERSION)), "policy_handler.py", None, 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_manifest_of_another_version_stops_the_load(unpacked: Callable[[str], Path]) -> None:
    directory = unpacked(VERSION)
    rename_in_manifest(directory, modelVersion="v9.9.9")
    with pytest.raises(ValueError, match=rf"MANIFEST\.json: says v9\.9\.9, the card says {VERSION}"):
        TsModelLoader().load("carla_policy", str(directory), "policy_handler.py", None, 1)


def test_any_failure_to_load_is_one_that_torchserve_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(policy_handler, "load_policy", fail)
    with pytest.raises(ValueError, match="CUDA error"):
        policy_handler.PolicyHandler().initialize(
            SimpleNamespace(
                manifest={"model": {"modelName": "carla_policy", "modelVersion": "v1.0.0"}},
                system_properties={"model_dir": "."},
            )
        )
