"""What can be wrong with a request, and the answer that it gets."""

from __future__ import annotations

from typing import Final

from memcore.errors import (
    ConfigError,
    MemcoreError,
    SessionError,
    SessionMismatchError,
    UnknownSessionError,
    UnsupportedInputError,
)


class RequestError(MemcoreError, ValueError):
    """A request cannot be served as it is.

    Attributes:
        status: the HTTP status of the answer.
        param: the field of the request that is wrong, if it is one.
        code: a word for programs.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


_STATUS: Final[tuple[tuple[type[MemcoreError], int, str], ...]] = (
    (UnknownSessionError, 404, "session_not_found"),
    (SessionMismatchError, 409, "session_mismatch"),
    (SessionError, 409, "session_conflict"),
    (UnsupportedInputError, 400, "unsupported_input"),
    (ConfigError, 400, "invalid_value"),
)


def answer_to(error: Exception) -> tuple[int, dict[str, object]]:
    """Return the HTTP status and the body, in OpenAI's shape, that tell of an error."""
    if isinstance(error, RequestError):
        return error.status, body(str(error), error.status, param=error.param, code=error.code)
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return status, body(str(error), status, code=code)
    if isinstance(error, MemcoreError):
        return 500, body(str(error), 500, code="memory_error")
    told = f"the server failed, and its log says where: {type(error).__name__}: {error}"
    return 500, body(told, 500, code="internal_error")


def body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """Return the body of an answer that tells of an error, in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
