"""A full disk, and files that cannot be written, are reported on one line."""

import errno
import os

import pytest

from spatial_vlm import hosts
from spatial_vlm.config import UsageError
from spatial_vlm.disk_errors import disk_error

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/a")


def wrapped(cause):
  error = RuntimeError("the write failed")
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  ("error", "sentence"),
  [
    (FULL, "/runs/a: No space left on device; make room, then run the same command again"),
    (wrapped(FULL), "/runs/a: No space left on device; make room, "),
    (ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]"), "No space left on"),
    (ValueError('Failed writing: "/a/6/d": No space left on device'), "/a/6/d: No space left on"),
    (NotADirectoryError(errno.ENOTDIR, "", b"/a/b"), "/a/b: Not a directory; give another path"),
    (OSError(errno.EROFS, ""), "Read-only file system; give a folder that can be written"),
  ],
)
def test_errors_of_the_disk_are_one_sentence(error, sentence):
  assert disk_error(error).startswith(sentence)


def test_other_errors_keep_their_traceback():
  assert disk_error(KeyError("a")) is None
  assert disk_error(FileNotFoundError(errno.ENOENT, "", "x")) is None


def test_one_at_the_start_is_said_in_the_same_words():
  with pytest.raises(UsageError, match="^/runs/a: No space left on device; make room"):
    with hosts.user_errors():
      raise FULL
