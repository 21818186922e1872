"""Keys of relations: VSR's captions, wordings of one relation, and statements that must not be confused with it."""

import json
from pathlib import Path

import pytest

from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.reuse.statements.relation_keys import qualifiers, read_relation, relation_key

VSR = Path(__file__).parents[4] / "shared" / "vsr"
VERBS = ("contains", "consists of", "has as a part")


def vsr_caption(relation, subject="potted plant", other="hair drier"):
  return f"The {subject} {'' if relation in VERBS else 'is '}{relation} the {other}."


@pytest.mark.parametrize("relation", META_CATEGORY)
def test_each_relation_is_read_in_vsrs_grammar(relation):
  reading = read_relation(vsr_caption(relation))
  assert (reading.key, reading.subject, reading.other) == (relation, "potted plant", "hair drier")


@pytest.mark.parametrize("split", ["random/train", "random/dev", "zeroshot/train", "zeroshot/dev"])
def test_every_caption_of_vsr_has_the_key_of_its_relation(split):
  file = VSR / f"{split}.jsonl"
  if not file.exists():
    pytest.skip(f"{file} is absent: VSR's annotations are not on this machine")
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert [row for row in rows if relation_key(row["caption"]) != row["relation"]] == []


@pytest.mark.parametrize(
  ("caption", "key"),
  [
    ("The cat is to the left of the dog.", "left of"),
    ("the Cat is  on the left-hand side of a dog", "left of"),
    ("A cat can be seen on the left of a dog!", "left of"),
    ("To the left of the dog, there is a cat.", "left of"),
    ("On the left side of the dog sits a cat.", "left of"),
    ("The cat is at the left-hand side of the dog.", "at the left side of"),
    ("Is the cat left of the dog?", "left of"),
    ("You can see a cat sitting on top of a bed in the picture.", "on top of"),
    ("In this picture, there is a cat that is underneath the table.", "under"),
    ("From the camera's perspective, the cat is left of the dog.", "left of"),
    ("The cat is right behind the dog.", "behind"),
    ("There is a cat immediately behind the dog.", "behind"),
    ("Does the hot dog touch the cup?", "touching"),
    ("The hot dog is in contact with the cup.", "touching"),
    ("The cat and the dog are next to each other.", "next to"),
    ("The knife and the fork are parallel.", "parallel to"),
    ("The cow has the teddy bear as a part.", "has as a part"),
    ("The cat faces away from the dog.", "facing away from"),
    ("The dining table is made of the book.", "consists of"),
  ],
)
def test_wordings_of_one_relation_have_one_key(caption, key):
  assert relation_key(caption) == key


@pytest.mark.parametrize(
  ("caption", "key"),
  [
    ("The cat is not left of the dog.", "not left of"),
    ("The cat isn’t left of the dog.", "not left of"),
    ("There is no cat left of the dog.", "not left of"),
    ("It is false that the cat is left of the dog.", "not left of"),
    ("The cat is nowhere near the dog.", "not near"),
    ("The cat does not touch the dog.", "not touching"),
    ("The cat is left of the dog from the dog's point of view.", "left of, from Y's viewpoint"),
    ("From the cat's perspective, the cat is left of the dog.", "left of, from X's viewpoint"),
    ("The cat is left of the dog, as the man sees it.", "left of, from man's viewpoint"),
    ("The cat is to the dog's left.", "left of, from Y's viewpoint"),
    ("The dog has the cat on its left.", "reversed left of, from X's viewpoint"),
    ("The dog has the cat behind it.", "reversed behind"),
    ("The cat is not left of the dog from the dog's view.", "not left of, from Y's viewpoint"),
    ("The cat is left of the dog, which is a lie.", "not left of"),
    ("The cat isnt left of the dog.", "not left of"),
    ("The cat isn´t left of the dog.", "not left of"),
    ("The cat isnʼt left of the dog.", "not left of"),
    ("The cat isn‘t left of the dog.", "not left of"),
    ("The cat isn`t left of the dog.", "not left of"),
    ("The cat doesnt touch the dog.", "not touching"),
  ],
)
def test_qualified_statements_have_other_keys(caption, key):
  assert relation_key(caption) == key


@pytest.mark.parametrize(
  "caption",
  [
    "The cat is almost touching the dog.",
    "The cat is left of or right of the dog.",
    "The cat is left of the dog and the horse.",
    "The cat is above and left of the dog.",
    "The cat is far to the left of the dog.",
    "The cat is on the left edge of the table.",
    "The cat is left of the dog that is right of the horse.",
    "The dog is what the cat is left of.",
    "The cat and the dog are facing each other.",
    "The cat looks at the dog.",
    "The cat jumps over the dog.",
    "There is a cat running towards the dog.",
    "The cat is seen by the dog.",
    "The cat is seen through the window.",
    "The cat is lying to the dog.",
    "The man with the dog is left of it.",
    "The cat is fond of the dog.",
    "Nothing is left of the dog.",
    "Nobody is behind the car.",
    "No one is behind the car.",
    "None of the cats is left of the dog.",
    "Few cats are left of the dog.",
    "The cat might be left of the dog.",
    "The cat could be left of the dog.",
    "The cat should be left of the dog.",
    "The cat would be left of the dog.",
    "The cat will be left of the dog.",
    "The cat must be left of the dog.",
    "The cat rarely sits left of the dog.",
    "The cat seldom sits left of the dog.",
    "The cat hardly is left of the dog.",
    "The cat is probably left of the dog.",
    "The cat supposedly is left of the dog.",
    "The cat refuses to be left of the dog.",
    "The cat refuses being left of the dog.",
    "The cat loves being left of the dog.",
    "The cat loves to be left of the dog.",
    "The cat loves sitting left of the dog.",
    "It is doubtful that the cat is left of the dog.",
    "The cat is left of the dog from its own view.",
    "The man is left of the dog, as seen from his viewpoint.",
    "The no parking sign is left of the dog.",
    "What is left?",
    "",
  ],
)
def test_what_is_not_understood_has_no_key(caption):
  assert relation_key(caption) is None


@pytest.mark.parametrize(
  ("caption", "found"),
  [
    ("The cat is hugging the dog.", set()),
    ("The cat isn't hugging the dog.", {"not"}),
    ("The cat is hugging the dog from where the man stands.", {"viewpoint"}),
    ("The dog has the cat cuddled up to it.", {"reversed"}),
    ("The cat is nearly hugging the dog.", {"nearly"}),
    ("It is not the case that the cat isn't near the dog.", set()),
    ("The cat isnt hugging the dog.", {"not"}),
    ("The cat isn´t hugging the dog.", {"not"}),
    ("Nobody is hugging the dog.", {"not"}),
    ("None of the cats is hugging the dog.", {"not"}),
    ("The cat is hugging the dog, which is a lie.", {"not"}),
    ("The man denies that the cat is hugging the dog.", {"not"}),
    ("It is doubtful that the cat is hugging the dog.", {"doubtful"}),
    ("The cat seldom hugs the dog.", {"seldom"}),
    ("The cat will hug the dog.", {"will"}),
    ("The cat wants to hug the dog.", {"wants"}),
    ("The cat cant hug the dog.", {"not"}),
    ("The cat hugs the dog from its own view.", {"viewpoint"}),
    ("The no parking sign leans on the dog.", set()),
  ],
)
def test_qualifiers_are_found_in_any_sentence(caption, found):
  assert qualifiers(caption) == found
