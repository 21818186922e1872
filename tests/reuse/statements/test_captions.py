"""Statements made from relation keys have these keys again."""

import pytest

from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.reuse.statements.captions import masked_caption, relation_in_words
from spatial_vlm.reuse.statements.relation_keys import relation_key


@pytest.mark.parametrize(
  "form", ["{}", "not {}", "{}, from Y's viewpoint", "not {}, from man's viewpoint"]
)
def test_every_relation_has_a_statement_of_its_key(form):
  keys = [form.format(relation) for relation in META_CATEGORY]
  assert [relation_key(masked_caption(key)) for key in keys] == keys
  assert [relation_in_words(key) for key in keys] == keys


@pytest.mark.parametrize(
  "key", ["reversed behind", "not reversed on", "reversed left of, from X's viewpoint"]
)
def test_exchanged_roles_have_a_statement(key):
  assert relation_key(masked_caption(key)) == relation_in_words(key) == key


@pytest.mark.parametrize(
  "words", ["", "is", "not", "reversed", "gibberish wobble", "reversed wobble"]
)
def test_unknown_relations_have_none(words):
  assert masked_caption(words) == relation_in_words(words) == ""
