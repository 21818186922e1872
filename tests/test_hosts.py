"""Several processes: how they find each other and end together; `tests/commands/test_hosts.py` starts some."""

import logging
from unittest import mock

import jax
import numpy as np
import pytest

from spatial_vlm import cli, hosts
from spatial_vlm.config import UsageError, UsageErrorOfAll

LAUNCHERS = (
  "SLURM_STEP_NODELIST",
  "SLURM_PROCID",
  "SLURM_NTASKS",
  "SLURM_STEP_NUM_TASKS",
  "OMPI_COMM_WORLD_SIZE",
)
SLURM = {"SLURM_STEP_NODELIST": "node[1-4]", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
  for name in LAUNCHERS:
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def initialize(monkeypatch):
  """In place of jax.distributed.initialize."""
  called = mock.Mock()
  monkeypatch.setattr(jax.distributed, "initialize", called)
  return called


@pytest.fixture
def one_of_two(monkeypatch):
  """Makes this process the second of two; the first reports no error."""
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(hosts, "all_gather_json", lambda value: [None, value])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--coordinator=h:1",), "--processes, --process missing: several processes need"),
    (("--processes=2",), "--coordinator, --process missing"),
    (("--processes=1", "--process=0"), "--coordinator missing"),
    (("--coordinator=h:1", "--processes=2", "--process=2"), "numbered from 0 to 1"),
    (("--coordinator=h:1", "--processes=0", "--process=0"), "--processes 0"),
    (("--coordinator=h", "--processes=2", "--process=1"), "e.g. 10.0.0.2:8476"),
    (("--coordinator=h:port", "--processes=2", "--process=1"), "--coordinator is 'h:port'"),
    (("--processes=two",), "invalid int value: 'two'"),
  ],
)
def test_wrong_options_are_refused_on_one_line(initialize, capsys, tmp_path, arguments, message):
  assert cli.main(["sft", "--workdir", str(tmp_path / "run"), *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not initialize.called and not (tmp_path / "run").exists()


def test_configured_processes_skip_cluster_discovery(initialize, monkeypatch):
  monkeypatch.setenv("SLURM_NTASKS", "4")
  met = mock.Mock()
  monkeypatch.setattr(hosts.rendezvous, "wait_for_all", met)
  hosts.connect("10.0.0.2:8476", 2, 0)
  assert met.call_args.args[:3] == ("10.0.0.2:8476", 2, 0)
  arguments = initialize.call_args.kwargs
  assert arguments["coordinator_address"] == "10.0.0.2:8476"
  assert (arguments["num_processes"], arguments["process_id"]) == (2, 0)
  assert arguments["cluster_detection_method"] == "deactivate"


@pytest.mark.parametrize(
  ("environment", "tasks"),
  [
    ({}, 1),
    (SLURM, 4),
    ({**SLURM, "SLURM_NTASKS": "1"}, 1),
    ({"SLURM_NTASKS": "4"}, 1),  # an allocation, in which this process was not started by srun
    ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, 1),  # an interactive step of an allocation
    ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:34911"}, 3),
  ],
)
def test_a_launcher_with_several_processes_is_joined(initialize, monkeypatch, environment, tasks):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert hosts.launched_tasks() == tasks
  hosts.connect(None, None, None)
  assert initialize.called == (tasks > 1)
  initialize.reset_mock()
  hosts.connect(None, 1, None)
  assert not initialize.called


@pytest.fixture
def tpu_host():
  before = jax.config.jax_platforms
  jax.config.update("jax_platforms", "tpu,cpu")
  yield
  jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
  ("chosen", "plugins", "used"),
  [(None, [], "cpu"), (None, ["cuda"], None), ("tpu,cpu", [], "tpu,cpu"), ("cuda", [], "cuda")],
)
def test_without_a_tpu_libtpu_is_not_tried(monkeypatch, chosen, plugins, used):
  """It would print warnings. JAX sets "tpu,cpu" on a TPU host; an accelerator of another kind has a plugin."""
  before = jax.config.jax_platforms
  monkeypatch.setattr(hosts, "entry_points", lambda group: plugins)
  jax.config.update("jax_platforms", chosen)
  try:
    hosts.skip_absent_tpu()
    assert jax.config.jax_platforms == used
  finally:
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
  "reason",
  [
    ValueError("coordinator_address should be defined."),
    ConnectionError("no metadata server"),
    RuntimeError("must be called before any JAX calls"),
  ],
)
def test_a_tpu_host_without_others_works_alone(initialize, tpu_host, caplog, reason):
  initialize.side_effect = reason
  with caplog.at_level(logging.INFO):
    hosts.connect(None, None, None)
  assert initialize.called and str(reason) in caplog.text


