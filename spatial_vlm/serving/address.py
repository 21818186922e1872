"""The address that a server binds."""

import ipaddress
import socket

from spatial_vlm.config import UsageError


def is_loopback(host: str) -> bool:
  """Returns whether only this machine reaches the address; names other than localhost count as reachable."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


STALLED_MS = 60_000
"""A connection whose peer takes no data for longer is closed, where the system can do so."""


def bind(host: str, port: int) -> socket.socket:
  """Returns a listening socket; connections wait in its queue until they are accepted.

  It listens at once, so that a second server on the address is refused before it loads a model. Raises UsageError for
  an address that cannot be bound.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
      bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      if hasattr(socket, "TCP_USER_TIMEOUT"):
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
      bound.bind(address)
      bound.listen()
    except OSError:
      bound.close()
      raise
  except OSError as error:
    raise UsageError(
      f"{host}:{port} cannot be bound ({error.strerror or error}); give another --port, or an address of this machine"
    ) from error
  return bound
