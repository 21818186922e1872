"""Making a server from a policy and the config of `serve`."""

from jax.sharding import Mesh

from spatial_vlm.config import Config, settings_from
from spatial_vlm.inference.generation import PREFIX_BUCKET, inference_engine
from spatial_vlm.inference.policy import Policy, longest_prefix, prompt_format
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.processor.image import padded_length
from spatial_vlm.rollout.prefix_cache import PrefixCache
from spatial_vlm.serving.compiled_slots import CompiledSlots
from spatial_vlm.serving.engine_thread import EngineThread
from spatial_vlm.serving.limits import Limits
from spatial_vlm.serving.prompts import PromptBuilder
from spatial_vlm.serving.server_metrics import ServerMetrics
from spatial_vlm.serving.service import ChatService
from spatial_vlm.tasks import find_task


def make_service(
  policy: Policy, mesh: Mesh, config: Config, name: str, recall: Recall | None = None
) -> ChatService:
  """Returns a service over an engine on the mesh, with the sizes and limits of the config.

  Args:
    policy: its weights lie on the mesh.
    mesh: devices that generate.
    config: see configs/serve.py.
    name: served name of the model.
    recall: behaviors that plain statements are answered with.
  """
  task = find_task(config.task)
  systems = set(QuestionBuilder(task, "chain", recall).systems)
  longest = longest_prefix(policy.processor, systems)
  length = padded_length([longest], PREFIX_BUCKET) if longest else 0
  cache = PrefixCache(policy.model, mesh, len(systems), length) if longest else None
  format = prompt_format(config.prompt_shapes, policy.dtype, length)
  processor = policy.processor.limited_to(config.max_patches)
  metrics = ServerMetrics()
  engine = EngineThread(
    lambda: CompiledSlots(policy, inference_engine(policy, mesh, cache), format),
    metrics.failures.inc,
  )
  return ChatService(
    model=name,
    prompts=PromptBuilder(task, processor, format, recall),
    engine=engine,
    limits=settings_from(Limits, config.limits),
    defaults=(config.max_new_tokens, config.temperature),
    slots=config.slots,
    metrics=metrics,
  )
