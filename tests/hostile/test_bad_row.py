"""One bad request among good ones: the good ones are answered bit for bit as if they were alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import numpy as np

from carla_policy.batch import Request
from carla_policy.service import PolicyService
from tests.hostile.answering import JSON, actions, answer_all, shown, told
from tests.hostile.broken_documents import BROKEN_DOCUMENTS
from tests.hostile.http_client import Target
from tests.hostile.subject import Subject
from tests.hostile.wrong_arrays import NPY, WRONG_ARRAYS
from tests.hostile.wrong_headers import UNSUPPORTED
from tests.hostile.wrong_requests import WRONG_REQUESTS

BATCHES, SIZE = 10_000, 8
LONGEST = 2_000
"""Bytes of a bad request; the longer ones have tests of their own."""
Bad = tuple[Request, int, str]


def bad_requests(subject: Subject) -> Iterator[Bad]:
    """One request of every kind in the table, and what it is answered with."""
    for headers, table in ((JSON, BROKEN_DOCUMENTS | WRONG_REQUESTS), (NPY, WRONG_ARRAYS)):
        for status, kind, bodies in table.values():
            for body in (make(subject) for make in bodies):
                if len(body) <= LONGEST:
                    yield Request(body, headers), status, kind
    for headers in (headers for examples in UNSUPPORTED.values() for headers in examples):
        yield Request(subject.good(), headers), 415, "UNSUPPORTED_MEDIA_TYPE"


def test_one_bad_row_in_eight_in_ten_thousand_batches(service: PolicyService, subject: Subject) -> None:
    rng = np.random.default_rng(8)
    bad = list(bad_requests(subject))
    good = [Request(subject.good(row), JSON) for row in range(len(subject.rows) - 1)]
    alone = [actions(answer_all(service, [bytes(request.body)])[0]) for request in good]
    for number in range(BATCHES):
        request, status, kind = bad[number % len(bad)]
        rows, place = rng.integers(len(good), size=SIZE - 1), int(rng.integers(SIZE))
        batch = [good[row] for row in rows]
        batch.insert(place, request)
        answers = service.encode(service.infer(service.parse(batch)))
        refused = answers.pop(place)
        assert told(refused) == (status, kind), shown(bytes(request.body))
        assert [answer.status for answer in answers] == [200] * (SIZE - 1), shown(bytes(request.body))
        assert [json.loads(answer.body)["actions"] for answer in answers] == [alone[row] for row in rows]


def test_one_bad_client_in_eight_over_http(crowded: Target, served: Subject) -> None:
    bad = list(bad_requests(served))
    expected = [crowded.ask(served.good(row)).actions for row in range(SIZE)]
    workers, wrong = crowded.workers(), []
    together = threading.Barrier(SIZE)

    def client(number: int) -> None:
        for turn in range(len(bad)):
            together.wait(timeout=60)
            if number:
                reply = crowded.ask(served.good(number))
                if reply.status != 200 or reply.actions != expected[number]:
                    wrong.append((number, turn, reply))
            else:
                request, status, kind = bad[turn]
                reply = crowded.ask(bytes(request.body), request.headers)
                if reply.told != (status, kind):
                    wrong.append((shown(bytes(request.body)), request.headers, reply))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert crowded.workers() == workers
