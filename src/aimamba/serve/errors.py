"""Errors as clients see them: one JSON object with a message, in the form that clients of OpenAI's API know."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from aimamba.errors import AimambaError, CheckpointError, printable
from aimamba.generation.requests import ClosedError, Failed, QueueFullError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_RETRY_WHEN_CLOSED = 5.0  # seconds; another instance may answer then
_MEMBERS = ("str", "int", "constrained-str", "constrained-int")  # of unions, which pydantic names beside the field
_LONGEST = 500  # characters of a message


class ApiError(Exception):
    """An answer with an error status.

    Attributes:
        status: The HTTP status.
        field: The field that is wrong, as in ``classes[0]``, if there is one.
        headers: Headers of the answer.
    """

    def __init__(
        self, status: int, message: str, *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.field = status, field
        self.headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"


def body(status: int, message: str, field: str | None = None) -> dict[str, Any]:
    """Return the JSON object of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": printable(message[:_LONGEST]), "type": kind, "param": field, "code": status}}


def as_api_error(error: Exception, field: str | None = None) -> ApiError | None:
    """Return what a client is told about an error of ours; None if it is a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, f"{error}; try again later", retry_after=error.seconds)
    if isinstance(error, ClosedError):
        return ApiError(503, "the server is shutting down", retry_after=_RETRY_WHEN_CLOSED)
    if isinstance(error, CheckpointError):
        return ApiError(500, "the model's weights are damaged; see the server's log")
    if isinstance(error, AimambaError):
        return ApiError(422, str(error), field=field)
    if isinstance(error, TimeoutError):
        return ApiError(504, "the request took too long and was given up")
    return None


def of_failed(event: Failed) -> ApiError:
    """Return what a client is told about a request that failed while it was generated."""
    return as_api_error(event.error) or ApiError(500, "generating the image failed; see the server's log")


def install(app: FastAPI) -> None:
    """Make an app answer every error in this form."""

    def respond(error: ApiError) -> JSONResponse:
        content = body(error.status, str(error), error.field)
        return JSONResponse(content, status_code=error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        first = errors[0]
        if first["type"] == "json_invalid":
            return respond(
                ApiError(422, f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
            )
        field = field_name(first["loc"])
        message = _message([each for each in errors if field_name(each["loc"]) == field])
        return respond(ApiError(422, f"{field or 'body'}: {message}", field=field or None))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        content = body(error.status_code, str(error.detail))
        return JSONResponse(content, status_code=error.status_code, headers=error.headers)

    async def _known(_: Request, error: Exception) -> JSONResponse:
        found = as_api_error(error)
        assert found is not None
        return respond(found)

    for kind in (ApiError, QueueFullError, ClosedError, AimambaError, TimeoutError):
        app.add_exception_handler(kind, _known)

    @app.exception_handler(Exception)
    async def _bug(_: Request, __: Exception) -> JSONResponse:  # the server logs it with its traceback
        return respond(ApiError(500, "an internal error; see the server's log"))


def _message(errors: Sequence[dict[str, Any]]) -> str:
    """Return what is wrong with a field; of a union, what the member says whose type the value has."""
    for each in errors:
        if not each["type"].endswith("_type"):
            return str(each["msg"])
    first, *others = (each["msg"] for each in errors)
    return " or ".join([first, *(message.removeprefix("Input should be ") for message in others)])


def field_name(location: Sequence[str | int]) -> str:
    """Return the name of a field: ``classes[0]`` for ``("body", "classes", 0, "str")``."""
    name = ""
    for part in location[1:]:
        if part in _MEMBERS:
            continue
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name
