"""Runs gcp-storage-emulator with what TensorStore needs besides: generations in answers, and conditions on them.

`python gcs_emulator.py PORT` serves the bucket `bucket` from memory. Without conditions, writers of one manifest of a
checkpoint would overwrite each other's entries (https://cloud.google.com/storage/docs/request-preconditions).
"""

import functools
import logging
import sys
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

CONDITIONS = {  # parameter of a request: status if it does not hold
  "ifGenerationMatch": HTTPStatus.PRECONDITION_FAILED,
  "ifGenerationNotMatch": HTTPStatus.NOT_MODIFIED,
}


def conditional(handler):
  """Returns the handler with conditions; the server handles one request at a time, so each one is atomic."""

  @functools.wraps(handler)
  def handle(request, response, storage, *args, **kwargs):
    for parameter, status in CONDITIONS.items():
      if wanted := request.query.get(parameter):
        is_equal = generation(request, storage) == wanted[0]
        if is_equal != (parameter == "ifGenerationMatch"):
          response.status = status
          return
    handler(request, response, storage, *args, **kwargs)
    response["x-goog-generation"] = generation(request, storage)

  return handle


def generation(request, storage):
  """Returns the number of an object's version, 0 for a missing object."""
  name = request.params.get("object_id") or (request.query.get("name") or [None])[0]
  if name is None:
    name = request.data["meta"]["name"]
  try:
    return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
  except NotFound:
    return "0"


CHANGED = (objects.insert, objects.get, objects.download, objects.delete)

if __name__ == "__main__":
  logging.disable(logging.CRITICAL)
  server.HANDLERS = tuple(
    (path, {m: conditional(h) if h in CHANGED else h for m, h in by_method.items()})
    for path, by_method in server.HANDLERS
  )
  server.create_server("127.0.0.1", int(sys.argv[1]), True, "bucket").run()
