"""Figures of a running server, in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (1, 4, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 2048)


class ServerMetrics:
  """Counters of one server, in a registry of its own."""

  def __init__(self):
    self.registry = CollectorRegistry()

    def named(kind, name: str, text: str, *labels: str, **options):
      return kind(f"spatial_vlm_{name}", text, labels, registry=self.registry, **options)

    self.responses = named(
      Counter, "http_responses", "Responses of the API, by route and status.", "route", "status"
    )
    self.requests = named(Gauge, "requests", "Admitted requests: waiting, or being answered.")
    self.seconds = named(
      Histogram,
      "request_seconds",
      "Seconds from the head of a request to the end of its answer.",
      buckets=_SECONDS,
    )
    self.first_token_seconds = named(
      Histogram, "first_token_seconds", "Seconds until the first tokens.", buckets=_SECONDS
    )
    self.prompt_tokens = named(Counter, "prompt_tokens", "Tokens of the prompts.")
    self.generated_tokens = named(Counter, "generated_tokens", "Generated tokens.")
    self.answer_tokens = named(Histogram, "answer_tokens", "Tokens of an answer.", buckets=_TOKENS)
    self.recalls = named(
      Counter, "recalled_behaviors", "Requests that a behavior was recalled for."
    )
    self.saved_tokens = named(
      Counter, "saved_tokens", "Tokens that the recalled behaviors save, by their handbook."
    )
    self.cancelled = named(
      Counter, "cancelled_requests", "Requests ended early: the client left, or the time was up."
    )
    self.failures = named(Counter, "engine_failures", "Errors of the engine.")

  def text(self) -> bytes:
    """Returns the figures as Prometheus reads them."""
    return generate_latest(self.registry)
