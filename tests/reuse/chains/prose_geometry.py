"""Boxes for a statement, and the comparison that decides it: fields for the wordings, and the expected reading."""

OTHERS = ("window", "shelf", "tree", "carpet", "traffic light", "lamp")

X_SIDES = {"left of": -1, "at the left side of": -1, "right of": 1, "at the right side of": 1}
Y_SIDES = dict.fromkeys(("above", "over", "on top of"), -1)
Y_SIDES |= dict.fromkeys(("below", "under", "beneath", "down from"), 1)
FAR = {"near": -1, "close to": -1, "far from": 1, "far away from": 1}
APART = dict.fromkeys(("touching", "connected to", "attached to", "against"), -1) | {
  "detached from": 1
}
APART |= dict.fromkeys(
  ("by", "next to", "beside", "adjacent to", "alongside", "at the side of"), -1
)
WITHIN = dict.fromkeys(("inside", "within", "in", "enclosed by", "part of", "in the middle of"), 1)
WITHIN |= dict.fromkeys(("contains", "surrounding", "consists of", "has as a part"), -1)
DEPTH = {"in front of": 1, "ahead of": 1, "behind": -1, "at the back of": -1, "beyond": -1}
SHAPE = {"parallel to": True, "perpendicular to": False}
MORE = {
  1: (">", "greater than", "larger than", "exceeds"),
  -1: ("<", "less than", "smaller than", "is short of"),
}
PLACE = {
  ("x", 1): ("to the right of", "further right than"),
  ("x", -1): ("to the left of", "further left than"),
  ("y", 1): ("below", "lower than"),
  ("y", -1): ("above", "higher than"),
}


def geometry(relation, label, number, s, o, rng):
  """Returns the kind of wording, boxes, fields of the wording, and the expected comparison with letters and names."""
  way = 1 if label else -1
  for axis, sides in (("x", X_SIDES), ("y", Y_SIDES)):
    if relation in sides:
      sign = sides[relation] * way
      boxes = _apart(rng, axis, sign, 40)
      edges = number % 3 == 1
      return _along(boxes, axis, sign, ("low", "high") if edges else None, s, o, rng)
  if relation in DEPTH:
    sign = DEPTH[relation] * way
    boxes = _apart(rng, "y", sign, -80)
    return _along(boxes, "y", sign, ("bottom", "bottom"), s, o, rng)
  if relation in FAR:
    return _distance(FAR[relation] * way, s, o, rng)
  if relation in APART:
    return _gap(APART[relation] * way, s, o, rng)
  if relation in WITHIN and label:
    return _within(WITHIN[relation], s, o, rng)
  if relation in SHAPE and number % 2:
    return _shape(SHAPE[relation] == bool(label), s, o, rng)
  boxes = _apart(rng, "x", rng.choice((1, -1)), 40)
  return "visual", _listed(boxes, s, o, rng), _visual_fields(boxes, s, o), None, None


