"""Chat completions of the local server, as OpenAI's API writes them."""

import base64
from typing import Any

from spatial_vlm.synthesis.local.local_model import ApiError, Asked, LocalModel

PATH = "/v1/chat/completions"

_FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}


def complete(model: LocalModel, body: dict[str, Any]) -> dict[str, Any]:
  """The completion that a request asks for; raises ApiError, or what broken JSON raises."""
  model.check_name(body["model"])
  written = model.write(_read(body))
  choice = {
    "index": 0,
    "message": {"role": "assistant", "content": written.text or None},
    "finish_reason": _FINISH.get(written.finish, "content_filter"),
  }
  usage = {
    "prompt_tokens": written.prompt,
    "prompt_tokens_details": {"cached_tokens": written.cached},
    "completion_tokens": written.answer + written.thoughts,
    "completion_tokens_details": {"reasoning_tokens": written.thoughts},
    "total_tokens": written.prompt + written.answer + written.thoughts,
  }
  return {
    "id": "chatcmpl-local",
    "object": "chat.completion",
    "created": 0,
    "model": written.version,
    "choices": [choice],
    "usage": usage,
  }


def error(failure: ApiError) -> dict[str, Any]:
  """The body of an error."""
  kind = (failure.reason or failure.status).lower()
  return {"error": {"message": str(failure), "type": kind, "code": kind}}


def _read(body: dict[str, Any]) -> Asked:
  system = "".join(m["content"] for m in body["messages"] if m["role"] == "system")
  [parts] = [m["content"] for m in body["messages"] if m["role"] == "user"]
  [url] = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
  return Asked(
    image=base64.b64decode(url.partition("base64,")[2]),
    system=system,
    text="".join(part["text"] for part in parts if part["type"] == "text"),
    seed=body.get("seed", 0),
  )
