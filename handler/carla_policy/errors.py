"""What can be wrong with a request or with a version's files: one class each, its status fixed where it is defined.

A `RequestError` is an answer: the service turns it into the error body of its one request. An `ArtifactError` stops
a build, a verification or a load; nothing of that version is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import TypedDict

MAX_FINDINGS = 20
"""Faults of a file that one error tells."""


class ErrorDetail(TypedDict):
    """One finding: `loc` is the path of the field (`observations[0].sensors`), `type` a stable name of the problem."""

    loc: str
    msg: str
    type: str


class RequestError(Exception):
    """A request that cannot be answered as asked; `str(error)` says what was expected, what came and what to do."""

    status: ClassVar[int]
    phrase: ClassVar[str]
    type: ClassVar[str]

    def __init__(self, message: str, details: Sequence[ErrorDetail] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)

    @classmethod
    def at(cls, loc: str, message: str, kind: str) -> RequestError:
        """An error with a single finding at `loc`, which the message names too."""
        return cls(f"{loc}: {message}", [{"loc": loc, "msg": message, "type": kind}])


class _BadRequest(RequestError):
    status, phrase = 400, "Bad Request"


class _Unprocessable(RequestError):
    status, phrase = 422, "Unprocessable Entity"


class InvalidJson(_BadRequest):
    """The body is not one JSON document (RFC 8259); NaN, Infinity and 1e999 are no JSON numbers here."""

    type = "INVALID_JSON"


class InvalidEncoding(_BadRequest):
    """The body is not UTF-8 without a byte order mark."""

    type = "INVALID_ENCODING"


class DuplicateKey(_BadRequest):
    """An object has a key twice; which of the two counts would be a guess."""

    type = "DUPLICATE_KEY"


class InvalidNpy(_BadRequest):
    """The body is not one whole .npy file."""

    type = "INVALID_NPY"


class EmptyBody(_BadRequest):
    type = "EMPTY_BODY"


class UnsupportedMediaType(RequestError):
    status, phrase = 415, "Unsupported Media Type"
    type = "UNSUPPORTED_MEDIA_TYPE"


class UnknownResource(RequestError):
    status, phrase = 404, "Not Found"
    type = "UNKNOWN_RESOURCE"


class SchemaMismatch(_Unprocessable):
    type = "SCHEMA"


class ShapeMismatch(_Unprocessable):
    type = "SHAPE"


class OutOfRange(_Unprocessable):
    type = "OUT_OF_RANGE"


class BatchTooLarge(_Unprocessable):
    type = "BATCH_TOO_LARGE"


class InvalidOption(_Unprocessable):
    type = "INVALID_OPTION"


class InvalidState(_Unprocessable):
    """A recurrent policy's state that this version did not make for these observations."""

    type = "INVALID_STATE"


class OutOfDistribution(_Unprocessable):
    """Unlike anything in training, and the card says to refuse that."""

    type = "OUT_OF_DISTRIBUTION"


class DeadlineExceeded(RequestError):
    """The answer would come later than the client can use it, and the card says to refuse that."""

    status, phrase = 504, "Gateway Timeout"
    type = "DEADLINE_EXCEEDED"


class Draining(RequestError):
    """The server is about to stop, and takes no new work."""

    status, phrase = 503, "Service Unavailable"
    type = "DRAINING"


class InternalFailure(RequestError):
    """A fault of the service itself while it worked on this one request."""

    status, phrase = 500, "Internal Server Error"
    type = "INTERNAL"


def error_types() -> dict[int, list[type[RequestError]]]:
    """Every error that a request can be answered with, by status."""
    found: dict[int, list[type[RequestError]]] = {}
    for kind in globals().values():
        if isinstance(kind, type) and issubclass(kind, RequestError) and "type" in vars(kind):
            found.setdefault(kind.status, []).append(kind)
    return dict(sorted(found.items()))


class ArtifactError(ValueError):
    """Files of a version that must not be served; the message names the file.

    A `ValueError`: what came is wrong, not the process that looked at it.
    """
