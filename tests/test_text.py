"""Untrusted words in Markdown, as a Markdown parser reads them."""

from markdown_it import MarkdownIt

from spatial_vlm.text import escaped, fenced, markdown_table, percent


def test_escaped_text_makes_no_link_of_a_bare_address():
  assert escaped("http://a.example www.b.example") == r"http\://a.example www\.b.example"
  assert escaped("The red_mug's #2") == r"The red\_mug's \#2"


def test_fence_outlasts_the_backticks_inside():
  block = fenced("a ````` b\n```")
  assert block.startswith("``````text\n") and block.endswith("\n``````")
  assert [token.type for token in MarkdownIt().parse(block)] == ["fence"]


def test_tables_align_text_left_and_figures_right():
  assert markdown_table(["name", "what", "n"], [["a", "bb", "1,000"]], text_columns=2) == (
    "| name | what |     n |\n|------|------|------:|\n| a    | bb   | 1,000 |"
  )


def test_shares_have_one_decimal_and_a_dash_where_there_is_none():
  assert [percent(share) for share in (0.0, 0.0449, 0.7414, 1.0, None)] == [
    *("0.0 %", "4.5 %", "74.1 %", "100.0 %", "–")
  ]
