"""Changes of JSON values at any place, for tests with odd input."""

import copy


def places(value, path=(), most=None):
  """Yields the path of every value inside a JSON value, or of the first `most` in each object and list."""
  yield path
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(items)[:most]:
      yield from places(part, (*path, key), most)


def replaced(data, path, value):
  """Returns the data with another value at the path."""
  if not path:
    return value
  data = copy.deepcopy(data)
  parent = data
  for key in path[:-1]:
    parent = parent[key]
  parent[path[-1]] = value
  return data
