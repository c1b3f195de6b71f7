"""Errors as OpenAI's clients expect them: a status, and a sentence that names no file and no patient."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hf_mu2.reporting.host import describe_defect


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status (`int`): HTTP status.
        message (`str`): The rule, what arrived, what to do.
        retry_after_s (`int`, *optional*): When to come back.
    """

    def __init__(self, status: int, message: str, retry_after_s: int | None = None):
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s


_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}


def error_body(status: int, message: str) -> dict[str, Any]:
    """Lay out an error."""
    kind = _KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": status, "param": None}}


def error_response(status: int, message: str, retry_after_s: int | None = None) -> JSONResponse:
    """Answer with an error."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse(error_body(status, message), status, headers)


async def on_refusal(request: Request, error: Exception) -> JSONResponse:
    """Answer a refusal."""
    assert isinstance(error, Refusal)
    return error_response(error.status, error.message, error.retry_after_s)


async def on_bad_input(request: Request, error: Exception) -> JSONResponse:
    """Answer bad input, which says itself what is wrong."""
    return error_response(400, str(error))


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer what the router refuses."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail))


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that does not fit, by the places that do not and never by their content."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5]]
    return error_response(
        400, f"A request has the fields of the API, this one does not: {'; '.join(problems)}."
    )


async def on_defect(request: Request, error: Exception) -> JSONResponse:
    """Answer a defect of ours."""
    return error_response(500, describe_defect(error))
