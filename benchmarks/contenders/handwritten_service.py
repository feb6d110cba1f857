"""The contender `handwritten`: as fast as a Python programmer can make it, with nothing that is not needed.

granian's RSGI interface without a framework, msgspec for both directions, scaling by two numpy operations, a frozen
network, no versions, no limits, no checks, no metrics.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np

from benchmarks.contenders.plain import PlainPolicy


class Observation(msgspec.Struct):
    speed: float
    steering: float
    sensors: list[float]


class PredictRequest(msgspec.Struct):
    observations: list[Observation]
    deterministic: bool = True


class Action(msgspec.Struct):
    throttle: float
    brake: float
    steer: float


class PredictResponse(msgspec.Struct):
    actions: list[Action]
    version: str
    timingMs: float  # noqa: N815 - the wire's name
    deterministic: bool


policy = PlainPolicy()
mean, scale = policy.scaler.mean_, policy.scaler.scale_
decoder, encoder = msgspec.json.Decoder(PredictRequest), msgspec.json.Encoder()
HEADERS = [("content-type", "application/json")]


async def app(scope: Any, protocol: Any) -> None:
    """Answer one request, whatever its path; a GET asks whether it runs."""
    if scope.method == "GET":
        protocol.response_empty(200, [])
        return
    request = decoder.decode(await protocol())
    started = time.perf_counter()
    rows = np.array([[row.speed, row.steering, *row.sensors] for row in request.observations])
    controls = policy.act(((rows - mean) / scale).astype(np.float32))
    actions = [Action(*row) for row in controls]
    elapsed_ms = (time.perf_counter() - started) * 1e3
    answer = PredictResponse(actions, policy.version, elapsed_ms, request.deterministic)
    protocol.response_bytes(200, HEADERS, encoder.encode(answer))
