"""Benchmarks read files of their published schemas; answers get a strict and an extracted verdict."""

import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import (
  IMAGE,
  cell,
  choice_row,
  cvbench_columns,
  encoded,
  mmbench_rows,
  pixels,
  png,
  write_parquet,
  write_tsv,
)
from PIL import Image

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import BadRecordError, NoImageFound, TooManyBadRecords
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference.generation import parsed_verdict
from spatial_vlm.inference.policy import Generation
from spatial_vlm.processor.image import ImageSettings, patchify
from spatial_vlm.tasks import TASKS, find_task, find_worded_task


def read(task, path, images="", max_bad_share=0.0):
  return find_task(task).read(path, images, None, max_bad_share)


def judged(task, text, record, truncated=False):
  """Returns the strict and the extracted verdict of an answer."""
  answer = Generation(text, 3, truncated)
  return parsed_verdict(task, answer, record), task.extract(text, record)


def test_rotated_questions_of_mmbench_form_groups(tmp_path):
  source = read("mmbench", write_tsv(tmp_path / "MMBench_DEV_EN.tsv", mmbench_rows()))
  records = [source.describe(n)[0] for n in range(len(source))]
  assert [r.group for r in records] == ["3"] * 4 + ["7"] * 3
  assert {r.options[r.label] for r in records} == {"left", "one"}
  assert records[0].caption.splitlines()[0] == 'Hint: There is a "hint".\tIt has a tab.'
  np.testing.assert_array_equal(source[2].image, pixels(png(3)))
  assert source.origin(2)[1] == 6 and source[2].id == 2 and not source[2].more_images
  assert [r.image for r in records] == ["3"] * 4 + ["7"] * 3  # shared images have one name


def test_copies_of_3dsrbench_form_groups(tmp_path):
  ids = ["AB12CD", "AB12CD-1", "EF34-1", "EF34"]
  rows = [
    choice_row(n, image=encoded(n), qid=id, category="height_higher") for n, id in enumerate(ids)
  ]
  source = read("3dsrbench", write_tsv(tmp_path / "3dsrbench_v1_vlmevalkit_circular.tsv", rows))
  assert [source.describe(n)[0].group for n in range(4)] == ["AB12CD", "AB12CD", "EF34", "EF34"]
  assert source.describe(0)[0].relation == "height_higher"


def test_cvbench_is_read_with_its_strata(tmp_path):
  source = read(
    "cvbench", write_parquet(tmp_path / "test.parquet", cvbench_columns(), {"image": IMAGE})
  )
  record, _ = source.describe(2)
  assert record.strata == {"type": "3D", "source": "Omni3D"} and record.relation == "Depth"
  assert [source.describe(n)[0].label for n in range(5)] == [5, 1, 0, 1, 0]
  np.testing.assert_array_equal(source[4].image, pixels(png(4)))
  assert source.describe(0)[0].image == "test.parquet:1"
  names = [source.image_name(n) for n in range(5)]  # digests: the file names no image
  again = read(
    "cvbench", write_parquet(tmp_path / "b.parquet", cvbench_columns(), {"image": IMAGE})
  )
  assert len({*names}) == 5 and names == [again.image_name(n) for n in range(5)]


def test_blink_keeps_the_spatial_subtasks_and_leaves_the_others_out(tmp_path, caplog):
  names = ["Spatial_Relation", "Art_Style", "Relative_Depth", "Multi-view_Reasoning", "IQ_Test"]
  rows = [
    choice_row(n, image=str([encoded(n), encoded(n + 1)]), category=name, answer="AZBAZ"[n])
    for n, name in enumerate(names)
  ]
  with caplog.at_level(logging.INFO):
    source = read("blink", write_tsv(tmp_path / "BLINK.tsv", rows))
  assert len(source) == 3 and not source.bad and "2 rows of" in caplog.text
  example = source[1]
  assert example.record.relation == "Relative_Depth"
  np.testing.assert_array_equal(example.images[0], pixels(png(2)))
  np.testing.assert_array_equal(example.images[1], pixels(png(3)))


def test_hidden_answers_of_blinks_test_split_are_refused(tmp_path):
  columns = {
    "sub_task": ["Spatial_Relation"] * 2,
    "question": ["Is it?"] * 2,
    "choices": [["yes", "no"]] * 2,
    "answer": ["hidden"] * 2,
    "image_1": [cell(0)] * 2,
  }
  path = write_parquet(tmp_path / "test.parquet", columns, {"image_1": IMAGE})
  with pytest.raises(TooManyBadRecords, match="answers of test splits are often hidden"):
    read("blink", path)


