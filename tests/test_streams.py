"""Output never fails to encode, and gives no advice of other packages."""

import io
import os

from spatial_vlm.streams import never_fail_to_encode, set_up_streams


def test_characters_that_an_encoding_lacks_become_readable():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding="ascii")
  never_fail_to_encode(stream, io.StringIO())
  stream.write("64 × 64 → café … ≥ 1, −1, 图")
  stream.flush()
  assert raw.getvalue() == b"64 x 64 -> cafe ... >= 1, -1, ?"


def test_text_that_is_encoded_stays():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding="utf-8")
  never_fail_to_encode(stream)
  stream.write("64 × 64")
  stream.flush()
  assert raw.getvalue().decode() == "64 × 64"


def test_transformers_does_not_advise_to_install_pytorch(monkeypatch):
  name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
  monkeypatch.setenv(name, "")
  monkeypatch.delenv(name)
  set_up_streams()
  assert os.environ[name] == "1"
