import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_vlm import answers
from spatial_vlm.rewards.verdict_automaton import compile_automaton, verdicts

PIECES = [bytes([b]) for b in range(256)] + [
  *(b"Yes", b"es", b"Yes.", b"No", b"o.", b".", b"No.", b"Yes.No."),
  *(b"Summary: ", b"Sum", b"mary", b": ", b":", b"\nCaption: ", b"\n", b"\n\n", b"Caption: "),
  *(b"\nReasoning", b"Reasoning: ", b"\nConclusion: ", b"Conclusion: Yes.", b"Conclusion"),
  *(b"Applying 'behavior_", b"behavior_", b"left_of", b"': ", b"'", b" cat", b" [", b", "),
  *("é".encode(), "左".encode(), "左".encode()[:2], "左".encode()[2:], b"\xf0\x9f", b"\xc3\n"),
  *(b"c\nReasoning: d\nConclusion: No.", b"\nCaption: x\nReas", b"\r\n", b"\xe2\x80\xa8"),
]
SPECIAL, EOS = len(PIECES), len(PIECES) + 1
AUTOMATON = compile_automaton(answers.STATEMENT, [*PIECES, b"", b"<|im_end|>"], EOS)
T = 160
run = jax.jit(verdicts)


def on_device(tokens: list[int]) -> int:
  """Verdict of one padded row."""
  row = np.full(T, SPECIAL)
  row[: len(tokens)] = tokens
  return int(run(AUTOMATON, row, np.arange(T) < len(tokens)))


def by_parsing(tokens: list[int]) -> int:
  """The same from the decoded text, as the host parser reads it."""
  if EOS not in tokens:
    return -1
  text = b"".join(PIECES[t] for t in tokens[: tokens.index(EOS)]).decode(errors="replace")
  answer = answers.STATEMENT.parse(text)
  return -1 if answer is None else answer.verdict


line = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=8)
steps = st.one_of(
  line, st.sampled_from(["Conclusion: Yes.", "Caption: ", "'", " ", "\r", "\x85", "\u2028"])
)
prefixes = st.one_of(
  st.just(""),
  st.builds("Summary: {}\nCaption: {}\nReasoning: {}\nConclusion: ".format, steps, steps, steps),
  st.builds(
    "Applying 'behavior_{}': {}\nConclusion: ".format,
    st.from_regex(r"[a-z0-9_]{1,6}", fullmatch=True),
    steps,
  ),
)
written = st.builds(
  lambda prefix, ending: (prefix + ending).encode(), prefixes, st.sampled_from(["Yes.", "No."])
)


@st.composite
def mutated(draw) -> bytes:
  """An answer with bytes inserted, deleted, changed or repeated; often still valid, often just invalid."""
  text = draw(written)
  for _ in range(draw(st.integers(0, 3))):
    at = draw(st.integers(0, len(text)))
    gone = draw(st.integers(0, 3))
    fresh = draw(
      st.one_of(
        st.binary(max_size=2), st.sampled_from([b"\n", b".", b" ", b"Yes.", b"\xff", b"'", b":"])
      )
    )
    text = text[:at] + fresh + text[at + gone :]
  return text


@st.composite
def tokenised(draw, texts) -> list[int]:
  """A random, mostly non-canonical, split of a text into tokens."""
  text, tokens = draw(texts), []
  while text:
    fitting = [i for i, piece in enumerate(PIECES) if text.startswith(piece)]
    tokens.append(draw(st.sampled_from(fitting)))
    text = text[len(PIECES[tokens[-1]]) :]
  return tokens[: T - 2]


FAST = settings(max_examples=300, deadline=None)
ending = st.sampled_from([[EOS], [EOS], [EOS], [], [EOS, 65], [EOS, EOS]])


@FAST
@given(tokenised(written), ending)
def test_agrees_with_the_parser_on_answers_however_tokenised(tokens, end):
  assert on_device(tokens + end) == by_parsing(tokens + end)