def test_embspatial_numbers_its_answers(tmp_path):
  columns = {
    "question_id": ["mp3d_0", "scannet_1"],
    "question": ["How are door and table?", "Which is close?"],
    "relation": ["left", "close"],
    "answer_options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
    "answer": [2, 0],
    "data_source": ["mp3d", "scannet"],
    "image": [cell(0), cell(1)],
  }
  source = read("embspatial", write_parquet(tmp_path / "test.parquet", columns, {"image": IMAGE}))
  assert [source.describe(n)[0].label for n in range(2)] == [2, 0]
  assert source.describe(1)[0].strata == {"data_source": "scannet"}


@pytest.mark.parametrize("lines", [False, True])
def test_embspatial_of_its_authors_holds_images_in_base64(tmp_path, lines):
  asked = {"question": "How are\ndoor and table?", "answer_options": ["a", "b"], "answer": 1}
  rows = [{**asked, "relation": "left", "image": encoded(n)} for n in range(2)]
  path = tmp_path / "embspatial_bench.json"
  path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
  source = read("embspatial", path)
  np.testing.assert_array_equal(source[1].image, pixels(png(1)))
  assert source.describe(1)[0].label == 1 and source.image_name(0) != source.image_name(1)
  columns = {name: [row[name] for row in rows] for name in rows[0]}
  source = read("embspatial", write_parquet(tmp_path / "test.parquet", columns, {}))
  np.testing.assert_array_equal(source[1].image, pixels(png(1)))


def test_missing_fields_of_mmbench_on_the_hub_are_nan(tmp_path):
  columns = {"question": ["Which?"] * 2, "answer": ["A", "B"], "hint": ["nan", "Look."]}
  columns |= {"A": ["x"] * 2, "B": ["y"] * 2, "C": ["nan", "z"], "D": [float("nan")] * 2}
  columns |= {"L2-category": ["relation"] * 2, "image": [cell(0), cell(1)]}
  source = read("mmbench", write_parquet(tmp_path / "dev.parquet", columns, {"image": IMAGE}))
  first, second = (source.describe(n)[0] for n in range(2))
  assert (first.options, second.options) == (("x", "y"), ("x", "y", "z"))
  assert first.caption.startswith("Question:") and second.caption.startswith("Hint: Look.")
  assert first.strata == {"l2-category": "relation"}


def test_a_question_of_several_categories_counts_in_each(tmp_path):
  """POPE's TSV joins the categories; VLMEvalKit's POPE_rating splits them."""
  row = {"index": 1, "image": encoded(), "question": "Is it?", "answer": "Yes"}
  path = write_tsv(tmp_path / "POPE.tsv", [{**row, "category": "adversarial,popular"}])
  record, _ = read("pope", path).describe(0)
  answer = Prediction(0, "Is it?", record.relation, 1, 1, "Yes.", {}, 2, 9, False)
  assert [*find_task("pope").score([answer])["by_relation"]] == ["adversarial", "popular"]


def test_pope_is_answered_by_yes_and_no(tmp_path):
  columns = {
    "question": ["Is there a cat in the image?"] * 2,
    "answer": [1, 0],
    "category": ["adversarial", "popular"],
    "image_source": ["COCO_val2014_000000000001"] * 2,
    "image": [cell(0)] * 2,
  }
  features = {"image": IMAGE, "answer": {"_type": "ClassLabel", "names": ["no", "yes"]}}
  source = read("pope", write_parquet(tmp_path / "test.parquet", columns, features))
  assert [source.describe(n)[0].label for n in range(2)] == [1, 0]
  assert source.image_name(1) == "COCO_val2014_000000000001"
  task = find_task("pope")
  assert task.question(source.describe(0)[0].caption, "direct") == (
    "Is there a cat in the image? Answer Yes or No."
  )
  assert judged(task, "Yes.", source.describe(0)[0]) == (1, 1)
  assert judged(task, "**No**, there is none.", source.describe(0)[0]) == (-1, 0)


