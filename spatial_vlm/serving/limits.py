"""Limits of what one request may ask for, and of what waits at a time."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """Read from the group `limits` of the command's config (see `config.settings_from`)."""

  body_bytes: int
  """Largest body of a request."""
  images: int
  """Most images of one request."""
  image_pixels: int
  """Most pixels of one image; the model reads at most `max_patches` of it."""
  samples: int
  """Most answers of one request (`n`)."""
  connections: int
  """Most connections at a time, idle ones included; a further one gets status 503."""
  queued_answers: int
  """Answers that wait for a slot; a request for more gets status 429."""
  body_timeout_s: float
  """Longest time in which a body arrives."""
  timeout_s: float
  """Longest time from a whole request to the end of its answer."""
  image_hosts: tuple[str, ...]
  """Hosts whose https images are downloaded; () for none."""
  image_bytes: int
  """Largest downloaded image."""
  image_timeout_s: float
  """Longest time of a download."""
  drain_s: float
  """Time that running requests get after SIGTERM."""
