"""Checks every request before its body is read: the host that it was sent to, and the bearer token."""

import ipaddress
import secrets
from collections.abc import Mapping

from spatial_vlm.serving.api_error import ApiError

GUARDED = "/v1/"
"""Paths that need the token; /health, /metrics and the page do not."""


class HttpGuard:
  """Refuses requests.

  Args:
    token: bearer token of the API; None: none is needed.
    host: address that the server binds.

  Without a token, only requests to an IP address or to `localhost` are answered. An attacker's host name may resolve to
  this machine (DNS rebinding); a web page from there sends that name as the host.
  """

  def __init__(self, token: str | None = None, host: str = "127.0.0.1"):
    self._token = token.encode() if token else None
    self._host = host.lower()

  def check(self, path: str, headers: Mapping[str, str]) -> None:
    """Raises ApiError for a request that is refused."""
    if self._token is None:
      self._check_host(headers.get("host", ""))
    elif path.startswith(GUARDED):
      self._check_token(headers.get("authorization", ""))

  def _check_host(self, header: str) -> None:
    name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    name = name.strip("[]").lower()
    if name not in (self._host, "localhost") and not _is_address(name):
      raise ApiError(
        403,
        "the request's Host names another server; use the address that was given with --host, or give the server a "
        "token to serve under other names",
        code="host_not_allowed",
      )

  def _check_token(self, header: str) -> None:
    scheme, _, given = header.partition(" ")
    right = secrets.compare_digest(given.strip().encode(), self._token or b"")
    if scheme.lower() != "bearer" or not right:
      raise ApiError(
        401,
        "the API key is missing or wrong; send it as Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
      )


def _is_address(name: str) -> bool:
  """Returns whether the name is an IP address; DNS rebinding needs a host name."""
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True
