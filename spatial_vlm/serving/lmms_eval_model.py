"""lmms-eval's model `spatial_vlm`: asks a running server, gives the harness the conclusions and logs the chains.

A harness that searches whole chains finds words of the reasoning ("no gap", "A scene …") in place of the verdict. The
harness and the server may run in environments of their own; this file needs neither JAX nor the weights.

  lmms-eval --model spatial_vlm --model_args base_url=http://127.0.0.1:8000/v1,log=chains.jsonl \\
    --tasks spatial_vlm_scenes --include_path spatial_vlm/serving/lmms_eval_tasks
"""

import concurrent.futures
import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import openai
from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
  GenerationResult,
  Instance,
  TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]

from spatial_vlm.answer_extraction import conclusion

FORMS = ("chain", "short", "direct", "")
HARNESS = {"batch_size", "max_batch_size", "device"}
"""Arguments that lmms-eval gives every model; the server decides what they say."""
VERDICTS = {1: "Yes", 0: "No"}


class Answer(NamedTuple):
  """One answer: what the harness gets, and what is logged."""

  result: GenerationResult
  line: dict[str, Any]


class SpatialVlm(lmms):
  """The model of the manifest; lmms-eval gives its arguments as texts (`--model_args`).

  Args:
    base_url: address of the server's API.
    form: "chain", "short" or "direct" for tasks of one image and one statement; "" sends the texts of a task as they
      are.
    api_key: the server's token, if it has one.
    log: file to which JSON lines of the whole answers are appended; "" for none.
    num_concurrent: requests at a time.
    timeout_s: longest time of one answer.
    harness: those of HARNESS, which have no effect.
  """

  is_simple = False

  def __init__(
    self,
    base_url: str = "http://127.0.0.1:8000/v1",
    form: str = "chain",
    api_key: str = "none",
    log: str = "",
    num_concurrent: int = 16,
    timeout_s: float = 300.0,
    **harness: Any,
  ):
    super().__init__()
    if form not in FORMS:
      raise ValueError(f"form is {form!r}; give one of {', '.join(map(repr, FORMS))}")
    if unknown := sorted(harness.keys() - HARNESS):
      known = "base_url, form, api_key, log, num_concurrent, timeout_s"
      raise ValueError(f"model_args has {', '.join(unknown)}; allowed are {known}")
    self.client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=float(timeout_s))
    self.model = self.client.models.list().data[0].id
    self.form, self.log = form, log
    self.num_concurrent = int(num_concurrent)

  def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
    """Returns the conclusions in the order of the requests; an error of the server ends the run."""
    with (
      concurrent.futures.ThreadPoolExecutor(self.num_concurrent) as pool,
      _writer(self.log) as write,
    ):
      return [write(answer) for answer in pool.map(self._answer, requests)]

  def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
    """Raises NotImplementedError: the server scores no given text."""
    raise NotImplementedError(
      "spatial_vlm answers tasks of output_type generate_until; the server scores no given text"
    )

  def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
    """Raises NotImplementedError."""
    raise NotImplementedError("spatial_vlm answers tasks of one round")

  def _answer(self, request: Instance) -> Answer:
    _, doc_to_messages, settings, doc_id, task, split = request.args
    messages = doc_to_messages(self.task_dict[task][split][doc_id])
    completion = self.client.chat.completions.create(
      model=self.model,
      messages=ChatMessages(messages=messages).to_openai_messages(),
      temperature=settings.get("temperature") or 0.0,
      max_tokens=settings.get("max_new_tokens"),
      stop=settings.get("until") or None,
      extra_body={"spatial_vlm": {"form": self.form}} if self.form else None,
    )
    text = completion.choices[0].message.content or ""
    reading = (completion.model_extra or {}).get("spatial_vlm") or {}
    verdict: Any = reading.get("verdict")
    stated = VERDICTS.get(verdict) or conclusion(text) or ""
    usage = completion.usage
    tokens = TokenCounts(usage.prompt_tokens, usage.completion_tokens) if usage else None
    line = {"task": task, "split": split, "doc_id": doc_id, "conclusion": stated, "text": text}
    return Answer(GenerationResult(stated, tokens), line | reading)


@contextlib.contextmanager
def _writer(log: str) -> Iterator[Any]:
  """Yields a function that logs an answer and returns what the harness gets."""
  with open(log, "a") if log else contextlib.nullcontext() as file:

    def write(answer: Answer) -> GenerationResult:
      if file:
        file.write(json.dumps(answer.line) + "\n")
        file.flush()
      return answer.result

    yield write
