"""The FastAPI service that the contender `fastapi` runs: pydantic, TorchScript, scikit-learn, under uvicorn.

Written to be fast where that costs no feature: an asynchronous route that needs no thread pool, one pass of scaler and
network per request, and a response that pydantic validates as it does the request.
"""

from __future__ import annotations

import os
import time

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.contenders.plain import PlainPolicy


class Observation(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    speed: float
    steering: float = Field(ge=-1, le=1)
    sensors: list[float]


class PredictRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    observations: list[Observation] = Field(min_length=1, max_length=8192)
    deterministic: bool = True


class Action(BaseModel):
    throttle: float = Field(ge=0, le=1)
    brake: float = Field(ge=0, le=1)
    steer: float = Field(ge=-1, le=1)


class PredictResponse(BaseModel):
    actions: list[Action]
    version: str
    timingMs: float  # noqa: N815 - the wire's name
    deterministic: bool


app = FastAPI(title="CarlaRL Policy-as-a-Service")
policy = PlainPolicy()


@app.get("/healthz")
async def healthz() -> dict[str, str | int]:
    """Which version runs, in which process."""
    return {"status": "ok", "version": policy.version, "pid": os.getpid()}


@app.post("/predict")
async def predict(request: PredictRequest) -> PredictResponse:
    """Actions of all observations in one pass."""
    started = time.perf_counter()
    rows = np.array([[row.speed, row.steering, *row.sensors] for row in request.observations])
    features = policy.scaler.transform(rows).astype(np.float32)
    actions = [Action(throttle=throttle, brake=brake, steer=steer) for throttle, brake, steer in policy.act(features)]
    elapsed_ms = (time.perf_counter() - started) * 1e3
    return PredictResponse(
        actions=actions, version=policy.version, timingMs=elapsed_ms, deterministic=request.deterministic
    )
