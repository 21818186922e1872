"""A chat template that puts a statement as a policy was trained to be asked.

Without the variable `form` it renders what the template of the base does. With it, e.g. by `chat_template_kwargs` of a
request to vLLM, the text of the last user turn is a statement, and the words of the question are put around it:

  {"messages": [… "The cat is left of the mug."], "chat_template_kwargs": {"form": "chain"}}
"""

import json
from collections.abc import Mapping

QUESTIONS_MARK = "{#- questions of spatial_vlm -#}"


def with_questions(template: str, questions: Mapping[str, tuple[str, str]]) -> str:
  """Returns the template with the variable `form`; one that an earlier export made loses its questions first.

  Args:
    template: Jinja, as transformers renders it.
    questions: form → the words before and after a statement.
  """
  template = template.split(QUESTIONS_MARK)[-1]
  if not questions:
    return template
  # JSON strings of ASCII are string literals of Jinja too.
  table = ", ".join(f"{json.dumps(form)}: {json.dumps(words)}" for form, words in questions.items())
  return _PROLOGUE.replace("QUESTIONS", f"{{{table}}}") + QUESTIONS_MARK + template


_PROLOGUE = """\
{%- if form is defined and form -%}
{%- set questions = QUESTIONS -%}
{%- if form not in questions -%}
{{- raise_exception('form is ' ~ form ~ '; choose one of ' ~ questions.keys() | join(', ')) -}}
{%- endif -%}
{%- set before, after = questions[form] -%}
{%- set asked = namespace(turns=[], parts=[]) -%}
{%- for message in messages -%}
{%- if not loop.last or message.role != 'user' -%}
{%- set asked.turns = asked.turns + [message] -%}
{%- elif message.content is string -%}
{%- set asked.turns = asked.turns + [{'role': 'user', 'content': before ~ message.content ~ after}] -%}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}
{%- set asked.parts = asked.parts + [{'type': 'text', 'text': before ~ part.text ~ after}] -%}
{%- else -%}
{%- set asked.parts = asked.parts + [part] -%}
{%- endif -%}
{%- endfor -%}
{%- set asked.turns = asked.turns + [{'role': 'user', 'content': asked.parts}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = asked.turns -%}
{%- endif -%}
"""