def test_statements_of_vlmevalkit_are_asked_as_vsr_asks(tmp_path):
  end = " Please answer yes or no. Please answer strictly Yes or No."
  rows = [
    {
      "index": n,
      "image": encoded(n),
      "question": f"The cat is left of mug {n}.{end}",
      "answer": word,
    }
    for n, word in enumerate(["Yes", "No"])
  ]
  path = write_tsv(tmp_path / "vsr_zeroshot_dataset_yn_strict.tsv", rows)
  source = read("vsr-zeroshot", path)
  record, _ = source.describe(1)
  assert source.pairs[1] == ("", "The cat is left of mug 1.")
  assert find_task("vsr-zeroshot").is_measured(path.stem)
  assert not find_task("vsr").is_measured("train") and find_task("vsr").is_measured("dev")
  assert record.label == 0
  asked = find_worded_task("vsr-zeroshot", "vlmevalkit", "plain").question(record.caption, "direct")
  assert asked == rows[1]["question"]
  asked = find_task("vsr-zeroshot").question(record.caption, "direct")
  assert asked == "The cat is left of mug 1. True? Answer Yes or No."


def test_whatsup_names_its_images_and_lists_the_right_caption_first(tmp_path):
  for name in ("a", "b"):
    (tmp_path / f"{name}.jpeg").write_bytes(png(ord(name)))
  captions = [f"A mug {relation} a table" for relation in ("on", "under", "left of", "right of")]
  rows = [{"image_path": f"data/{n}.jpeg", "caption_options": captions} for n in ("a", "b")]
  rows += [{"image_path": "c.jpeg"}, 3]
  (tmp_path / "controlled_images_dataset.json").write_text(json.dumps(rows))
  source = read("whatsup", tmp_path / "controlled_images_dataset.json", tmp_path, 0.5)
  assert [bad.line for bad in source.bad] == [4, 3] and len(source) == 2
  example = source[1]
  np.testing.assert_array_equal(example.image, pixels(png(ord("b"))))
  assert example.record.options[example.record.label] == captions[0]
  assert example.record.relation == "on"
  pairs = [[139, "A dog to the left of a cat", "A dog to the right of a cat"]]
  (tmp_path / "coco_qa_two_obj.json").write_text(json.dumps(pairs))
  record, _ = read("whatsup", tmp_path / "coco_qa_two_obj.json").describe(0)
  assert record.image == "000000000139.jpg" and record.relation == "left of"
  (tmp_path / "vg_qa_one_obj.json").write_text(json.dumps([[2317, *pairs[0][1:]], ["9", "a", "b"]]))
  source = read("whatsup", tmp_path / "vg_qa_one_obj.json")
  assert [source.image_name(n) for n in range(2)] == ["2317.jpg", "9.jpg"]
  with pytest.raises(UsageError, match="data.images is empty"):
    read("whatsup", tmp_path / "coco_qa_two_obj.json")[0]
  with pytest.raises(
    NoImageFound, match=r"none of 1 records .*_two_obj.json:1: .*000000000139.jpg"
  ):
    read("whatsup", tmp_path / "coco_qa_two_obj.json", tmp_path)


def test_an_unreadable_image_is_reported_with_its_row(tmp_path):
  rows = [choice_row(0, image=encoded(0)), choice_row(1, image=encoded(0)[:-40] + "=" * 4)]
  source = read("mmbench", write_tsv(tmp_path / "x.tsv", rows))
  with pytest.raises(BadRecordError, match="x.tsv:3: "):
    source[1]


@pytest.mark.parametrize(
  ("text", "strict", "extracted"),
  [
    *(("B", 1, 1), ("B.", 1, 1), ("(B)", -1, 1), ("**B**", -1, 1), ("Answer: B", -1, 1)),
    *(("the noisy half", -1, 1), ("C", 2, -1), ("", -1, -1), ("A or B", -1, -1)),
    ("Summary: a\nCaption: b\nReasoning: c\nConclusion: B.", 1, 1),
    ("Applying 'behavior_x': a\nConclusion: A.", 0, 0),
  ],
)
def test_letters_are_judged_strictly_and_extracted(tmp_path, text, strict, extracted):
  rows = [choice_row(0, image=encoded())]
  record, _ = read("mmbench", write_tsv(tmp_path / "x.tsv", rows)).describe(0)
  task = find_task("mmbench")
  assert judged(task, text, record) == (strict, extracted)
  assert judged(task, text, record, truncated=True)[0] == -1


