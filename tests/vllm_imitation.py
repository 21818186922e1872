"""A local imitation of a vLLM server: the endpoints that training uses, with transformers as the model.

It shares no code with the package: prompts are rendered by the folder's own chat template and processor, tokens are
sampled by transformers, and checksums are made of tensors that are fused here as vLLM fuses them. Its sampling defaults
come from a generation_config like Qwen's, as vLLM's do, so that a client must override them. Faults are set by tests.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import re
import threading
import time
from pathlib import Path

import PIL.Image
import torch
import transformers
from safetensors.torch import load_file

DEFAULTS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
"""What vLLM would take from generation_config.json where a request is silent."""


@dataclasses.dataclass
class Faults:
  """What goes wrong."""

  corrupt: str | None = None
  """Tensor of the checkpoint that changes after an update."""
  status: dict[str, list[tuple[int, dict]]] = dataclasses.field(default_factory=dict)
  """Path → (status, body) of its next answers."""
  delay_s: float = 0.0
  change: object = None
  """Function that changes a chat completion before it is sent."""
  backend: str = "disk"
  ranks: int = 1
  absent: tuple[str, ...] = ()
  """Paths that the server does not know."""
  key: str = ""
  """What the server asks for."""


class Imitation:
  """The state of the server."""

  def __init__(self, folder):
    load = transformers.Qwen3VLForConditionalGeneration.from_pretrained
    self.model = load(folder, dtype=torch.float32).eval()
    self.processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    self.processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
      folder, backend="pil"
    )
    self.folder, self.faults, self.calls = folder, Faults(), []
    self.paused, self.stage, self.version = False, "idle", None
    self.lock = threading.Lock()

  def forget(self):
    self.faults, self.calls = Faults(), []

  # Weight updates: a call out of order is an error, as in vLLM.

  def pause(self, body):
    self.paused = True
    return {"status": "paused"}

  def resume(self, body):
    self.paused = False
    return {"status": "resumed"}

  def init_weight_transfer_engine(self, body):
    assert self.faults.backend == "disk", "init_info lacks master_address"
    assert body == {"init_info": {}}
    return {"message": "Weight transfer initialized"}

  def start_weight_update(self, body):
    assert self.paused and self.stage == "idle", "an update is already active"
    self.stage = "started"
    return {"message": "Weight update started"}

  def update_weights(self, body):
    assert self.stage == "started", "start_weight_update must be called before"
    self.stage = "idle"  # a load that fails ends the session
    self.load(body["update_info"]["path"])
    self.stage = "updated"
    return {"message": "Weights updated"}

  def finish_weight_update(self, body):
    stage, self.stage = self.stage, "idle"  # an error ends the session too
    assert stage == "updated", "no checkpoint was loaded"
    self.version = body.get("weight_version")
    return {"message": "Weight update finished"}

  def collective_rpc(self, body):
    assert self.paused and body["method"] == "reload_weights"
    self.load(body["kwargs"]["weights_path"])
    return {"results": [None]}

  def load(self, path):
    assert Path(path).is_absolute()
    tensors = {}
    for file in Path(path).glob("*.safetensors"):
      tensors |= load_file(file)
    missing, unknown = self.model.load_state_dict(tensors, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    if self.faults.corrupt:
      self.model.state_dict()[self.faults.corrupt].view(-1)[0] += 1.0

  def weight_checker(self, body):
    assert not self.paused, "weight_checker requires an unpaused engine"
    assert body == {"action": "checksum"}
    tensors = self.served_tensors().items()
    return {"checksums": {f"dp0:pp0:pcp0:tp0:{name}": _sha256(tensor) for name, tensor in tensors}}

  def served_tensors(self):
    """The parameters of vLLM's Qwen3VLForConditionalGeneration, made from those of transformers."""
    theirs = dict(self.model.named_parameters())  # a tied head is not listed again
    served = {}
    for name, tensor in theirs.items():
      name = re.sub(r"^model\.visual\.", "visual.", name)
      name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
      name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
      if ".k_proj." in name or ".v_proj." in name or ".up_proj." in name:
        continue
      if ".q_proj." in name:
        old = name.replace("language_model.model.", "model.language_model.")
        parts = [theirs[old.replace("q_proj", f"{p}_proj")] for p in "qkv"]
        name, tensor = name.replace("q_proj", "qkv_proj"), torch.cat(parts)
      if ".gate_proj." in name:
        old = name.replace("language_model.model.", "model.language_model.")
        tensor = torch.cat([theirs[old], theirs[old.replace("gate_proj", "up_proj")]])
        name = name.replace("gate_proj", "gate_up_proj")
      if "embed_tokens" in name or "lm_head" in name:
        rows = (tensor.shape[0] + 63) // 64 * 64
        tensor = torch.cat([tensor, torch.zeros(rows - tensor.shape[0], tensor.shape[1])])
      served[name] = tensor
    served["language_model.model.layers.0.self_attn.attn._k_scale"] = torch.tensor(1.0)
    return served

  # Answers

  def models(self):
    return {"object": "list", "data": [{"id": str(self.folder), "max_model_len": 512}]}

  def chat(self, body):
    assert not self.paused, "generation is paused"
    settings = {**DEFAULTS, **{name: body[name] for name in DEFAULTS if name in body}}
    assert not (body["temperature"] == 0 and body["n"] > 1), "n must be 1 when greedy"
    inputs = self.prompt(body["messages"])
    choices = [self.choice(body, settings, inputs, index) for index in range(body["n"])]
    return {
      "object": "chat.completion",
      "choices": choices,
      "prompt_token_ids": inputs["input_ids"][0].tolist() if body["return_token_ids"] else None,
    }

  def prompt(self, messages):
    images = []
    turns = []
    for message in messages:
      parts = message["content"]
      if isinstance(parts, str):
        parts = [{"type": "text", "text": parts}]
      shown = []
      for part in parts:
        if part["type"] == "image_url":
          header, data = part["image_url"]["url"].split(",", 1)
          assert header == "data:image/png;base64"
          images.append(PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
          shown.append({"type": "image"})
        else:
          shown.append(part)
      turns.append({"role": message["role"], "content": shown})
    text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return self.processor(text=[text], images=images or None, return_tensors="pt")

  def choice(self, body, settings, inputs, index):
    bias = torch.zeros(self.model.config.text_config.vocab_size)
    for id, value in body["logit_bias"].items():
      assert -100 <= value <= 100
      bias[int(id)] = value
    greedy = settings["temperature"] == 0

    def processed(ids, scores):
      return torch.log_softmax((scores + bias) / (settings["temperature"] or 1.0), dim=-1)

    (eos,) = body["stop_token_ids"]
    torch.manual_seed(body["seed"] + index)
    found = self.model.generate(
      **inputs,
      max_new_tokens=body["max_completion_tokens"],
      do_sample=not greedy,
      temperature=1.0,
      top_k=settings["top_k"],
      top_p=settings["top_p"],
      repetition_penalty=settings["repetition_penalty"],
      eos_token_id=eos,
      pad_token_id=eos,
      logits_processor=transformers.LogitsProcessorList([processed]),
      output_scores=True,
      return_dict_in_generate=True,
    )
    tokens = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    logp = [scores[0, token].item() for scores, token in zip(found.scores, tokens, strict=True)]
    return {
      "index": index,
      "message": {"role": "assistant", "content": self.processor.tokenizer.decode(tokens)},
      "logprobs": {"content": [{"token": "", "logprob": value} for value in logp]},
      "finish_reason": "stop" if tokens[-1] == eos else "length",
      "token_ids": tokens,
    }


def _sha256(tensor):
  bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
  return hashlib.sha256(bytes).hexdigest()


@contextlib.contextmanager
def serving(folder):
  """Runs the imitation on a free port: yields it, with its `url`."""
  imitation = Imitation(folder)

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      imitation.calls.append(self.path)
      path, faults = self.path.split("?")[0], imitation.faults
      if self.has_no_key():
        return self.answer(401, {"error": "Unauthorized"})
      if path == "/v1/models":
        return self.answer(200, imitation.models())
      if path == "/get_world_size":
        return self.answer(200, {"world_size": faults.ranks})
      known = hasattr(imitation, path[1:]) and path not in faults.absent
      return self.answer(405 if known else 404, {"detail": "Method Not Allowed"})

    def has_no_key(self):
      key = imitation.faults.key
      return bool(key) and self.headers["Authorization"] != f"Bearer {key}"

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
      path = self.path.split("?")[0]
      imitation.calls.append(self.path)
      faults = imitation.faults
      time.sleep(faults.delay_s)
      if faults is not imitation.faults:
        return self.answer(503, {})  # of an earlier test, which did not wait
      if self.has_no_key():
        return self.answer(401, {"error": "Unauthorized"})
      if statuses := faults.status.get(path):
        return self.answer(*statuses.pop(0))
      call = imitation.chat if path == "/v1/chat/completions" else getattr(imitation, path[1:])
      try:
        with imitation.lock:
          found = call(body)
      except AssertionError as error:
        return self.answer(500, {"error": {"message": str(error)}})
      if path == "/v1/chat/completions" and imitation.faults.change:
        found = imitation.faults.change(found)
      return self.answer(200, found)

    def answer(self, status, body):
      data = json.dumps(body).encode()
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  imitation.url = f"http://127.0.0.1:{server.server_port}"
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield imitation
  finally:
    server.shutdown()
    server.server_close()
