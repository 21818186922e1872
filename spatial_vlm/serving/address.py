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


def bind(host: str, port: int) -> socket.socket:
  """Returns a bound socket that does not listen yet; UsageError for an address that cannot be had."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
      bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      bound.bind(address)
    except OSError:
      bound.close()
      raise
  except OSError as error:
    raise UsageError(
      f"{host}:{port} cannot be bound ({error.strerror or error}); give another --port, or an address of this machine"
    ) from error
  return bound
