"""Names that settings choose from: those of the tables that a command imports only when it runs.

Help, completion and the check of a config need them at once, and importing the tables takes seconds. A test compares
each tuple with its table: a new entry of a table is named here too.
"""

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("offload", "full", "context", "attention", "dots", "none")
OPTIMIZERS = ("adamw", "muon", "adafactor")
SCHEDULES = ("cosine", "constant")
MOMENTS = ("float32", "bfloat16", "float8")
BATCHINGS = ("shuffled", "bucketed", "packed")
ENGINES = ("compiled", "slots", "vllm")
TRANSFERS = ("disk", "reload")
OBJECTIVES = ("dapo", "gspo", "kl_reference")
REWARDS = ("accuracy", "overlong", "length")
TASKS = (
  *("vsr", "scenes", "vsr-zeroshot", "whatsup", "cvbench", "blink", "embspatial", "realworldqa"),
  *("pope", "3dsrbench", "mmbench"),
)
TEMPLATES = ("project", "vlmevalkit", "tri", "instructblip", "minigpt_v2")
PROMPTS = ("plain", "explained")
METHODS = ("majority", "zero-shot", "direct", "chain", "short", "reuse")
CONTROLS = ("blank", "cannot_tell", "other_image", "text_only", "")
TEACHERS = ("local", "gemini", "openai", "policy")
TEXT_TEACHERS = ("gemini", "openai", "policy")
"""Without "local", which knows rendered scenes only."""
EXTRACTORS = ("pattern", "clusters", "teacher")
PUBLISHED = ("random", "zeroshot", "")
MODELS = ("tiny", "2b", "4b", "8b")
"""Sizes of the model that `plan` knows; `bench` has one more, `small`."""
TPU_VERSIONS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
PLANNED = ("sft", "dapo", "evaluate", "behaviors", "serve", "answer", "synthesize")
"""Commands whose programs `plan` compiles."""
MEASUREMENTS = ("attention", "parity", "forward", "decode", "prefix", "sft", "dapo")
BOX_RELATIONS = (
  *("left of", "right of", "above", "below", "near", "far from", "touching", "inside"),
  *("parallel to", "perpendicular to", "at the left side of", "at the right side of"),
  *("over", "under", "beneath"),
)
