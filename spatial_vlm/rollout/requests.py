"""The prompts of one batch, which an engine answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from spatial_vlm.processor.chat import Encoded
from spatial_vlm.rollout.prefix_cache import Text
from spatial_vlm.types import Prompts


@dataclasses.dataclass(frozen=True)
class Requests:
  """Prompts of one batch, as arrays and as what they were made of."""

  prompts: Prompts
  """Arrays of the whole batch over the engine's mesh."""
  texts: Sequence[str]
  """The questions of this process's rows, for an engine that tokenizes itself."""
  images: Sequence[Any]
  """The image of each, or a list of several."""
  systems: Sequence[str]
  """Their system turns; empty: a question has none."""
  prefixes: Sequence[Text] = ()
  """Tokens that come before `prompts`, which hold the rest; () where a prompt is whole. None given: all are."""
  encoded: Sequence[Encoded] = ()
  """Those rows of `prompts` before padding, for an engine that batches itself."""
