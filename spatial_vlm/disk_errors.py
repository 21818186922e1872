"""Errors of the disk as one sentence, wherever in a command they happen."""

import errno
import os
import re

_FULL = "make room"
_RIGHTS = "change the rights, or give another path"
_REMEDIES = {
  errno.ENOSPC: _FULL,
  errno.EDQUOT: _FULL,
  errno.EROFS: "give a folder that can be written",
  errno.EACCES: _RIGHTS,
  errno.EPERM: _RIGHTS,
  errno.ENOTDIR: "give another path",
  errno.EIO: "check the disk",
}
"""Error of the system → what its user can do."""
_IN_TEXTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that TensorStore reports by their texts alone."""


def disk_error(error: BaseException) -> str | None:
  """Returns one sentence about the disk error that an exception is or was raised from; None if there is none."""
  each: BaseException | None = error
  while each is not None:
    if isinstance(each, OSError) and each.errno in _REMEDIES:
      file = each.filename
      where = f"{os.fsdecode(file)}: " if isinstance(file, str | bytes | os.PathLike) else ""
      return f"{where}{_sentence(each.errno)}"
    for number in _IN_TEXTS:
      if os.strerror(number) in str(each):
        file = re.search(r'"(/[^"]+)"', str(each))
        return f"{file[1]}: {_sentence(number)}" if file else _sentence(number)
    each = each.__cause__ or each.__context__
  return None


def _sentence(number: int) -> str:
  return f"{os.strerror(number)}; {_REMEDIES[number]}, then run the same command again"
