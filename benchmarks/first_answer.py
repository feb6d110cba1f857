"""Asks a server from its launch on until it is answered: it may answer before it calls itself ready."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from benchmarks.bench.client import Client

POLL_S = 0.005


class FirstAnswer(threading.Thread):
    """Start it at the launch; `launched` and `answered` are `time.perf_counter()`'s. `stop` gives up."""

    def __init__(self, url: str, body: bytes) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._body = body
        self.launched = time.perf_counter()
        self.answered = 0.0
        self.stop = threading.Event()

    def run(self) -> None:
        with Client(self._url) as client:
            request = client.request(self._body)
            while not self.stop.wait(POLL_S):
                with suppress(OSError, ValueError):
                    if client.send(request).status == 200:
                        self.answered = time.perf_counter()
                        return