@FAST
@given(tokenised(mutated()), ending)
def test_agrees_with_the_parser_on_mutated_answers(tokens, end):
  assert on_device(tokens + end) == by_parsing(tokens + end)


@FAST
@given(st.lists(st.integers(0, len(PIECES) - 1) | st.just(EOS), max_size=40))
def test_agrees_with_the_parser_on_random_tokens(tokens):
  assert on_device(tokens) == by_parsing(tokens)


def spell(text: str | bytes) -> list[int]:
  return list(text.encode() if isinstance(text, str) else text)


CHAIN = "Summary: a\nCaption: cat [0, 20, 40, 60]\nReasoning: x=20 < x=40\nConclusion: Yes."
SHORT = "Applying 'behavior_left_of': x=20 < x=40\nConclusion: No."


@pytest.mark.parametrize(
  ("text", "verdict"),
  [
    ("Yes.", 1),
    ("No.", 0),
    (CHAIN, 1),
    (SHORT, 0),
    ("", -1),
    ("Yes", -1),
    ("Yes. ", -1),
    ("Yes.\n", -1),
    ("yes.", -1),
    ("Yes.No.", -1),
    (CHAIN + "\n" + CHAIN, -1),
    (CHAIN.replace("a\n", "\n"), -1),
    (CHAIN.replace("x=20 <", "x\n"), -1),
    (SHORT.replace("left_of", "Left"), -1),
    (SHORT.replace("left_of", ""), -1),
    (CHAIN.replace("x=20", "Conclusion: No."), 1),
    (b"Applying 'behavior_a': \xff\xfe\nConclusion: Yes.", 1),  # undecodable bytes read as U+FFFD
    (b"Summary: \xe5\nCaption: \xe5\xb7\nReasoning: \x80\nConclusion: No.", 0),
    (b"Yes\xff.", -1),
  ],
)
def test_known_answers(text, verdict):
  assert on_device([*spell(text), EOS]) == by_parsing([*spell(text), EOS]) == verdict


def test_the_answer_must_end_and_what_follows_its_end_does_not_count():
  assert on_device(spell("Yes.")) == -1
  assert on_device([*spell("Yes."), EOS, *spell("No."), EOS]) == 1
  row = np.array([*spell("Yes."), EOS])
  assert run(AUTOMATON, row, np.array([True] * 4 + [False])) == -1  # cut off before its end
  assert run(AUTOMATON, np.array([EOS, *spell("Yes."), EOS]), np.array([False] + [True] * 5)) == 1


@pytest.mark.parametrize("foreign", [SPECIAL, EOS + 1, EOS + 500])
def test_special_tokens_and_unknown_ids_invalidate_an_answer(foreign):
  tokens = [*spell(SHORT), EOS]
  assert on_device(tokens) == 0
  tokens[25] = foreign  # inside the free text, which takes any character
  assert on_device(tokens) == -1
  assert on_device([foreign, *spell("Yes."), EOS]) == -1


def test_any_leading_axes():
  rows = np.full((2, 3, 6), EOS)
  rows[0, :, :4], rows[1, :, :3] = spell("Yes."), spell("No.")
  rows[1, 2, 0] = SPECIAL
  found = run(AUTOMATON, rows, np.ones(rows.shape, bool))
  assert found.tolist() == [[1, 1, 1], [0, 0, -1]]


def test_every_form_of_the_grammar_is_compiled():
  """Fails when a form is added to `answers` that the cases above do not write."""
  forms = {re.match(r"\w*", prefix)[0] for prefix in answers.STATEMENT.forms.values()}
  assert forms == {"Summary", "Applying", ""}


def test_a_full_size_vocabulary_is_compiled_in_seconds():
  rng = np.random.default_rng(0)
  lengths = np.minimum(128, rng.geometric(0.15, 151_936))
  pieces = [rng.bytes(n) for n in lengths]
  table = compile_automaton(answers.STATEMENT, pieces, 151_645).transitions
  assert table.shape[1] == 151_936 and table.nbytes < 16e6
