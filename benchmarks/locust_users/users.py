"""The classes of users: who drives, who evaluates, who mixes versions, and who sends what must be refused."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from locust import constant_pacing

from benchmarks.locust_users.answers import Reply, WrongAnswer, check_actions, check_array, check_refusal
from benchmarks.locust_users.asking import TIMEOUT_S, PolicyUser
from benchmarks.locust_users.faults import Fault, faults
from benchmarks.locust_users.options import PROMOTED, by_turns, parse_shares
from benchmarks.locust_users.served import Served, promoted, served
from carla_policy.media import JSON_MEDIA_TYPE, NPY_MEDIA_TYPE
from carla_policy_tools.client import request_body
from carla_policy_tools.urls import prediction_url

HERTZ = 20.0
EPISODE_STEPS = 200
"""Ten seconds."""
ROWS = (1, 64, 1_024, 8_192)
HUGE_BYTES = 1 << 40
JSON = {"Content-Type": JSON_MEDIA_TYPE}
NPY = {"Content-Type": NPY_MEDIA_TYPE}


class Vehicle(PolicyUser):
    """Asks for one action twenty times a second, over one connection.

    The times at which requests are due are fixed when it starts. One that the answer before has held up leaves late,
    and the delay counts as latency.
    """

    weight = 20
    episode_steps = EPISODE_STEPS

    def on_start(self) -> None:
        self._vehicle = uuid.uuid4().hex
        self._step = 0
        time.sleep(random.random() / HERTZ)  # not all at the same moment
        self._due = time.perf_counter()
        self.begin_episode()

    def wait_time(self) -> float:
        """Seconds until the next request is due."""
        self._due += 1 / HERTZ
        return max(0.0, self._due - time.perf_counter())

    def choose(self) -> str | None:
        """The version that this vehicle asks for an episode, `None` for none by name."""
        return None

    def begin_episode(self) -> None:
        self._version = self.choose()
        self._served = self.promoted if self._version is None else served(self.base, self._version, self.options.store)
        self._memory: str | None = None
        self._headers = {**JSON, "x-vehicle-id": self._vehicle, "x-episode-id": uuid.uuid4().hex}
        if self.options.deadline_ms:
            self._headers["x-policy-deadline-ms"] = str(self.options.deadline_ms)
        self._start = random.randrange(len(self._served.pool))

    def drive(self) -> None:
        if self._step and self._step % self.episode_steps == 0:
            self.begin_episode()
        who = self._served
        request = request_body(who.rows(1, self._start + self._step))
        if who.is_recurrent:
            request |= {"state": self._memory} if self._memory else {"episode_start": True}
        versions = self.answering(self._version)
        answer = self.ask(
            self._version,
            json.dumps(request).encode(),
            self._headers,
            lambda reply: check_actions(reply, rows=1, versions=versions, recurrent=who.is_recurrent),
            name=f"{type(self).__name__} {self._version or PROMOTED}",
            due=self._due,
        )
        self._memory = answer.get("state") if answer else None
        self._step += 1

    tasks = [drive]


class MixedFleet(Vehicle):
    """Vehicles that ask versions by name, and the promoted one, in the shares of `--versions`; a second an episode."""

    weight = 5
    episode_steps = round(HERTZ)

    @classmethod
    def prepare(cls, base: str, options: Any) -> None:
        super().prepare(base, options)
        shares = parse_shares(options.versions) or {promoted(base): 1.0, PROMOTED: 1.0}
        for version in {*shares} - {PROMOTED}:
            served(base, version, options.store)
        cls._turns = cls._turns or by_turns(shares)

    def choose(self) -> str | None:
        name = next(self._turns)
        return None if name == PROMOTED else name


class Evaluator(PolicyUser):
    """Asks the promoted version for many actions at a time, as JSON and as arrays, up to what its card allows."""

    weight = 1
    wait_time = constant_pacing(0.5)

    @classmethod
    def prepare(cls, base: str, options: Any) -> None:
        super().prepare(base, options)
        cls._turns = cls._turns or itertools.cycle(list(cls._requests(served(base, promoted(base), options.store))))

    @staticmethod
    def _requests(who: Served) -> Iterator[tuple[str, int, Mapping[str, str], bytes]]:
        for count in sorted({min(rows, who.most_rows) for rows in ROWS}):
            request = request_body(who.rows(count), episode_start=who.is_recurrent)
            yield "json", count, JSON, json.dumps(request, separators=(",", ":")).encode()
            if not who.is_recurrent:
                file = io.BytesIO()
                np.save(file, who.rows(count))
                yield "npy", count, NPY, file.getvalue()

    def evaluate(self) -> None:
        form, rows, headers, body = next(self._turns)
        name, versions = f"Evaluator {form} {rows:,} rows", self.answering(None)
        if form == "npy":
            self.ask(None, body, headers, lambda reply: check_array(reply, rows=rows, versions=versions), name=name)
            return
        recurrent = self.promoted.is_recurrent
        self.ask(
            None,
            body,
            headers,
            lambda reply: check_actions(reply, rows=rows, versions=versions, recurrent=recurrent),
            name=name,
        )

    tasks = [evaluate]


class FaultyClient(PolicyUser):
    """Sends what is malformed, oversized, mislabelled or hostile; each must get its own status and type."""

    weight = 1
    wait_time = constant_pacing(1 / HERTZ)

    @classmethod
    def prepare(cls, base: str, options: Any) -> None:
        super().prepare(base, options)
        cls._turns = cls._turns or itertools.cycle([*faults(served(base, promoted(base), options.store)), None])

    def err(self) -> None:
        fault: Fault | None = next(self._turns)
        if fault is None:
            self._announce()
            return
        self.ask(
            None if not fault.resource else self.promoted.version,
            fault.body,
            fault.headers,
            lambda reply: _refused(fault, reply),
            name=f"FaultyClient {fault.status} {fault.kind}",
            resource=fault.resource,
        )

    tasks = [err]

    def _announce(self) -> None:
        """A body of a terabyte is announced, not sent: the front end refuses it unread."""
        url, failure = urlsplit(self.base), None
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        begun, connection = time.perf_counter(), kind(url.netloc, timeout=TIMEOUT_S)
        try:
            connection.putrequest("POST", url.path.rstrip("/") + prediction_url("", None))
            connection.putheader("content-type", JSON_MEDIA_TYPE)
            connection.putheader("content-length", str(HUGE_BYTES))
            connection.endheaders()
            response = connection.getresponse()
            check_refusal(Reply(response.status, {}, response.read()), 413, None)
        except (OSError, http.client.HTTPException, WrongAnswer) as error:
            failure = error
        finally:
            connection.close()
        self.environment.events.request.fire(
            request_type="POST",
            name="FaultyClient 413",
            response_time=(time.perf_counter() - begun) * 1e3,
            response_length=0,
            exception=failure,
            context={},
        )


def _refused(fault: Fault, reply: Reply) -> None:
    try:
        check_refusal(reply, fault.status, fault.kind)
    except WrongAnswer as error:
        raise WrongAnswer(f"{fault.name}: {error}") from None