@pytest.mark.parametrize(
  ("right", "text", "strict", "extracted"),
  [
    *(("3", "3", 0, 0), ("3", "3.", 0, 0), ("3", "There are 3.", 1, 0), ("3", "three", 1, 0)),
    *(("Left", "left", 0, 0), ("Yes", "No", 1, 1), ("3", "4", 1, 1), ("3", "", -1, -1)),
    *(("3", "a\nb", -1, 1), ("Yes", "**Yes**, it is.", 1, 0)),
  ],
)
def test_words_and_numbers_are_judged_strictly_and_extracted(
  tmp_path, right, text, strict, extracted
):
  columns = {"question": ["How many?"], "answer": [right], "image": [cell(0)]}
  path = write_parquet(tmp_path / "test.parquet", columns, {"image": IMAGE})
  record, _ = read("realworldqa", path).describe(0)
  task = find_task("realworldqa")
  assert record.label == 0 and judged(task, text, record) == (strict, extracted)
  assert task.question(record.caption, "direct") == "How many?"


def test_options_in_the_question_are_judged_as_letters(tmp_path):
  columns = {
    "question": ["Where to?\nA. left\nB. right\nPlease answer directly with only the letter."],
    "answer": ["B"],
    "image": [cell(0)],
  }
  path = write_parquet(tmp_path / "test.parquet", columns, {"image": IMAGE})
  record, _ = read("realworldqa", path).describe(0)
  task = find_task("realworldqa")
  assert [judged(task, text, record) for text in ("B", "(B)", "right", "left")] == [
    (1, 1),
    (-1, 1),
    (-1, 1),
    (-1, 0),
  ]


@pytest.mark.parametrize(
  "name", ["vsr", "vsr-zeroshot", "mmbench", "cvbench", "pope", "realworldqa"]
)
def test_every_template_and_explanation_words_every_form(name):
  task = find_task(name)
  for template in ("project", *task.templates):
    for form in ("direct", "chain", "short"):
      plain, explained = (
        find_worded_task(name, template, prompt).question("A caption.", form)
        for prompt in ("plain", "explained")
      )
      assert "A caption." in plain and explained.startswith(plain) and len(explained) > len(plain)


@pytest.mark.parametrize("name", ["vsr", "mmbench"])
def test_the_example_of_an_explanation_has_the_form_that_it_explains(name):
  """A model that copies the example's form is read strictly, boxes too."""
  for template in ("project", *find_task(name).templates):
    task = find_worded_task(name, template, "explained")
    text = task.question("A caption.", "chain")
    example = text[text.rindex("Summary: ") :]
    answer = task.grammar.parse(example)
    assert answer.form == "chain" and answer.verdict == 1
    assert answer.boxes == {"cat": (100, 300, 400, 700), "mug": (600, 400, 750, 600)}
    short = task.question("A caption.", "short")
    assert task.grammar.parse(short[short.rindex("Applying ") :]).form == "short"


def test_templates_have_others_words():
  asked = {
    name: find_worded_task("vsr", name, "plain").question("The cat is on the mat.", "direct")
    for name in ("project", *TASKS["vsr"].templates)
  }
  assert asked == {
    "project": "The cat is on the mat. True? Answer Yes or No.",
    "vlmevalkit": "The cat is on the mat. Please answer yes or no. Please answer strictly Yes or No.",
    "tri": 'Based on the image, is this statement "True" or "False"? The cat is on the mat.\n'
    'Respond with "True" or "False" directly.',
    "instructblip": "Based on the image, is this statement true or false? "
    '"The cat is on the mat." Answer:',
    "minigpt_v2": "[vqa] Based on the image, is this statement true or false? The cat is on the mat.",
  }


def test_answers_to_a_template_are_read_in_its_words(tmp_path):
  tri = find_worded_task("vsr", "tri", "plain")
  assert [judged(tri, text, None) for text in ("True", "False.", "**True**", "Yes")] == [
    (1, 1),
    (0, 0),
    (-1, 1),
    (-1, -1),
  ]
  assert dict(tri.first_words) == {1: "True", 0: "False"}
  with pytest.raises(
    UsageError, match="template is 'other'; choose one of project, vlmevalkit, tri"
  ):
    find_worded_task("vsr", "other", "plain")


def test_documented_patches_are_those_of_pictures_of_the_size():
  settings = ImageSettings(  # Qwen3-VL-8B's preprocessor_config.json
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    min_pixels=65_536,
    max_pixels=16_777_216,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
  )
  text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
  rows = re.findall(r"^\| (\d+) × (\d+) \|.*\| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
  assert len(rows) == 6
  for width, height, *documented in rows:
    patches, grid = patchify(Image.new("RGB", (int(width), int(height))), settings)
    assert [f"{len(patches):,}", f"{math.prod(grid) // 4:,}"] == documented
