"""Bodies of requests are read whole before anything else, up to a limit: 413 beyond it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from carla_policy_environment.service.errors import ServiceError


class BodyLimit:
    """ASGI middleware; what it refuses is answered before the rest has come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        body = b"" if int(declared) <= self._max_bytes else None
        while body is not None:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                body = None
            elif not message.get("more_body", False):
                break
        if body is None:
            said = f"a request has at most {self._max_bytes} bytes"
            await ServiceError(413, "TooLarge", said).response()(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)
