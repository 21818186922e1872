"""Parquet files as the Hugging Face hub writes them."""

import pytest
from benchmark_files import IMAGE, cell, cvbench_columns, png, write_parquet

from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmarks.parquet_table import ParquetTable
from spatial_vlm.processor.image import UnreadableImage

VALUE = {"_type": "Value", "dtype": "string"}


@pytest.mark.parametrize("features", [None, {"image": IMAGE}])
def test_images_are_read_from_structs_row_group_by_row_group(tmp_path, features):
  columns = cvbench_columns()
  if features is None:  # by Arrow types
    path = write_parquet(tmp_path / "test_2d.parquet", columns, {"image": IMAGE})
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path).replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, path, row_group_size=2)
  else:
    path = write_parquet(tmp_path / "test_2d.parquet", columns, features)
  table = ParquetTable(path)
  assert [row.line for row in table.rows] == [1, 2, 3, 4, 5]
  for number in (4, 0, 3, 1, 2):
    assert table.images(number) == [png(number)]
  assert (
    table.rows[1].fields["choices"] == ["left", "right"] and "image" not in table.rows[1].fields
  )


def test_shards_are_one_table_and_none_may_be_missing(tmp_path):
  for shard in range(3):
    columns = {"question": [f"{shard}"], "image": [cell(shard)]}
    write_parquet(tmp_path / f"test-{shard:05d}-of-00003.parquet", columns, {"image": IMAGE})
  write_parquet(tmp_path / "train-00000-of-00001.parquet", {"question": ["t"]}, {})
  table = ParquetTable(tmp_path / "test-*.parquet")
  assert [row.fields["question"] for row in table.rows] == ["0", "1", "2"]
  assert [row.line for row in table.rows] == [1, 1, 1]
  assert [table.images(n) for n in range(3)] == [[png(0)], [png(1)], [png(2)]]
  (tmp_path / "test-00001-of-00003.parquet").unlink()
  with pytest.raises(UsageError, match="2 of 3 shards test-"):
    ParquetTable(tmp_path / "test-*.parquet")
  with pytest.raises(UsageError, match="1 of 3 shards"):
    ParquetTable(tmp_path / "test-00000-of-00003.parquet")


def test_images_of_several_columns_and_lists_keep_their_order(tmp_path):
  names = ["image_1", "image_2", "image_10"]
  columns = {
    "image_10": [cell(10), None],
    "image_2": [cell(2), None],
    "image_1": [cell(1), cell(1)],
    "question": ["a", "b"],
  }
  path = write_parquet(tmp_path / "val.parquet", columns, dict.fromkeys(names, IMAGE))
  table = ParquetTable(path)
  assert table.images(0) == [png(1), png(2), png(10)] and table.images(1) == [png(1)]
  for kind in ("List", "Sequence"):
    columns = {"images": [[cell(5), cell(3)], []], "question": ["a", "b"]}
    features = {"images": {"_type": kind, "feature": IMAGE}}
    table = ParquetTable(write_parquet(tmp_path / f"{kind}.parquet", columns, features))
    assert table.images(0) == [png(5), png(3)]
    with pytest.raises(UnreadableImage, match="the row has 0 images"):
      table.images(1)


def test_class_labels_are_named_and_files_without_bytes_too(tmp_path):
  columns = {
    "answer": [1, 0, -1, 7],
    "image": [{"bytes": None, "path": "a.jpg"}, cell(1, "b.jpg"), None, cell(3)],
  }
  features = {"answer": {"_type": "ClassLabel", "names": ["no", "yes"]}, "image": IMAGE}
  table = ParquetTable(write_parquet(tmp_path / "x.parquet", columns, features))
  assert [row.fields["answer"] for row in table.rows] == ["yes", "no", None, None]
  assert table.images(0) == ["a.jpg"] and table.images(1) == [png(1)]
  with pytest.raises(UnreadableImage):
    table.images(2)


def test_other_files_are_refused(tmp_path):
  (tmp_path / "x.parquet").write_bytes(b"PAR1 is not enough PAR1")
  with pytest.raises(UsageError, match="cannot be read as Parquet"):
    ParquetTable(tmp_path / "x.parquet")
  write_parquet(tmp_path / "y-00000-of-00002.parquet", {"image": [cell(0)]}, {"image": IMAGE})
  write_parquet(tmp_path / "y-00001-of-00002.parquet", {"images": [cell(0)]}, {"images": IMAGE})
  with pytest.raises(UsageError, match="other image columns than the first shard"):
    ParquetTable(tmp_path / "y-*.parquet")


def test_a_row_group_that_unpacks_to_any_size_is_refused(tmp_path, monkeypatch):
  from spatial_vlm.data.benchmarks import parquet_table

  path = write_parquet(tmp_path / "x.parquet", cvbench_columns(), {"image": IMAGE})
  monkeypatch.setattr(parquet_table, "MAX_GROUP_BYTES", 100)
  with pytest.raises(UsageError, match="row group of .* at most 100 are read at once"):
    ParquetTable(path)
