"""The file of paraphrases: complete, split without overlap, and read by the relation keys without a wrong key."""

import pytest

from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.reuse.retrieval.paraphrases import SPLITS, negated, read_paraphrases
from spatial_vlm.reuse.statements.captions import caption_template
from spatial_vlm.reuse.statements.masking import mask_objects
from spatial_vlm.reuse.statements.relation_keys import qualifiers, relation_key

PARAPHRASES = read_paraphrases()


def filled(template):
  return template.format(X="cat", Y="dining table")


def test_every_relation_of_vsr_has_five_paraphrases_to_train_on_and_five_held_out():
  assert list(PARAPHRASES.relations) == list(META_CATEGORY)
  for relation, splits in PARAPHRASES.relations.items():
    assert tuple(splits) == SPLITS
    assert min(len(splits["train"]), len(splits["held_out"])) >= 5, relation


def test_no_template_is_in_two_splits_or_relations():
  texts = [t for splits in PARAPHRASES.relations.values() for s in SPLITS for t in splits[s]]
  texts += [t for split in SPLITS for t in PARAPHRASES.other_statements[split]]
  assert len(texts) == len(set(texts))
  assert all("{X}" in text and "{Y}" in text for text in texts)
  captions = {caption_template(relation) for relation in META_CATEGORY}
  assert captions.isdisjoint(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_no_paraphrase_has_the_key_of_another_relation(split):
  wrong = [
    (relation, sentence.template, key)
    for relation in META_CATEGORY
    for sentence in PARAPHRASES.sentences(relation, split)
    if (key := relation_key(filled(sentence.template))) != relation and key in META_CATEGORY
  ]
  assert wrong == []


@pytest.mark.parametrize("split", SPLITS)
def test_confusable_and_unrelated_statements_never_have_the_key_of_a_relation(split):
  for relation in META_CATEGORY:
    for sentence in PARAPHRASES.confusables(relation, split):
      text = filled(sentence.template)
      assert relation_key(text) not in META_CATEGORY, text
      assert qualifiers(text), text
  assert all(relation_key(filled(s.template)) is None for s in PARAPHRASES.others(split))


def test_confusables_of_the_training_are_not_those_of_the_report():
  for relation in META_CATEGORY:
    own = {s.template for s in PARAPHRASES.confusables(relation, "train")}
    assert own.isdisjoint(s.template for s in PARAPHRASES.confusables(relation, "held_out"))


def test_synonyms_are_mutual():
  assert PARAPHRASES.same("under") == {"under", "beneath", "below"}
  assert PARAPHRASES.same("left of") == PARAPHRASES.same("at the left side of")
  assert PARAPHRASES.same("facing") == {"facing"}
  known = [relation for group in PARAPHRASES.synonyms for relation in group]
  assert set(known) <= set(META_CATEGORY) and len(known) == len(set(known))


def test_negations_are_negations():
  for template in ("The {X} is by the {Y}.", "By the {Y} is a {X}.", "The {X} touches the {Y}."):
    for variant in range(5):
      assert qualifiers(filled(negated(template, variant))) == {"not"}, template


def test_paraphrases_lose_their_objects():
  unmasked = [
    text
    for relation in META_CATEGORY
    for sentence in PARAPHRASES.sentences(relation, "held_out")
    if {"cat", "dining table"} & set(text := mask_objects(filled(sentence.template)))
  ]
  assert unmasked == []
