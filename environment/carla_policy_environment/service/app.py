"""The service over HTTP and WebSocket: which path does what."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Response, WebSocket

from carla_policy_environment import __version__
from carla_policy_environment.service import errors, models
from carla_policy_environment.service.body_limit import BodyLimit
from carla_policy_environment.service.episodes import EnvironmentService
from carla_policy_environment.service.errors import dumps, json_response

SessionHeader = Annotated[
    str | None, Header(alias="x-session-id", max_length=64, description="Needed while a session is open.")
]
ResetBody = Annotated[models.ResetRequest, Body(default_factory=models.ResetRequest)]
SnapshotBody = Annotated[models.SnapshotRequest, Body(default_factory=models.SnapshotRequest)]
SessionBody = Annotated[models.SessionRequest, Body(default_factory=models.SessionRequest)]
REFUSALS: dict[int | str, dict[str, Any]] = {
    409: {"model": models.Error, "description": "Does not fit the present episode, session or snapshots."},
    413: {"model": models.Error, "description": "The body is too large."},
    422: {"model": models.Error, "description": "The request, or an element of the action, is invalid."},
    500: {"model": models.Error, "description": "The simulator raised; `type` is what."},
    503: {"model": models.Error, "description": "The simulator is broken or away, or requests before took too long."},
    504: {"model": models.Error, "description": "The simulator takes longer than its time limit."},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": models.Error, "description": "There is no such thing."}}
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


def make_app(service: EnvironmentService) -> FastAPI:
    """The ASGI application of `service`."""
    app = FastAPI(
        title="Environment service",
        version=__version__,
        description="One driving simulator: episodes, exclusive sessions, snapshots and telemetry.",
        responses=REFUSALS,
    )
    app.add_middleware(BodyLimit, max_bytes=service.settings.max_body_bytes)
    errors.install(app)
    _add_state(app, service)
    _add_snapshots(app, service)
    _add_sessions(app, service)
    _add_telemetry(app, service)
    return app


def _add_state(app: FastAPI, service: EnvironmentService) -> None:
    @app.get("/health", response_model=models.Health, responses={503: {"model": models.Health}})
    async def health() -> Response:
        """Whether the simulator works: 200, or 503 with the reason."""
        content = service.health()
        return json_response(dumps(content), 503 if content["reason"] else 200)

    @app.get("/info", response_model=models.Info)
    async def info() -> Response:
        """The simulator's spaces and what it can do."""
        return json_response(dumps(service.info()))

    @app.post("/reset", response_model=models.Observed)
    async def reset(request: ResetBody, x_session_id: SessionHeader = None) -> Response:
        """Begin an episode."""
        return json_response(await service.reset(request.seed, request.options, x_session_id))

    @app.post("/step", response_model=models.Stepped)
    async def step(request: models.StepRequest, x_session_id: SessionHeader = None) -> Response:
        """Go one step on."""
        return json_response(await service.step(request.action, request.episode_id, request.step, x_session_id))

    @app.get("/observation", response_model=models.Observed)
    async def observation() -> Response:
        """What the last reset, step or restore answered with."""
        return json_response(dumps(service.observation()))

    @app.get("/render", response_class=Response, responses={**PNG, **UNKNOWN})
    async def render() -> Response:
        """The present state as an image."""
        return Response(await service.render(), media_type="image/png")


def _add_snapshots(app: FastAPI, service: EnvironmentService) -> None:
    unsupported: dict[int | str, dict[str, Any]] = {
        501: {"model": models.Error, "description": "This simulator has no snapshots; the message says why."}
    }

    @app.post("/snapshot/create", response_model=models.SnapshotTaken, responses=unsupported)
    async def create(request: SnapshotBody, x_session_id: SessionHeader = None) -> Response:
        """Keep the present state."""
        return json_response(dumps(await service.create_snapshot(request.name, x_session_id)))

    @app.post("/snapshot/restore", response_model=models.Restored, responses=unsupported | UNKNOWN)
    async def restore(request: models.RestoreRequest, x_session_id: SessionHeader = None) -> Response:
        """Go back to a snapshot, any number of times; its episode and step count go on."""
        return json_response(await service.restore_snapshot(request.snapshot_id, x_session_id))

    @app.get("/snapshot/list", response_model=models.SnapshotList)
    async def listed() -> Response:
        """All snapshots, oldest first."""
        return json_response(dumps(service.list_snapshots()))

    @app.delete("/snapshot/{snapshot_id}", status_code=204, response_model=None, responses=UNKNOWN)
    async def delete(snapshot_id: str, x_session_id: SessionHeader = None) -> None:
        """Forget a snapshot."""
        service.delete_snapshot(snapshot_id, x_session_id)


def _add_sessions(app: FastAPI, service: EnvironmentService) -> None:
    sessions = service.sessions

    @app.post("/session", response_model=models.SessionEntry)
    async def begin(request: SessionBody) -> Response:
        """Take the service for exclusive use."""
        return json_response(dumps(sessions.entry(sessions.begin(request.name, request.idle_timeout_s))))

    @app.get("/session", response_model=models.SessionList)
    async def listed() -> Response:
        """The open session, if there is one."""
        return json_response(dumps({"sessions": [sessions.entry(sessions.open)] if sessions.open else []}))

    @app.get("/session/{session_id}", response_model=models.SessionEntry, responses=UNKNOWN)
    async def shown(session_id: str) -> Response:
        """The session, as long as it is open."""
        return json_response(dumps(sessions.entry(sessions.get(session_id))))

    @app.delete("/session/{session_id}", status_code=204, response_model=None, responses=UNKNOWN)
    async def end(session_id: str) -> None:
        """Give the service back."""
        sessions.end(session_id)

    @app.post("/session/{session_id}/reset", response_model=models.Observed)
    async def reset(session_id: str, request: ResetBody) -> Response:
        """As /reset, with the session in the path."""
        return json_response(await service.reset(request.seed, request.options, session_id))

    @app.post("/session/{session_id}/step", response_model=models.Stepped)
    async def step(session_id: str, request: models.StepRequest) -> Response:
        """As /step, with the session in the path."""
        return json_response(await service.step(request.action, request.episode_id, request.step, session_id))


def _add_telemetry(app: FastAPI, service: EnvironmentService) -> None:
    @app.websocket("/telemetry")
    async def telemetry(socket: WebSocket) -> None:
        """One JSON message for each reset, step and restore."""
        await socket.accept()
        if service.telemetry.is_full:
            await socket.close(1013, "too many readers")
            return
        with service.telemetry.reader() as reader:
            tasks = {asyncio.create_task(_send(socket, reader)), asyncio.create_task(_until_left(socket))}
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _send(socket: WebSocket, reader: Any) -> None:
    while True:
        await socket.send_text(await reader.next())


async def _until_left(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
