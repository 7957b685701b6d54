"""What a client is told when something does not work: a status, a code for programs, and a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from streamavatar.serving.bodies import Problem

CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}


class ApiProblem(HTTPException):
    """Raised anywhere in a request; becomes the error body."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        headers = None if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
        super().__init__(status, message, headers)
        self.code, self.retryable = code, retry_after is not None


def answer(
    status: int, code: str, message: str, retryable: bool = False, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body = {"error": {"code": code, "message": message, "retryable": retryable}}
    return JSONResponse(body, status, dict(headers or {}))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses' answers, for the OpenAPI document."""
    return {status: {"model": Problem} for status in statuses}


def install(app: FastAPI) -> None:
    """Give every failure of the app this shape."""

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, ApiProblem):
            return answer(error.status_code, error.code, error.detail, error.retryable, error.headers)
        code = CODES.get(error.status_code, "error")
        return answer(error.status_code, code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]).encode("ascii", "backslashreplace").decode()
        return answer(422, "invalid", f"{place[:200]}: {first['msg']}")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return answer(500, "internal", "something went wrong inside the server; its log says what")
