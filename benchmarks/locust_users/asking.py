"""A user who knows the versions that are asked, sends requests to them and checks every answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from locust import FastHttpUser
from locust.exception import StopTest

from benchmarks.locust_users.answers import Reply, WrongAnswer
from benchmarks.locust_users.options import PROMOTED, parse_shares
from benchmarks.locust_users.served import NotServed, promoted, served
from carla_policy_tools.urls import prediction_url

TIMEOUT_S = 30.0

Checked = TypeVar("Checked")


class PolicyUser(FastHttpUser):  # type: ignore[misc,unused-ignore]
    """Who knows the versions that are asked, sends requests to them and checks every answer."""

    abstract = True
    network_timeout = connection_timeout = TIMEOUT_S
    concurrency = 1

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.base: str = self.host or ""
        self.options = environment.parsed_options
        self.shares = parse_shares(self.options.versions)
        try:
            self.prepare(self.base, self.options)
            self.promoted = served(self.base, promoted(self.base), self.options.store)
        except NotServed as error:
            raise StopTest(str(error)) from None

    @classmethod
    def prepare(cls, base: str, options: Any) -> None:
        """Ask the server at `base` what there is to know, and make what is sent; `NotServed` if it does not say."""
        served(base, promoted(base), options.store)

    @classmethod
    def forget(cls) -> None:
        """What was prepared: another server, or other options, may be next."""
        cls._turns = None

    _turns: Any = None
    """What users of the class take turns in, in one process."""

    def answering(self, version: str | None) -> Collection[str]:
        """Who may answer a request for `version`, or for none."""
        return {version} if version else {self.promoted.version, *self.shares} - {PROMOTED}

    def ask(
        self,
        version: str | None,
        body: Any,
        headers: Mapping[str, str],
        check: Callable[[Reply], Checked],
        *,
        name: str,
        due: float | None = None,
        resource: str = "",
    ) -> Checked | None:
        """What `check` makes of the answer; `None`, and a failed request, where it raises `WrongAnswer`.

        The latency counts from when the request was `due` (`time.perf_counter()`), from now unless given.
        """
        url = prediction_url(self.base, version) + resource
        late_s = time.perf_counter() - due if due is not None else 0.0
        sending = self.client.post(url, data=body, headers=dict(headers), name=name, catch_response=True)
        with sending as response:
            response.request_meta["response_time"] += late_s * 1e3
            if not response.status_code:
                return None  # there was no answer, and Locust says why
            names = {key.lower(): value for key, value in response.headers.items()}
            try:
                checked = check(Reply(response.status_code, names, response.content or b""))
            except WrongAnswer as error:
                response.failure(str(error))
                return None
            response.success()
            return checked
