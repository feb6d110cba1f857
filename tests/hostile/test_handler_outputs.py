"""What leaves the handler for any hostile input: only what TorchServe 0.12 takes without harm to its worker.

A list of another length, a status that is no int, a header that is no ASCII str or an exception would cost the whole
batch, or the worker.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ts.context import RequestProcessor
from ts.model_loader import TsModelLoader

from tests.hostile.broken_documents import BROKEN_DOCUMENTS
from tests.hostile.conftest import EXACT
from tests.hostile.corpus import FILES, document
from tests.hostile.subject import Subject
from tests.hostile.wrong_arrays import HUGE_SHAPES, NPY, WRONG_ARRAYS
from tests.hostile.wrong_headers import UNSAFE_VALUES, UNSUPPORTED
from tests.hostile.wrong_requests import WRONG_REQUESTS

JSON = {"Content-Type": "application/json"}
Row = tuple[dict[str, Any], Mapping[str, Any]]
"""Parameters and headers of one request, as TorchServe hands them over."""
STRANGE_TEXTS = [
    "\udcff",
    "\ud800",
    "a\r\nset-cookie: b",
    "a\n",
    "\0",
    "\u212a",
    "\N{ROBOT FACE}",
    "",
    " ",
    "CUDA",
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def ts_service(unpacked: Callable[[str], Path]) -> Iterator[Any]:
    yield TsModelLoader().load("carla_policy", str(unpacked(EXACT)), "policy_handler.py", None, 8)
    sys.modules.pop("policy_handler", None)


def statuses(service: Any, rows: Sequence[Row]) -> list[int]:
    """Handle `rows` in one batch, and check all that leaves the handler."""
    context = service.context
    context.request_ids = {index: f"id-{index}" for index in range(len(rows))}
    context.request_processor = [
        RequestProcessor({**headers, **{name: {"content-type": None} for name in row}}) for row, headers in rows
    ]
    answers = service._entry_point([row for row, _ in rows], context)
    assert isinstance(answers, list)
    assert len(answers) == len(rows)
    found = []
    for index, answer in enumerate(answers):
        assert type(answer) is bytes, rows[index]
        status, phrase = context.get_response_status(index)
        assert type(status) is int
        assert 200 <= status < 500, (rows[index], answer)
        headers = context.get_response_headers(index)
        for text in (phrase, *headers, *headers.values()):
            assert type(text) is str
            assert text.isascii()
            assert text.isprintable(), text
        assert "content-type" in {name.lower() for name in headers}
        assert len(answer) < 6_000_000
        assert "CUDA" not in phrase
        content = json.loads(answer)
        assert content.get("code", 200) == status
        found.append(status)
    return found


def test_bodies(ts_service: Any, served: Subject) -> None:
    table = {**BROKEN_DOCUMENTS, **WRONG_REQUESTS}
    for name, (expected, _, bodies) in table.items():
        rows: list[Row] = [({"body": bytearray(make(served))}, JSON) for make in bodies]
        assert statuses(ts_service, rows) == [expected] * len(bodies), name
    for start in range(0, len(FILES), 64):
        found = statuses(
            ts_service, [({"body": bytearray(document(name))}, JSON) for name in FILES[start : start + 64]]
        )
        assert set(found) <= {400, 422}


def test_arrays(ts_service: Any, served: Subject) -> None:
    makers = [*HUGE_SHAPES, *(make for _, _, bodies in WRONG_ARRAYS.values() for make in bodies)]
    found = statuses(ts_service, [({"body": bytearray(make(served))}, NPY) for make in makers])
    assert set(found) == {400, 422}


def test_types(ts_service: Any, served: Subject) -> None:
    examples = [headers for examples in UNSUPPORTED.values() for headers in examples]
    assert set(statuses(ts_service, [({"body": bytearray(served.good())}, headers) for headers in examples])) == {415}


def test_header_values(ts_service: Any, served: Subject) -> None:
    body = bytearray(served.good())
    values = [
        *STRANGE_TEXTS,
        *(value.decode("latin-1") for value in UNSAFE_VALUES),
        None,
        1,
        True,
        b"bytes",
        {"a": "b"},
        [],
    ]
    names = (
        "traceparent",
        "x-request-id",
        "url_path",
        "describe",
        "explain",
        "content-type",
        "content-encoding",
        "accept",
    )
    for name in (*names, "x-policy-deadline-ms", "x-policy-seed", "x-policy-deterministic", "\udcff", "a\r\nb", ""):
        rows: list[Row] = [({"body": body}, {name: value}) for value in values]
        rows += [({"body": bytearray()}, {name: value}) for value in values]
        rows += [({"body": body}, {**NPY, name: value}) for value in values]
        statuses(ts_service, rows)


@pytest.mark.parametrize("text", STRANGE_TEXTS)
def test_texts_inside_a_body(text: str, ts_service: Any, served: Subject) -> None:
    bodies = [
        json.dumps({text: 1}).encode(),
        json.dumps({"observations": [served.observation(**{text: 1})]}).encode(),
        json.dumps({"observations": [served.observation(speed=text)]}).encode(),
        json.dumps({"observations": text, "seed": text, "state": text}, ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        ),
    ]
    assert set(statuses(ts_service, [({"body": bytearray(body)}, JSON) for body in bodies])) <= {400, 422}


def test_rows_of_another_form(ts_service: Any, served: Subject) -> None:
    good = served.good()
    parts: list[Any] = [None, good.decode(), json.loads(good), [], 1, 1.5, bytearray(), b"", good, bytearray(good)]
    rows: list[Row] = [
        ({name: part}, headers)
        for name in ("body", "data", "", "url_path", "describe")
        for part in parts
        for headers in (JSON, {}, NPY)
    ]
    rows += [({}, headers) for headers in (JSON, {}, {"url_path": "healthz"}, {"describe": "True"})]
    rows += [({"url_path": bytearray(b"healthz"), "body": bytearray(good)}, {"content-type": "multipart/form-data"})]
    assert len(statuses(ts_service, rows)) == len(rows)
    for row in rows:
        if row != ({}, {"describe": "True"}):  # alone, that is what the management port asks for
            statuses(ts_service, [row])
