"""What lmms-eval finds under the entry point `lmms_eval.models`: the model `spatial_vlm`."""

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]


def manifest() -> ModelManifest:
  """Returns the manifest; lmms-eval imports the class when the model is asked for."""
  path = "spatial_vlm.serving.lmms_eval_model.SpatialVlm"
  return ModelManifest(model_id="spatial_vlm", chat_class_path=path)