def test_a_tpu_host_whose_others_do_not_answer_stops(initialize, tpu_host):
  initialize.side_effect = jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
  with pytest.raises(UsageError, match="do not answer: DEADLINE_EXCEEDED"):
    hosts.connect(None, None, None)


def test_single_process_commands_are_refused_on_several_processes(monkeypatch, capsys, tmp_path):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  assert cli.main(["evaluate", "--workdir", str(tmp_path / "run")]) == 2
  assert "evaluate was started 4 times" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_one_process_gathers_its_own_values():
  assert hosts.all_gather_json({"a": [1]}) == [{"a": [1]}]
  assert hosts.error_of_any(None) is None
  assert str(hosts.error_of_any("no file")) == "no file"


def test_bytes_of_every_process_are_gathered(monkeypatch):
  """Gathers as if the other process had the same values: two copies of each."""
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  twice = mock.Mock(side_effect=lambda value: np.stack([value, value]))
  monkeypatch.setattr(hosts.multihost_utils, "process_allgather", twice)
  value = {"skipped": [3, 4], "text": "Größe"}
  assert hosts.all_gather_json(value) == [value, value]
  (room,) = twice.call_args.args
  assert room.size & (room.size - 1) == 0


@pytest.mark.parametrize(
  ("messages", "text"),
  [
    ([None, None], None),
    (["no file", "no file"], "no file"),
    ([None, "no file"], "process 1 of 2: no file"),
    (["too few", "no file"], "process 0 of 2: too few"),
  ],
)
def test_a_refusal_in_one_process_is_raised_by_all(monkeypatch, messages, text):
  monkeypatch.setattr(hosts, "all_gather_json", lambda value: messages)
  error = hosts.error_of_any(messages[0])
  assert (error and str(error)) == text


def test_process_0_prints_an_error_that_all_raise(one_of_two, initialize):
  with pytest.raises(SystemExit) as stop, hosts.together("h:1", 2, 1):
    raise UsageErrorOfAll("no file")
  assert stop.value.code == 2


@pytest.mark.parametrize(
  ("error", "status", "text"),
  [
    (UsageError("torn.png"), 2, "spatial-vlm: process 1 of 2: torn.png\n"),
    (KeyboardInterrupt(), 130, "spatial-vlm: process 1 of 2: stopped\n"),
    (KeyError("bug"), 1, "Traceback"),
  ],
)
def test_an_unexpected_error_ends_its_process_without_waiting(
  one_of_two, monkeypatch, capsys, error, status, text
):
  class Ended(BaseException):
    pass

  monkeypatch.setattr(hosts.os, "_exit", mock.Mock(side_effect=Ended))
  with pytest.raises(Ended), hosts.together("h:1", 2, 1):
    raise error
  hosts.os._exit.assert_called_once_with(status)
  assert text in capsys.readouterr().err


def test_a_single_process_raises_errors_unchanged():
  for error in (UsageError("x"), UsageErrorOfAll("y"), KeyboardInterrupt(), KeyError("bug")):
    with pytest.raises(type(error)), hosts.together(None, None, None):
      raise error


def test_usage_errors_lose_their_traceback():
  for error in (ValueError("a"), FileNotFoundError("b"), ImportError("c")):
    with pytest.raises(UsageError, match=str(error)), hosts.user_errors():
      raise error
  with pytest.raises(ZeroDivisionError), hosts.user_errors():
    raise ZeroDivisionError


def test_a_usage_error_stays_the_same():
  error = UsageError("x")
  with pytest.raises(UsageError) as found, hosts.user_errors():
    raise error
  assert str(found.value) == "x"


def test_open_mpi_5_is_told_how_to_start(monkeypatch):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  monkeypatch.delenv("OMPI_MCA_orte_hnp_uri", raising=False)
  with pytest.raises(UsageError, match=r"--process \$OMPI_COMM_WORLD_RANK"):
    hosts.connect(None, None, None)
