"""The chat template with the questions of a task, rendered by transformers."""

import pytest
import transformers
from jinja2.exceptions import TemplateError

from spatial_vlm.huggingface.question_template import with_questions
from spatial_vlm.inference.questions import question_words
from spatial_vlm.tasks import find_task

CAPTION = 'The café\'s cat is {left} of "it".'


@pytest.fixture(scope="module")
def tokenizer(nano):
  return transformers.AutoTokenizer.from_pretrained(nano, local_files_only=True)


@pytest.fixture(scope="module")
def words():
  return {**question_words(find_task("vsr")), "odd": ('"é\n{{ ', " }}' \\ {% raw %}")}


def conversations():
  image, text = {"type": "image"}, {"type": "text", "text": CAPTION}
  return [
    [{"role": "user", "content": CAPTION}],
    [{"role": "user", "content": [image, text]}],
    [
      {"role": "system", "content": [{"type": "text", "text": "Use it."}]},
      {"role": "user", "content": [image, text]},
      {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
      {"role": "user", "content": [text]},
    ],
  ]


@pytest.mark.parametrize("messages", conversations())
def test_without_a_form_it_renders_as_before(tokenizer, words, messages):
  template = with_questions(tokenizer.chat_template, words)
  for generation in (False, True):
    render = {"add_generation_prompt": generation, "tokenize": False}
    found = tokenizer.apply_chat_template(messages, chat_template=template, **render)
    assert found == tokenizer.apply_chat_template(messages, **render)


@pytest.mark.parametrize("messages", conversations())
@pytest.mark.parametrize("form", ["chain", "short", "direct", "odd"])
def test_the_last_statement_is_put_as_a_question(tokenizer, words, messages, form):
  before, after = words[form]
  template = with_questions(tokenizer.chat_template, words)
  found = tokenizer.apply_chat_template(messages, chat_template=template, form=form, tokenize=False)
  plain = tokenizer.apply_chat_template(messages, tokenize=False)
  head, _, tail = plain.rpartition(CAPTION)
  assert found == head + before + CAPTION + after + tail


def test_other_forms_are_refused(tokenizer, words):
  template = with_questions(tokenizer.chat_template, words)
  with pytest.raises(TemplateError, match="form is haiku; choose one of chain, short, direct, odd"):
    tokenizer.apply_chat_template(
      conversations()[0], chat_template=template, form="haiku", tokenize=False
    )


def test_questions_replace_those_of_an_earlier_export(tokenizer, words):
  once = with_questions(tokenizer.chat_template, words)
  assert with_questions(once, words) == once
  assert with_questions(once, {}) == tokenizer.chat_template
