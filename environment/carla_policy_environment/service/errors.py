"""Every refusal of the service: a status, a type for programs and a message for people, always as the same object."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from carla_policy_environment.spaces import InvalidValue

log = logging.getLogger(__name__)


class ServiceError(Exception):
    """Answered as `{"code", "type", "message", "details"}`; each detail has `loc`, `msg` and `type`."""

    def __init__(self, code: int, kind: str, message: str, details: Sequence[dict[str, Any]] = ()) -> None:
        self.code, self.kind, self.message, self.details = code, kind, message, list(details)
        super().__init__(message)

    @property
    def content(self) -> dict[str, Any]:
        return {"code": self.code, "type": self.kind, "message": self.message, "details": self.details}

    def response(self) -> Response:
        return json_response(dumps(self.content), self.code)


def dumps(content: Any) -> bytes:
    """`content` as the text of JSON, without NaN or infinity."""
    return json.dumps(content, allow_nan=False).encode()


def json_response(encoded: bytes, code: int = 200) -> Response:
    """An answer that is JSON text already."""
    return Response(encoded, code, media_type="application/json")


def conflict(kind: str, message: str) -> ServiceError:
    """409: the request does not fit what is going on."""
    return ServiceError(409, kind, message)


def invalid_action(problems: Iterable[InvalidValue]) -> ServiceError:
    """422 that names each element of the action that is wrong."""
    details = [{"loc": list(found.loc), "msg": found.problem, "type": "invalid_action"} for found in problems]
    first = details[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return ServiceError(422, "InvalidAction", f"{where}: {first['msg']}{more}", details)


def install(app: FastAPI) -> None:
    """Have `app` answer its refusals, and what FastAPI itself refuses, in this form."""

    @app.exception_handler(ServiceError)
    async def refused(_request: Request, error: ServiceError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        details = [{"loc": list(one["loc"]), "msg": one["msg"], "type": one["type"]} for one in error.errors()]
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details)
        return ServiceError(422, "InvalidRequest", said, details).response()

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        kind = "".join(word.capitalize() for word in HTTPStatus(error.status_code).phrase.split())
        message = f"{request.method} {request.url.path}: {error.detail}"
        answer = ServiceError(error.status_code, kind, message).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return ServiceError(500, type(error).__name__, f"a mistake in the service: {error}").response()
