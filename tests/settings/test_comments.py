"""Comments on settings, read from config files."""

from pathlib import Path

from spatial_vlm.settings.comments import comment_about, comment_files, comments, docstring_parts

CONFIGS = Path(__file__).parents[2] / "configs"


def test_comments_are_found_above_after_and_at_the_end(tmp_path):
  file = tmp_path / "some.py"
  file.write_text(
    "config = dict(\n"
    "  a=1,  # beside\n"
    "  # above,\n"
    "  # on two lines\n"
    "  b=2,\n"
    "  group=dict(c=3, d=4),  # of the group\n"
    "  long=(  # at the start\n"
    "    1,\n"
    "  ),\n"
    "  last=(\n"
    "    2\n"
    "  ),  # at the end\n"
    "  plain=5,\n"
    ")\n"
  )
  assert comments(file) == [
    (("a",), "beside"),
    (("b",), "above, on two lines"),
    (("group",), "of the group"),
    (("group", "c"), ""),
    (("group", "d"), ""),
    (("long",), "at the start"),
    (("last",), "at the end"),
    (("plain",), ""),
  ]


def test_a_number_is_no_group(tmp_path):
  file = tmp_path / "some.py"
  file.write_text("dict(data=-1)  # replicas\ndict(data=dict(x=1))  # the records\n")
  tables = [comments(file, constants=False)]
  assert comment_about("data", tables) == "the records"


def test_a_copy_of_a_config_has_the_comments_of_the_project(tmp_path):
  copy = tmp_path / "mine.py"
  copy.write_text("x = 1")
  tables = [comments(file) for file in comment_files(copy, [CONFIGS], "sft")]
  assert comment_about("optimizer.beta2", tables) == "decay of the second moment"
  assert comment_about("epochs", tables) == "passes over the conversations"


def test_presets_stand_in_the_docstring():
  title, presets = docstring_parts(CONFIGS / "dapo.py")
  assert title == "DAPO: reinforcement learning from the labels alone."
  assert [*presets] == ["tiny", "reuse", "8b"]
