import html.parser
import re

from markdown_it import MarkdownIt

from spatial_vlm.evaluation.results_report import Aim, Report, markdown_report
from spatial_vlm.evaluation.scores import score_statements

METHODS = ("one word", "full chain", "short")
FURTHER = "full chain, other weights"
HOSTILE = (
  "<script>alert(1)</script> <img src=x onerror=alert(1)> [click](http://a.example) ![x](http://b.example/p.png) "
  "www.c.example **bold** `code` | cell | $x$ &lt; \\ # head ~~gone~~ \x1b[31mred \u202eabc\n\n# title\n- item"
)


def answered(predict, right, n=1000, tokens=45, relation="left of", **fields):
  """N answers, the first `right` of them right."""
  return [
    predict(
      i,
      i % 2,
      i % 2 if i < right else 1 - i % 2,
      generated_tokens=tokens,
      relation=relation,
      **fields,
    )
    for i in range(n)
  ]


def report(runs, **fields):
  """A report of these runs; omitted fields are empty."""
  scores = {method: score_statements(predictions) for method, predictions in runs.items()}
  empty = dict(meta_category={}, figures={}, provenance={})
  return Report(**dict(runs=runs, scores=scores, rows=[*runs], pairs=[], aims=[], **empty) | fields)


class Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)

  def handle_data(self, data):
    self.text += data


def rendered(markdown) -> Tags:
  """HTML of a strict GitHub-like renderer that lets raw HTML through and links bare addresses."""
  return Tags(
    MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
  )


def test_without_aims_the_report_says_so(predict):
  page = markdown_report(report({"one word": answered(predict, 5, 10)}))
  assert "were not measured" in page


def whole_report(predict, **fields):
  runs = {method: answered(predict, 500 + 40 * i, **fields) for i, method in enumerate(METHODS)}
  runs[FURTHER] = answered(predict, 690, **fields)
  return markdown_report(
    report(
      runs,
      rows=METHODS,
      pairs=[*zip(METHODS[:-1], METHODS[1:], strict=True), (METHODS[1], FURTHER)],
      aims=[Aim("answers more than half", True, "It does.")],
      meta_category={"left of": "Projective"},
      figures={"Training curves": "training_curves.png"},
      provenance={"Config": "configs/demo.py:tiny", "Hardware": "two cores"},
    )
  )


def test_the_report_has_every_section(predict):
  text = whole_report(predict)
  page = rendered(text)
  assert page.tags.count("table") == 5  # results, paired tests, beyond accuracy, category, relation
  assert page.tags.count("img") == 1 and "](training_curves.png)" in text
  for i in range(len(METHODS) - 1):
    assert f"{METHODS[i]} → {METHODS[i + 1]}" in text
  assert f"{METHODS[1]} → {FURTHER}" in text
  assert "- **Answers more than half: met.** It does." in text
  assert re.search(r"\| left of\s+\| Projective\s+\| +1,000 \|", text)
  assert "- Config: configs/demo.py:tiny" in text
  results = text.split("## Aims")[0]
  assert FURTHER not in results and METHODS[2] in results


def test_boxes_of_chains_are_reported(predict, chain):
  text = chain(1, {"cat": (100, 100, 300, 300), "mug": (0, 0, 20, 20)})
  runs = {"full chain": [predict(i, 1, 1, text) for i in range(10)]}
  page = markdown_report(report(runs))
  line = next(line for line in page.partition("## Boxes")[2].splitlines() if "full chain" in line)
  cells = [cell.strip() for cell in line.strip("|").split("|")]
  assert cells[:3] == ["full chain", "10", "0.500"]
  assert cells[3:] == ["100.0 % (72.2–100.0)"] * 2 + ["50.0 % (29.9–70.1)"]


def test_untrusted_text_is_escaped(predict):
  """Caption, relation and answer reach the page literally and add no element to it."""
  plain = rendered(whole_report(predict, text="Summary: x"))
  hostile = rendered(
    whole_report(
      predict, text=f"{HOSTILE}\n````\n</code></pre><b>", caption=HOSTILE, relation=HOSTILE
    )
  )
  assert hostile.tags == plain.tags
  assert "<script>alert(1)</script> <img src=x onerror=alert(1)>" in hostile.text
  assert (
    "[click](http://a.example)" in hostile.text
    and "**bold** `code` | cell | $x$ &lt; \\" in hostile.text
  )
  assert "\x1b" not in hostile.text and "\u202e" not in hostile.text


def test_a_model_that_says_one_word_is_called_untrained(predict):
  runs = {
    "majority": [predict(i, i % 2, 1, generated_tokens=0) for i in range(200)],
    "direct": [predict(i, i % 2, 0) for i in range(200)],
    "chain": [predict(i, i % 2, i % 2) for i in range(200)],
  }
  page = markdown_report(report(runs))
  assert "**direct is untrained in effect.** It says no to 100.0 % of the statements" in page
  assert "**chain is untrained" not in page
