"""Many clients at a time: none is lost, and each gets what it would get alone."""

import concurrent.futures
import time

CHAT = "/v1/chat/completions"


def test_many_clients_get_what_each_would_get_alone(service_of, client_of, body, noise):
  client = client_of(service_of("limits.queued_answers=2", "prompt_shapes=((64, 64),)"))
  requests = [
    body(
      f"Is it number {number}?",
      noise(number),
      temperature=(0.0, 1.0)[number % 2],
      seed=number,
      max_tokens=(3, 9, 24)[number % 3],
      n=1 + number % 2,
    )
    for number in range(24)
  ]
  refused = []

  def ask(request):
    while (response := client.post(CHAT, json=request)).status_code == 429:
      refused.append(response.headers["retry-after"])
      time.sleep(0.05)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"], answer["usage"]

  alone = [ask(request) for request in requests]
  assert not refused
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    together = list(pool.map(ask, requests))
  assert together == alone
  assert len({choices[0]["message"]["content"] for choices, _ in alone}) > 12
  assert refused  # 12 clients, and places for 6 requests
