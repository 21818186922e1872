import os
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from spatial_vlm import metrics
from spatial_vlm.config import UsageError, UsageErrorOfAll
from spatial_vlm.metrics import MetricsWriter, read_metrics


def test_sums_before_means():
  """Unequal counts: the mean of means would be 2.0."""
  parts = [{"loss": (jnp.float32(30.0), jnp.int32(10)), "r_max": (jnp.float32(1.5), jnp.int32(1))}]
  parts.append(
    {"loss": (jnp.float32(1.0), jnp.int32(1)), "r_max": (jnp.float32(1.1), jnp.int32(1))}
  )
  values = metrics.means(jax.jit(metrics.add)(*parts))
  assert values == {"loss": pytest.approx(31 / 11), "r_max": pytest.approx(1.5)}


def test_zero_counts_have_no_mean_and_unpaired_names_stay():
  sums = metrics.add({"a": (jnp.float32(0), jnp.int32(0))}, {"b": (jnp.float32(4), jnp.int32(2))})
  assert metrics.means(sums) == {"b": 2.0}


def record(workdir, steps, wobble=0.0):
  """A deterministic run over `steps`; only its clock differs from start to start."""
  with MetricsWriter(workdir) as writer:
    for step in steps:
      writer.write(step, {"loss": 1 / (step + 1), "time/step_s": step + wobble})
      if step % 10 == 0:
        writer.write(step, {"validation/accuracy": step / 100})


def without_clock(records):
  return [{k: v for k, v in r.items() if not k.startswith(metrics.CLOCK_PREFIX)} for r in records]


def test_a_resumed_run_reads_like_an_uninterrupted_one(tmp_path):
  record(tmp_path / "whole", range(1, 81))
  record(tmp_path / "killed", range(1, 58))  # killed at 57
  record(tmp_path / "killed", range(51, 55), 0.5)  # from the checkpoint at 50, killed at 54
  record(tmp_path / "killed", [])  # killed before its first record
  record(tmp_path / "killed", range(41, 44), 0.6)  # the checkpoint at 50 was lost
  record(tmp_path / "killed", range(41, 81), 0.7)
  whole, killed = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "killed")
  assert [r["step"] for r in killed] == list(range(1, 81))
  assert without_clock(killed) == without_clock(whole) and killed != whole
  assert killed[60]["time/step_s"] == 61.7 and killed[9]["validation/accuracy"] == 0.1
  parts = sorted(os.listdir(tmp_path / "killed" / "metrics"))
  assert parts == [f"part-0000{n}.jsonl" for n in range(4)]


def test_steps_beyond_the_restart_are_superseded_before_they_are_written_again(tmp_path):
  record(tmp_path, range(1, 58))
  record(tmp_path, range(51, 53))
  assert [r["step"] for r in read_metrics(tmp_path)] == list(range(1, 53))


def test_a_truncated_last_line_is_ignored_and_any_other_is_an_error(tmp_path):
  record(tmp_path, range(1, 4))
  part = tmp_path / "metrics" / "part-00000.jsonl"
  whole = part.read_text()
  for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
    part.write_text(whole[:-cut])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
  record(tmp_path, range(3, 5))  # continues in a new part
  assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]
  part.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r"part-00000\.jsonl:2 is not a metrics record"):
    read_metrics(tmp_path)


def test_a_killed_process_loses_no_record(tmp_path):
  script = (
    "import os, signal, sys\n"
    "from spatial_vlm.metrics import MetricsWriter\n"
    "with MetricsWriter(sys.argv[1]) as writer:\n"
    "  for step in range(5): writer.write(step, {'loss': 1.0})\n"
    "  os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
  assert done.returncode == -signal.SIGKILL
  assert [r["step"] for r in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  "value", [float("nan"), float("inf"), np.float32("-inf"), jnp.float32("nan")]
)
def test_a_non_finite_metric_ends_the_run_with_its_name_and_step(tmp_path, value):
  with MetricsWriter(tmp_path) as writer:
    writer.write(1, {"loss": 1.0})
    with pytest.raises(UsageError, match="grad_norm = .* at step 2"):
      writer.write(2, {"loss": 1.0, "grad_norm": value})
  assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_values_of_any_number_type_and_full_precision(tmp_path):
  with MetricsWriter(str(tmp_path)) as writer:
    writer.write(np.int64(7), {"a": jnp.float32(0.1), "b": np.float64(1) / 3, "c": 2**40 + 1})
  assert read_metrics(tmp_path) == [
    {"step": 7, "a": float(np.float32(0.1)), "b": 1 / 3, "c": 2**40 + 1}
  ]


def test_an_empty_log_reads_as_empty(tmp_path):
  with MetricsWriter(tmp_path):
    pass
  assert read_metrics(tmp_path) == read_metrics(tmp_path / "absent") == []


def test_closing_makes_a_part_and_a_later_record_starts_another(tmp_path):
  writer = MetricsWriter(tmp_path)
  for step in range(3):
    writer.write(step, {"loss": float(step)})
    writer.close()
    writer.close()
  assert len(list((tmp_path / "metrics").iterdir())) == 3
  assert [r["loss"] for r in read_metrics(tmp_path)] == [0, 1, 2]


def read_events(folder):
  """(step, name, value) of a folder of event files; the format is length, checksum, event, checksum."""
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      event = Event.FromString(data[12 : 12 + length])
      yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
      data = data[16 + length :]


def test_tensorboard_gets_the_same(tmp_path):
  record(tmp_path, [1, 2])
  assert list(read_events(tmp_path / "tensorboard")) == [
    (1, "loss", 0.5),
    (1, "time/step_s", 1.0),
    (2, "loss", pytest.approx(1 / 3)),
    (2, "time/step_s", 2.0),
  ]


def test_process_0_writes_and_all_processes_detect_non_finite_values(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  record(tmp_path, range(3))
  assert not list(tmp_path.iterdir())
  with MetricsWriter(tmp_path) as writer, pytest.raises(UsageErrorOfAll, match="loss = nan"):
    writer.write(1, {"loss": float("nan")})


def test_on_an_object_store_a_kill_loses_nothing_that_was_committed(gcs_folder, tmp_path):
  address, store = gcs_folder
  writer = MetricsWriter(address)
  for step in range(1, 6):
    writer.write(step, {"loss": 1 / step})
    if step in (2, 4):
      writer.commit()
  # A killed process closes nothing.
  folder = store.download(address, tmp_path / "killed")
  assert [record["step"] for record in read_metrics(folder)] == [1, 2, 3, 4]
  assert len(os.listdir(folder / "metrics")) == 2
  record(address, range(5, 8))  # resumes from the checkpoint at 4
  assert [record["step"] for record in read_metrics(address)] == list(range(1, 8))
  writer.close()
  events = store.download(f"{address}/tensorboard", tmp_path / "events")
  names = os.listdir(events)
  assert len(names) >= 3 and all(".part-0000" in name for name in names)


def test_on_a_disk_committing_opens_no_further_part(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for step in (1, 2):
      writer.write(step, {"loss": 1.0})
      writer.commit()
  assert os.listdir(tmp_path / "metrics") == ["part-00000.jsonl"]
