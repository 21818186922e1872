"""The reference implementation of the model, with the same weights and inputs."""

from model_reference import greedy, make_case, reference  # noqa: F401 (fixtures)
