"""TSV files of VLMEvalKit, with the traps of the real ones."""

import base64

import numpy as np
import pytest
from benchmark_files import choice_row, encoded, mmbench_rows, pixels, png, write_tsv

from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmarks.tsv_table import TsvTable, decode_base64
from spatial_vlm.processor.image import UnreadableImage


def test_images_are_read_from_their_rows_and_from_those_that_they_refer_to(tmp_path):
  table = TsvTable(write_tsv(tmp_path / "MMBench_DEV_EN.tsv", mmbench_rows()))
  assert len(table.rows) == 7 and not table.bad
  for number in range(7):
    (image,) = table.images(number)
    assert image == png(3 if number < 4 else 7)
  fields = table.rows[0].fields
  assert "image" not in fields  # not held in memory
  assert fields["question"] == "How is it?\nLook twice."
  assert fields["hint"] == 'There is a "hint".\tIt has a tab.'
  assert table.rows[4].fields["hint"] is None and table.rows[4].fields["D"] is None
  assert [row.line for row in table.rows] == [2, 4, 6, 8, 10, 12, 14]  # each spans two lines
  assert {row.fields["image_name"] for row in table.rows} == {"3", "7"}


def test_a_reference_may_come_before_its_row_and_lead_on(tmp_path):
  rows = [choice_row("a", image="b"), choice_row("b", image="c"), choice_row("c", image=encoded(4))]
  table = TsvTable(write_tsv(tmp_path / "x.tsv", rows))
  assert [table.images(n) for n in range(3)] == [[png(4)]] * 3


@pytest.mark.parametrize("target", ["nowhere", "0"])
def test_a_reference_without_an_image_is_named(tmp_path, target):
  table = TsvTable(write_tsv(tmp_path / "x.tsv", [choice_row(0, image=target)]))
  with pytest.raises(UnreadableImage, match=f"index '{target}', which has no image"):
    table.images(0)


@pytest.mark.parametrize("listed", [repr, lambda items: str(items).replace("'", '"')])
def test_several_images_are_a_list_of_python_or_json(tmp_path, listed):
  row = choice_row(0, image=listed([encoded(1), encoded(2), encoded(3)]))
  table = TsvTable(write_tsv(tmp_path / "BLINK.tsv", [row, choice_row(1, image=0)]))
  assert table.images(0) == table.images(1) == [png(1), png(2), png(3)]


def test_paths_count_where_there_is_no_image(tmp_path):
  rows = [
    choice_row(0, image=encoded(1), image_path="a.jpg"),
    choice_row(1, image_path="b.jpg"),
    choice_row(2, image_path="['c.jpg', \"it's.jpg\"]"),
    choice_row(3),
  ]
  table = TsvTable(write_tsv(tmp_path / "x.tsv", rows))
  assert [table.images(n) for n in range(3)] == [[png(1)], ["b.jpg"], ["c.jpg", "it's.jpg"]]
  with pytest.raises(UnreadableImage, match="neither image nor image_path"):
    table.images(3)


def test_words_that_pandas_drops_are_text(tmp_path):
  row = choice_row(0, image=encoded(), A="None", B="NA", C="nan", D="")
  fields = TsvTable(write_tsv(tmp_path / "x.tsv", [row])).rows[0].fields
  assert [fields[letter] for letter in "ABCD"] == ["None", "NA", None, None]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_are_no_part_of_fields(tmp_path, end, mark):
  lines = ["index\tquestion\tanswer\tIMAGE", f"0\tWho?\tA\t{encoded(2)}"]
  (tmp_path / "x.tsv").write_bytes(mark + ((end or "\n").join(lines) + end).encode())
  table = TsvTable(tmp_path / "x.tsv")
  assert table.rows[0].fields["index"] == "0" and table.images(0) == [png(2)]


def test_large_images_are_read(tmp_path):
  """Python's own limit of a field is 131,072 characters."""
  data = np.random.default_rng(0).bytes(300_000)
  row = choice_row(0, image=base64.b64encode(data).decode())
  assert TsvTable(write_tsv(tmp_path / "x.tsv", [row])).images(0) == [data]


def test_bad_rows_are_listed_with_their_line_and_the_others_stay(tmp_path):
  rows = [choice_row(n, image=encoded(n)) for n in range(4)]
  path = write_tsv(tmp_path / "x.tsv", rows)
  lines = path.read_bytes().split(b"\n")
  lines[2] = lines[2].replace(b"Where", b"Wh\xffre")
  lines[3] += b"\tone too many"
  path.write_bytes(b"\n".join(lines))
  table = TsvTable(path)
  assert [(bad.line, bad.reason[:25]) for bad in table.bad] == [
    (3, "the row is not UTF-8"),
    (4, "the row has 7 fields and "),
  ]
  assert [table.images(n) for n in range(2)] == [[png(0)], [png(3)]]
  assert [row.line for row in table.rows] == [2, 5]


def test_an_open_quote_is_reported_with_the_rows_that_it_takes(tmp_path):
  lines = ["index\tquestion\tanswer", '0\t"Who?\tA', "1\tWho?\tA", "2\tWho?\tA"]
  (tmp_path / "x.tsv").write_text("\n".join(lines))
  table = TsvTable(tmp_path / "x.tsv")
  assert not table.rows and "a quote may be open" in table.bad[0].reason and table.bad[0].line == 2


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "no column question and no column answer"),
    ("index\tquestion\timage\n", "no column answer.*of test splits are hidden"),
    ("question\tanswer\tanswer\n", "a column twice"),
  ],
)
def test_files_without_questions_and_answers_are_refused(tmp_path, text, message):
  (tmp_path / "x.tsv").write_text(text)
  with pytest.raises(UsageError, match=message):
    TsvTable(tmp_path / "x.tsv")


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UsageError, match="none.tsv does not exist"):
    TsvTable(tmp_path / "none.tsv")


@pytest.mark.parametrize(
  "text",
  ["hello!" * 20, encoded()[:-3], "data:image/png;base64,@@", f"{encoded()}=AAAA", "[" * 900],
)
def test_what_is_no_base64_is_no_image(text):
  with pytest.raises(UnreadableImage, match="no base64"):
    decode_base64(text)


def test_data_urls_and_broken_lines_are_decoded():
  text = encoded(1)
  broken = f"data:image/png;base64,{text[:70]}\r\n{text[70:]}"
  np.testing.assert_array_equal(pixels(decode_base64(broken)), pixels(png(1)))


@pytest.mark.parametrize(
  "image", ["[]", "[1, 2]", "['a'", "[" * 3000 + "]", "[]" * 40, str(["a"] * 99)]
)
def test_broken_lists_are_no_images(tmp_path, image):
  row = choice_row(0, image=image.ljust(70))
  table = TsvTable(write_tsv(tmp_path / "x.tsv", [row]))
  with pytest.raises(UnreadableImage):
    table.images(0)
