"""Images of requests: data URLs, and downloads that stay outside the server's own network."""

import base64
import contextlib
import io
import socket
import threading
import time

import PIL.Image
import pytest

from spatial_vlm.serving import images
from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.chat_messages import ImageUrl
from spatial_vlm.serving.limits import Limits

LIMITS = Limits(
  body_bytes=10**6,
  images=4,
  image_pixels=5000,
  samples=4,
  queued_answers=4,
  connections=8,
  body_timeout_s=1,
  timeout_s=1,
  image_hosts=("images.example",),
  image_bytes=20_000,
  image_timeout_s=0.5,
  drain_s=1,
)
HOSTS = LIMITS.image_hosts


def load(url):
  image = ImageUrl(url, "the.param")
  file = images.download(image, LIMITS) if images.is_remote(image) else None
  return images.decoded(image, file, LIMITS)


def refused(url):
  with pytest.raises(ApiError) as caught:
    load(url)
  error = caught.value
  assert (error.status, error.param, error.code) == (400, "the.param", "invalid_image_url")
  return error.message


@pytest.mark.parametrize("format", images.FORMATS)
def test_data_urls_are_decoded(noise, as_data_url, format):
  loaded = load(as_data_url(noise(), format))
  assert loaded.mode == "RGB" and loaded.size == (32, 32)
  if format == "PNG":
    assert loaded.tobytes() == noise().tobytes()


def test_only_the_allowed_formats_and_sizes_are_decoded(noise, as_data_url):
  for format in ("BMP", "TIFF", "PPM", "ICO"):
    assert "give a file of PNG" in refused(as_data_url(noise(), format))
  assert "101×50 pixels; at most 5000" in refused(as_data_url(noise(size=(101, 50))))
  load(as_data_url(noise(size=(100, 50))))


@pytest.mark.parametrize(
  "data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(30), b"GIF89a", b"RIFF0000WEBPVP8 "]
)
def test_damaged_images_are_refused(data):
  refused(f"data:image/png;base64,{base64.b64encode(data).decode()}")


def test_torn_images_are_refused(noise, as_data_url):
  whole = as_data_url(noise())
  refused(whole[: len(whole) // 8 * 4 + 2])


@pytest.mark.parametrize(
  "url",
  [
    "",
    "cat.png",
    "/etc/passwd",
    "file:///etc/passwd",
    "data:text/html;base64,AAAA",
    "data:image/png,AAAA",
    "data:image/png;base64,A",
    "data:image/png;base64,AA AA",
    "data:image/png;base64,ä",
    "http://images.example/a.png",
    "https://images.example:8443/a.png",
    "https://user@images.example/a.png",
    "https://images.example.evil/a.png",
    "https://evil/a.png?images.example",
    "https://[::1/a.png",
    "https://images.example:99999999/a.png",
    "https://images.example/a b.png",
    "https://images.example/a\r\nX-Header: 1",
    "ftp://images.example/a.png",
    "gs://bucket/a.png",
  ],
)
def test_other_addresses_are_refused(url, monkeypatch):
  monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
  refused(url)


def test_nothing_is_downloaded_by_default():
  with pytest.raises(ApiError, match="downloads none"):
    images.allowed_target(ImageUrl("https://images.example/a.png", ""), ())


@pytest.mark.parametrize(
  "address",
  [
    *("127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0"),
    *("::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "224.0.0.1", "100.64.0.1"),
  ],
)
def test_private_addresses_are_refused(address, monkeypatch):
  entries = [(None, None, None, "", (found, 443)) for found in ("8.8.8.8", address)]
  monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
  monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
  assert "not public" in refused("https://images.example/a.png")


@contextlib.contextmanager
def answering(monkeypatch, answer):
  """A host whose connections `answer(socket)` handles, reached without TLS."""
  listener, asked = socket.create_server(("127.0.0.1", 0)), []

  def handle():
    with contextlib.suppress(OSError):
      peer, _ = listener.accept()
      with peer:
        asked.append(peer.recv(4096).decode())
        answer(peer)

  threading.Thread(target=handle, daemon=True).start()
  port, connected = listener.getsockname()[1], []

  def to_listener(address, timeout):
    connected.append(address)
    connection = socket.socket()
    connection.settimeout(timeout)
    connection.connect(("127.0.0.1", port))
    return connection

  class Plain:
    def wrap_socket(self, plain, server_hostname):
      asked.append(server_hostname)
      return plain

  entry = (None, None, None, "", ("8.8.4.4", 443))
  monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
  monkeypatch.setattr(socket, "create_connection", to_listener)
  monkeypatch.setattr(images.ssl, "create_default_context", Plain)
  with listener:
    yield asked, connected


def test_an_image_of_an_allowed_host_is_downloaded_from_the_checked_address(
  monkeypatch, noise, as_data_url
):
  data = base64.b64decode(as_data_url(noise()).partition(",")[2])
  head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode()
  with answering(monkeypatch, lambda peer: peer.sendall(head + data)) as (asked, connected):
    loaded = load("https://Images.Example/a/b.png?size=1#x")
  assert loaded.tobytes() == noise().tobytes()
  name, request = asked
  assert name == "images.example" and connected == [("8.8.4.4", 443)]
  assert request.startswith("GET /a/b.png?size=1 HTTP/1.1\r\nHost: images.example\r\n")


@pytest.mark.parametrize(
  ("answer", "message"),
  [
    (b"HTTP/1.1 302 Found\r\nLocation: https://images.example/b\r\n\r\n", "redirects are not"),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
    (b"nonsense\r\n\r\n", "could not be downloaded"),
    (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(30_000), "more than 20000 bytes"),
    (b"HTTP/1.1 200 OK\r\n\r\n<html>", "give a file of PNG"),
  ],
)
def test_other_answers_of_a_host_are_refused(monkeypatch, answer, message):
  with answering(monkeypatch, lambda peer: peer.sendall(answer)):
    assert message in refused("https://images.example/a.png")


def test_a_slow_host_is_given_up(monkeypatch):
  def trickle(peer):
    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(100):
      peer.sendall(b"x")
      time.sleep(0.05)

  begun = time.monotonic()
  with answering(monkeypatch, trickle):
    assert "within 0.5 s" in refused("https://images.example/a.png")
  assert time.monotonic() - begun < 3


def test_jpegs_of_endless_scans_are_refused(noise):
  buffer = io.BytesIO()
  noise(size=(64, 64)).save(buffer, "JPEG", progressive=True)
  data = buffer.getvalue()
  last = data.rindex(b"\xff\xda")

  def url(scans):
    content = data[:-2] + data[last:-2] * scans + data[-2:]
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"

  assert load(url(0)).size == (64, 64)
  assert "scans; at most 32 are decoded" in refused(url(40))


def test_hosts_are_compared_without_case():
  image = ImageUrl("https://IMAGES.example/a.png", "")
  assert images.allowed_target(image, ("Images.Example",)) == ("images.example", "/a.png")


def test_the_time_limit_of_a_download_includes_the_connection(monkeypatch):
  monkeypatch.setattr(images, "public_address", lambda *_: time.sleep(0.6))
  monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
  assert "could not be reached" in refused("https://images.example/a.png")


def test_animations_show_their_first_frame(noise):
  frames = [noise(n).convert("P", palette=PIL.Image.Palette.ADAPTIVE) for n in range(2)]
  buffer = io.BytesIO()
  frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
  loaded = load(f"data:image/gif;base64,{base64.b64encode(buffer.getvalue()).decode()}")
  assert loaded.tobytes() == frames[0].convert("RGB").tobytes()
