"""Reads the images of requests: data URLs, and https addresses of the allowed hosts.

A download reaches public addresses of these hosts only, over TLS, without redirects, and within limits of bytes and
seconds. Otherwise a client could make the server read its own network.
"""

import base64
import binascii
import contextlib
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse

import PIL.Image

from spatial_vlm.processor.image import UnreadableImage, open_image
from spatial_vlm.serving.api_error import ApiError, invalid
from spatial_vlm.serving.chat_messages import ImageUrl
from spatial_vlm.serving.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""File formats that are decoded, the same as OpenAI's. The first frame of an animation counts."""
_DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_CHUNK_BYTES = 65_536
MAX_SCANS = 32
"""Most scans of a JPEG. Encoders write about 10; each further scan costs a pass over all pixels for a few bytes."""
_JPEG_SCAN = b"\xff\xda"
"""Marker of a scan; compressed data never contains these bytes."""


def decoded(image: ImageUrl, file: bytes | None, limits: Limits) -> PIL.Image.Image:
  """Returns the image upright and as RGB; ApiError for an unreadable image or one that exceeds a limit.

  Args:
    image: the image.
    file: its downloaded file; None: a data URL holds it.
    limits: of requests.
  """
  data = _data_of(image) if file is None else file
  try:
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as opened:  # reads the header only
      (width, height), format = opened.size, opened.format
  except Exception as error:  # decoders of damaged files raise anything
    allowed = ", ".join(FORMATS)
    raise _refused(
      image, f"the image ({len(data)} bytes) cannot be read; give a file of {allowed}"
    ) from error
  pixels = limits.image_pixels
  if width * height > pixels:
    raise _refused(
      image, f"the image has {width}×{height} pixels; at most {pixels} are allowed: scale it down"
    )
  if format == "JPEG" and (scans := data.count(_JPEG_SCAN)) > MAX_SCANS:
    raise _refused(
      image, f"the JPEG has {scans} scans; at most {MAX_SCANS} are decoded: save it again"
    )
  try:
    return open_image(data)
  except UnreadableImage as error:
    raise _refused(image, str(error)) from error


def is_remote(image: ImageUrl) -> bool:
  """Returns whether the image has to be downloaded."""
  return not _DATA.match(image.url)


def _refused(image: ImageUrl, reason: str) -> ApiError:
  return invalid(reason, image.param, "invalid_image_url")


def _data_of(image: ImageUrl) -> bytes:
  match = _DATA.match(image.url)
  if match is None:
    raise _refused(image, "the image is not a data URL")
  try:
    return base64.b64decode(image.url[match.end() :], validate=True)
  except (binascii.Error, ValueError) as error:
    raise _refused(image, f"the data URL is not base64: {error}") from error


def download(image: ImageUrl, limits: Limits) -> bytes:
  """Returns the file of a remote image; ApiError if its address is not allowed or it exceeds a limit."""
  host, target = allowed_target(image, limits.image_hosts)
  deadline = time.monotonic() + limits.image_timeout_s
  connection = _connected(image, host, deadline)
  # A timeout of single reads would not end a server that sends one byte at a time.
  expired = threading.Timer(max(0, deadline - time.monotonic()), _shut, [connection.sock])
  expired.start()
  try:
    connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "spatial-vlm"})
    response = connection.getresponse()
    if response.status != 200:
      raise _refused(
        image, f"{host} answered with status {response.status}; redirects are not followed"
      )
    return _body(image, response, limits.image_bytes, deadline)
  except (OSError, http.client.HTTPException, ValueError) as error:
    raise download_failed(image, limits) from error
  finally:
    expired.cancel()
    connection.close()


def download_failed(image: ImageUrl, limits: Limits) -> ApiError:
  """Returns the error of a download that broke off or took too long."""
  host, _ = allowed_target(image, limits.image_hosts)
  return _refused(
    image, f"the image could not be downloaded from {host} within {limits.image_timeout_s:g} s"
  )


def allowed_target(image: ImageUrl, hosts: tuple[str, ...]) -> tuple[str, str]:
  """Returns (host, path and query) of an address that may be read; ApiError for any other."""
  if not hosts:
    raise _refused(
      image,
      "the image is not a data URL (data:image/png;base64,…), and this server downloads none",
    )
  try:
    url = urllib.parse.urlsplit(image.url)
    host, port = (url.hostname or "").lower(), url.port
  except ValueError as error:
    raise _refused(image, "the address of the image is not a URL") from error
  if url.scheme != "https" or port not in (None, 443) or "@" in url.netloc:
    raise _refused(image, "an image is a data URL or https://HOST/PATH, without port and user")
  if host not in {allowed.lower() for allowed in hosts}:
    raise _refused(image, f"images are downloaded from {', '.join(hosts)} only")
  target = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
  if not re.fullmatch(r"/[!-~]*", target):
    raise _refused(image, "the path of the image has characters that must be percent-encoded")
  return host, target


def public_address(image: ImageUrl, host: str) -> str:
  """Returns an address of the host; ApiError if any of its addresses is not public."""
  try:
    found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
  except OSError as error:
    raise _refused(image, f"{host} is not known to this server's resolver") from error
  addresses = [str(entry[4][0]) for entry in found]
  for text in addresses:
    address = ipaddress.ip_address(text.partition("%")[0])
    if not address.is_global or address.is_multicast:
      raise _refused(image, f"{host} has an address that is not public")
  return addresses[0]


def _connected(image: ImageUrl, host: str, deadline: float) -> http.client.HTTPConnection:
  """Connects to the address that was checked: a second look-up could give another."""
  address = public_address(image, host)
  connection = http.client.HTTPSConnection(host)
  try:
    plain = socket.create_connection((address, 443), _left(deadline))
    plain.settimeout(_left(deadline))  # of the whole TLS handshake
    connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    connection.sock.settimeout(_left(deadline))
  except OSError as error:
    raise _refused(image, f"{host} could not be reached over TLS") from error
  return connection


def _left(deadline: float) -> float:
  left = deadline - time.monotonic()
  if left <= 0:
    raise TimeoutError("the time is up")
  return left


def _shut(connection: socket.socket) -> None:
  """Ends the reads of the thread that downloads, under TLS too."""
  with contextlib.suppress(OSError):
    socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _body(
  image: ImageUrl, response: http.client.HTTPResponse, limit: int, deadline: float
) -> bytes:
  data = bytearray()
  while chunk := response.read1(_CHUNK_BYTES):
    data += chunk
    if len(data) > limit:
      raise _refused(image, f"the image has more than {limit} bytes")
  if time.monotonic() >= deadline:
    raise TimeoutError("the connection was shut")
  return bytes(data)
