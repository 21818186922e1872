"""Errors of the API, as OpenAI's error object."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
  """A request that gets an error object instead of an answer.

  Args:
    status: HTTP status.
    message: what was given, what is allowed and what to do; shown to the client.
    param: field of the request that is wrong.
    code: OpenAI's short name of the error, e.g. "model_not_found".
    headers: further HTTP headers.
  """

  def __init__(
    self,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
  ):
    super().__init__(message)
    self.status, self.message, self.param, self.code = status, message, param, code
    self.headers = dict(headers or {})

  @property
  def content(self) -> dict[str, Any]:
    """The error object, `{"error": {"message", "type", "param", "code"}}`."""
    error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
    return {"error": error}

  @property
  def type(self) -> str:
    """OpenAI's type of the error, which follows from the status."""
    if self.status == 429:
      return "rate_limit_error"
    return "server_error" if self.status >= 500 else "invalid_request_error"


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
  """Returns the error of a request that cannot be understood or answered (status 400)."""
  return ApiError(400, message, param, code)
