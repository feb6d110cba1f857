"""The bodies of requests and answers, as `/openapi.json` shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """A body in which an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ResetRequest(Request):
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="The same seed begins the same episode.")
    options: dict[str, Any] = Field(default_factory=dict, description="What the simulator's own reset takes.")


class StepRequest(Request):
    action: Any = Field(description="An element of the action space.")
    episode_id: str | None = Field(None, max_length=64, description="Refused if another episode has begun since.")
    step: int | None = Field(
        None, ge=1, description="The number of this step, 1 for the first: a repeat of the last one is not done again."
    )


class SnapshotRequest(Request):
    name: str | None = Field(None, max_length=200)


class RestoreRequest(Request):
    snapshot_id: str = Field(max_length=64)


class SessionRequest(Request):
    name: str | None = Field(None, max_length=200, description="Who it is, for those who are refused meanwhile.")
    idle_timeout_s: float = Field(300.0, gt=0, le=86400, description="It ends after so long without a request.")


class ErrorDetail(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class Error(BaseModel):
    code: int
    type: str
    message: str
    details: list[ErrorDetail]


class Observed(BaseModel):
    observation: Any
    info: dict[str, Any]
    info_left_out: list[str] = Field(description="Where `info` held something that has no JSON form.")
    episode_id: str
    step: int


class Stepped(Observed):
    reward: float
    terminated: bool
    truncated: bool


class Restored(Observed):
    ms: float = Field(description="What restoring took in the simulator, in milliseconds.")


class SnapshotTaken(BaseModel):
    snapshot_id: str
    name: str | None
    episode_id: str
    step: int
    created: str
    ms: float = Field(description="What the simulator took for it, in milliseconds.")


class SnapshotEntry(BaseModel):
    snapshot_id: str
    name: str | None
    episode_id: str
    step: int
    created: str


class SnapshotList(BaseModel):
    snapshots: list[SnapshotEntry]


class SessionEntry(BaseModel):
    session_id: str
    name: str | None
    opened: str
    idle_timeout_s: float
    idle_s: float


class SessionList(BaseModel):
    sessions: list[SessionEntry] = Field(description="The open one, or none.")


class Health(BaseModel):
    status: str
    simulator: str
    reason: str | None
    episode_id: str | None
    step: int | None
    session_id: str | None
    uptime_s: float
    version: str


class SnapshotSupport(BaseModel):
    supported: bool
    reason: str | None = Field(description="Why there are none.")
    restores: list[str]
    loses: list[str]
    limit: int


class Info(BaseModel):
    simulator: str
    environment: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    step_s: float | None = Field(description="Simulated seconds of one step of this service, where known.")
    max_steps: int | None
    frame_skip: int
    renders: bool
    snapshots: SnapshotSupport
    time_limit_s: float
    details: dict[str, Any]
    version: str
