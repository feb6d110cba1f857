"""A second locustfile for tests: ends a run once every name in `UNTIL_SEEN` has had its number of requests.

Tests ask for so many requests and not for so many seconds, as how many fit into a second depends on the machine.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import gevent
from locust import events
from locust.runners import WorkerRunner

WANTED = Counter(json.loads(os.environ["UNTIL_SEEN"]))
POLL_S = 0.05


def _watch(environment: Any, **_: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_quit_when_seen, environment)


def _quit_when_seen(environment: Any) -> None:
    while WANTED - Counter({name: entry.num_requests for (name, _), entry in environment.stats.entries.items()}):
        gevent.sleep(POLL_S)
    environment.runner.quit()


events.init.add_listener(_watch)
