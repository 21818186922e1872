"""Errors of synthesis, all below `SynthesisError`.

Settings and inputs that a user can correct raise `config.UsageError`, as everywhere in the package.
"""

from spatial_vlm.config import UsageError


class SynthesisError(Exception):
  """Base class of all errors that synthesis itself defines."""


class BusyError(SynthesisError):
  """The teacher neither answered nor billed: rate limit or server trouble. Try again."""

  def __init__(self, message: str, retry_after_s: float | None = None):
    super().__init__(message)
    self.retry_after_s = retry_after_s
    """Delay that the server asks for; None if it names none."""


class LostError(SynthesisError):
  """The question was sent, but no complete reply arrived. It may have been billed. Try again."""


class RefusedError(SynthesisError):
  """The teacher will never answer this question; the message gives its reason."""


class UnusableDraftError(SynthesisError):
  """The text does not follow the response format; the message says where."""


class NotFoundError(SynthesisError, UsageError):
  """The server has no such model, address or file (HTTP 404)."""
