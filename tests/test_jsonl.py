"""Names of parts, and their order."""

from etils import epath

from spatial_vlm.jsonl import next_part, parts


def test_parts_come_in_the_order_of_the_starts(tmp_path):
  folder = epath.Path(tmp_path / "metrics")
  assert parts(folder) == [] and next_part(folder).name == "part-00000.jsonl"
  folder.mkdir()
  names = ["part-00002.jsonl", "part-100000.jsonl", "part-99999.jsonl"]
  for name in [*names, "part-1.jsonl", "part-00003.jsonl~", "lock"]:
    (folder / name).write_text("")
  assert [path.name for path in parts(folder)] == [names[0], names[2], names[1]]
  assert next_part(folder).name == "part-100001.jsonl"