def _apart(rng, axis, sign, gap):
  """Two boxes with even sides; the first lies toward `sign` along the axis, with a gap of at least `gap`."""

  def side(low, high):
    return 2 * rng.randint(low // 2, high // 2)

  a0, a1 = side(20, 120), side(140, 260)
  b0 = a0 + a1 + gap + side(0, 60) if gap >= 0 else a0 + side(30, 80)
  b1 = min(side(200, 360), 990 - b0) // 2 * 2 if gap >= 0 else a1 + side(120, 220)
  first, second = (a0, a0 + a1), (b0, b0 + b1)
  far, near = (second, first) if sign > 0 else (first, second)
  across = [(t := side(60, 400), t + side(130, 380)) for _ in range(2)]
  make = (
    (lambda i, j: (i[0], j[0], i[1], j[1]))
    if axis == "x"
    else (lambda i, j: (j[0], i[0], j[1], i[1]))
  )
  return make(far, across[0]), make(near, across[1])


def _listed(boxes, s, o, rng):
  listed = [*zip((s, o), boxes, strict=True)]
  listed.append((rng.choice(OTHERS), (700, 5, 995, 57)))
  return listed


def _along(boxes, axis, sign, edges, s, o, rng):
  low, high = (0, 2) if axis == "x" else (1, 3)
  names = {"x": ("left edge", "right edge"), "y": ("top edge", "bottom edge")}[axis]
  if edges is None:
    roles, values = ("centre", "centre"), [(b[low] + b[high]) // 2 for b in boxes]
  elif edges[0] == "bottom":
    roles, values = (names[1], names[1]), [b[high] for b in boxes]
  else:
    places = (0, 1) if sign > 0 else (1, 0)
    roles, values = (
      tuple(names[i] for i in places),
      [b[(low, high)[i]] for b, i in zip(boxes, places, strict=True)],
    )
  a, b = values
  mark, more, larger, exceeds = MORE[sign]
  back, less, smaller, _ = MORE[-sign]
  place, further = PLACE[axis, sign]
  fields = {
    **{"axis": axis, "k": axis, "a": a, "b": b, "gt": mark, "lt": back, "more": more, "less": less},
    **{
      "larger": larger,
      "smaller": smaller,
      "big": larger.split()[0],
      "exceeds": exceeds,
      "place": place,
      "further": further,
    },
    **{"r": roles[0], "q": roles[1], "along": {"x": "Horizontally", "y": "Vertically"}[axis]},
  }
  short = [
    f"{n} {'' if r == 'centre' else r + ' '}{axis}={v}"
    for n, r, v in zip((s, o), roles, values, strict=True)
  ]
  masked = f"X {roles[0]} {axis} {mark} Y {roles[1]} {axis}"
  kind = "centre" if edges is None else "edge"
  return kind, _listed(boxes, s, o, rng), fields, masked, f"{short[0]} {mark} {short[1]}"


def _distance(sign, s, o, rng):
  boxes = _apart(rng, "x", 1, 300) if sign > 0 else _apart(rng, "x", 1, 20)
  (a, b), (c, d) = (((x1 + x2) // 2, (y1 + y2) // 2) for x1, y1, x2, y2 in boxes)
  distance = max(abs(a - c), abs(b - d))
  limit = distance - distance % 50 - 50 if sign > 0 else distance - distance % 50 + 50
  fields = {
    "d": distance,
    "t": limit,
    "gt": MORE[sign][0],
    "more": MORE[sign][1],
    "lt": MORE[-sign][0],
  }
  fields["exceeds"] = MORE[sign][3]
  fields["axis"] = "centres"
  masked, short = f"X to Y d {fields['gt']}", f"{s} to {o} d={distance} {fields['gt']} {limit}"
  return "distance", _listed(boxes, s, o, rng), fields, masked, short


def _gap(sign, s, o, rng):
  boxes = _apart(rng, "x", 1, 40 if sign > 0 else -80)
  if sign < 0:  # The boxes overlap.
    boxes = boxes[0], (boxes[1][0], boxes[0][1], boxes[1][2], boxes[0][3] - 40)
  (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes
  gap = max(0, u1 - x2, x1 - u2, v1 - y2, y1 - v2)
  fields = {"g": gap, "axis": "xy"}
  if sign > 0:
    masked, short = "X to Y gap >", f"{s} to {o} gap={gap} > 0"
  else:
    masked, short = "X to Y gap", f"{s} to {o} gap={gap}"
  return "gap" if sign > 0 else "meeting", _listed(boxes, s, o, rng), fields, masked, short


def _within(direction, s, o, rng):
  outer = (40, 60, 40 + 2 * rng.randint(300, 450), 60 + 2 * rng.randint(300, 440))
  inner = tuple(
    2 * v
    for v in (
      rng.randint(40, 120),
      rng.randint(50, 140),
      rng.randint(180, 300),
      rng.randint(190, 300),
    )
  )
  boxes = (inner, outer) if direction > 0 else (outer, inner)
  inside, around = (s, o) if direction > 0 else (o, s)
  fields = {"I": inside, "A": around, "axis": "xy"}
  fields |= {f"{n}{i}": v for n, box in (("i", inner), ("a", outer)) for i, v in enumerate(box)}
  edges = (
    ("left edge", "x", 0),
    ("right edge", "x", 2),
    ("top edge", "y", 1),
    ("bottom edge", "y", 3),
  )
  order = ("left edge", "right edge", "top edge", "bottom edge")
  parts = []
  for role, key, i in sorted(edges, key=lambda e: order.index(e[0])):
    a, b = boxes[0][i], boxes[1][i]
    mark = ">" if a > b else "<"
    parts.append(
      (f"X {role} {key} {mark} Y {role} {key}", f"{s} {role} {key}={a} {mark} {o} {role} {key}={b}")
    )
  return (
    "within",
    _listed(boxes, s, o, rng),
    fields,
    *(", ".join(p[i] for p in parts) for i in (0, 1)),
  )


def _shape(same, s, o, rng):
  wide = (100, 200, 100 + 2 * rng.randint(150, 250), 200 + 2 * rng.randint(30, 70))
  other = (60, 520, 60 + 2 * rng.randint(150, 250), 520 + 2 * rng.randint(30, 70))
  boxes = (
    wide,
    other if same else (700, 100, 700 + (other[3] - other[1]), 100 + (other[2] - other[0])),
  )
  sizes = [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
  marks = [">" if w > h else "<" for w, h in sizes]
  words = {
    ">": ("wider than it is tall", "greater than"),
    "<": ("taller than it is wide", "less than"),
  }
  fields = {"axis": "sizes"}
  for n, (w, h), mark in zip("ab", sizes, marks, strict=True):
    fields |= {
      f"{n}w": w,
      f"{n}h": h,
      f"{n}gt": mark,
      f"{n}form": words[mark][0],
      f"{n}more": words[mark][1],
    }
  masked = f"X w {marks[0]} h, Y w {marks[1]} h"
  short = ", ".join(
    f"{n} w={w} {m} h={h}" for n, (w, h), m in zip((s, o), sizes, marks, strict=True)
  )
  return "shape", _listed(boxes, s, o, rng), fields, masked, short


def _visual_fields(boxes, s, o):
  (x1, _, x2, _), (u1, _, u2, _) = boxes
  a, b = (x1 + x2) // 2, (u1 + u2) // 2
  return {
    "a": a,
    "b": b,
    "gt": ">" if a > b else "<",
    "way": "left" if a > b else "right",
    "axis": "x",
  }
