"""OpenAI's chat completions endpoint of the local server."""

import base64
from typing import Any

from spatial_vlm.synthesis.local.local_model import ApiError, LocalModel, ReceivedQuestion

PATH = "/v1/chat/completions"

_FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}


def complete(model: LocalModel, body: dict[str, Any]) -> dict[str, Any]:
  """Returns the completion of a request; raises ApiError, or any error that broken JSON causes."""
  model.check_name(body["model"])
  answer = model.answer(_parse(body))
  choice = {
    "index": 0,
    "message": {"role": "assistant", "content": answer.text or None},
    "finish_reason": _FINISH.get(answer.finish, "content_filter"),
  }
  usage = {
    "prompt_tokens": answer.prompt,
    "prompt_tokens_details": {"cached_tokens": answer.cached},
    "completion_tokens": answer.answer + answer.thoughts,
    "completion_tokens_details": {"reasoning_tokens": answer.thoughts},
    "total_tokens": answer.prompt + answer.answer + answer.thoughts,
  }
  return {
    "id": "chatcmpl-local",
    "object": "chat.completion",
    "created": 0,
    "model": answer.version,
    "choices": [choice],
    "usage": usage,
  }


def error(failure: ApiError) -> dict[str, Any]:
  """Returns the body of an error response."""
  kind = (failure.reason or failure.status).lower()
  return {"error": {"message": str(failure), "type": kind, "code": kind}}


def _parse(body: dict[str, Any]) -> ReceivedQuestion:
  system = "".join(m["content"] for m in body["messages"] if m["role"] == "system")
  [parts] = [m["content"] for m in body["messages"] if m["role"] == "user"]
  urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
  if len(urls) > 1:
    raise ValueError(f"a question has at most one image; got {len(urls)}")
  return ReceivedQuestion(
    image=base64.b64decode("".join(urls).partition("base64,")[2]),
    system=system,
    text="".join(part["text"] for part in parts if part["type"] == "text"),
    seed=body.get("seed", 0),
  )
