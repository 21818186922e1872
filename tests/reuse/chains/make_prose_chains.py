"""Writes prose_chains.jsonl: chains about every relation of VSR, worded as teachers word them.

  python tests/reuse/chains/make_prose_chains.py

Each line has the fields of a teacher's answer, and what a reader may get from it: `masked` (the comparison with X and
Y) and `short` (with names and numbers), or null for a chain whose comparison does not decide the relation or is wrong.
A reader that cannot read a wording leaves it; it never reads anything else. The expected texts are made from the boxes
here, not by the reader.
"""

import itertools
import json
import random
from pathlib import Path

from prose_geometry import geometry
from prose_wordings import (
  CENTRES,
  CONTAINS,
  DISTANCES,
  EDGES,
  ENDINGS,
  GAPS,
  MEASURES,
  MEETING,
  OPENINGS,
  SHAPES,
  VISUAL,
)

from spatial_vlm.data.relations import META_CATEGORY

OUT = Path(__file__).with_name("prose_chains.jsonl")
NAMES = (
  *(
    "dog",
    "cat",
    "dining table",
    "wine glass",
    "potted plant",
    "teddy bear",
    "bus",
    "person",
    "bench",
  ),
  *(
    "bicycle",
    "fire hydrant",
    "hot dog",
    "tv",
    "laptop",
    "cell phone",
    "umbrella",
    "orange",
    "train",
  ),
)
STEMS = {"contains": "contain", "consists of": "consist of", "has as a part": "have as a part"}


def main() -> None:
  OUT.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chains()))


def chains() -> list[dict]:
  """Returns the rows of the file: six chains about each relation, then wrong twins of some."""
  rng = random.Random(15)
  turns = {}  # kind → endless list of its wordings, so that every wording occurs
  rows = [_row(relation, number, rng, turns) for relation in META_CATEGORY for number in range(6)]
  return rows + [wrong for row in rows if (wrong := _wrong(row, rng))]


def _row(relation, number, rng, turns):
  label = int(number % 3 != 2)
  s, o = rng.sample(NAMES, 2)
  kind, boxes, fields, masked, short = geometry(relation, label, number, s, o, rng)
  wordings = {
    **{"centre": CENTRES, "edge": EDGES, "gap": GAPS, "distance": DISTANCES, "within": CONTAINS},
    **{"meeting": MEETING, "shape": SHAPES, "visual": VISUAL},
  }[kind]
  wording = next(turns.setdefault(kind, itertools.cycle(wordings)))
  is_verb = relation.split()[0] in ("contains", "consists", "has")
  holds = f"{'' if is_verb else 'is '}{relation}"
  denied = f"does not {STEMS.get(relation, relation)}" if is_verb else f"is not {relation}"
  fields |= {"S": s, "O": o, "holds": holds if label else denied}
  fields["end"] = rng.choice(ENDINGS).format(**fields)
  box_text = {name: dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for name, box in boxes}
  spans = rng.choice(MEASURES[fields.get("axis", "xy")]).format(
    S=s,
    O=o,
    **{f"{n}{k}": v for n, name in (("s", s), ("o", o)) for k, v in _named(box_text[name]).items()},
  )
  reasoning = f"{rng.choice(OPENINGS).format(**fields)}{spans} {wording.format(**fields)}"
  return {
    "caption": f"The {s} {holds} the {o}.",
    "relation": relation,
    "label": label,
    "kind": kind,
    "wording": wording,
    "answer": {
      "summary": f"Is it true that the {s} {holds} the {o}?",
      "caption": f"A photograph with a {s}, a {o} and other things.",
      "objects": [{"name": n, "box_2d": [y1, x1, y2, x2]} for n, (x1, y1, x2, y2) in boxes],
      "reasoning": " ".join(reasoning.split()),
      "conclusion": "yes" if label else "no",
    },
    "masked": masked,
    "short": short,
  }


def _named(box):
  x1, y1, x2, y2 = box.values()
  return box | {"cx": (x1 + x2) // 2, "cy": (y1 + y2) // 2, "w": x2 - x1, "h": y2 - y1}


def _wrong(row, rng):
  """Returns a wrong twin of some readable chains; nothing may be read from it."""
  if row["kind"] not in ("centre", "edge") or rng.random() < 0.35:
    return None
  answer = dict(row["answer"])
  way = rng.choice(("owner", "sign", "verdict"))
  label = row["label"]
  if way == "verdict":
    if row["kind"] == "edge":
      return None
    label = 1 - label
    answer["conclusion"] = "yes" if label else "no"
  elif way == "owner":
    first, second, *rest = answer["objects"]
    swapped = [first | {"box_2d": second["box_2d"]}, second | {"box_2d": first["box_2d"]}]
    answer["objects"] = [*swapped, *rest]
  else:
    swap = {
      " > ": " < ",
      " < ": " > ",
      "greater": "less",
      "less": "greater",
      "exceeds": "is less than",
    }
    found = [word for word in swap if word in answer["reasoning"]]
    if not found:
      return None
    answer["reasoning"] = answer["reasoning"].replace(found[0], swap[found[0]])
    if sum(answer["reasoning"].count(w) for w in swap) != 1:
      return None
  return row | {
    "label": label,
    "answer": answer,
    "masked": None,
    "short": None,
    "kind": f"wrong {way}",
  }


if __name__ == "__main__":
  main()
