"""Clients that leave, or that read nothing."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Send

SEND_TIMEOUT_S = 30.0
"""A client that reads nothing for longer loses its answer and frees its places."""


def bounded_send(send: Send) -> Send:
  """Returns a `send` that raises ClientDisconnect if the client does not read in time."""

  async def bounded(message: Message) -> None:
    try:
      async with asyncio.timeout(SEND_TIMEOUT_S):
        await send(message)
    except TimeoutError:
      raise ClientDisconnect from None

  return bounded


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
  """Does the work; cancels it and returns False when the client goes away or reads nothing for too long."""

  async def gone() -> None:
    while (await receive())["type"] != "http.disconnect":
      pass

  working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
  try:
    await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
      return False
    await working  # raises its error
    return True
  except ClientDisconnect:
    return False
  finally:
    for task in (working, watching):
      task.cancel()
    await asyncio.gather(working, watching, return_exceptions=True)
