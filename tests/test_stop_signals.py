"""Signals during training: the first asks for a checkpoint, the second ends the command."""

import os
import signal
import threading

import jax
import pytest

from spatial_vlm import hosts, stop_signals
from spatial_vlm.stop_signals import checkpoint_at_signals

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("number", STATUS)
def test_the_first_signal_asks_for_a_checkpoint(number, capsys):
  before = {each: signal.getsignal(each) for each in STATUS}
  with pytest.raises(hosts.Preempted) as ended, checkpoint_at_signals():
    assert not hosts.preempted(1)
    os.kill(os.getpid(), number)
    assert "saving a checkpoint" in capsys.readouterr().err
    assert hosts.preempted(2)
    raise hosts.Preempted
  assert ended.value.code == STATUS[number]
  assert {each: signal.getsignal(each) for each in STATUS} == before
  with checkpoint_at_signals():
    assert not hosts.preempted(1)


def test_the_second_one_stops_at_once():
  signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and scripts ignore it
  with pytest.raises(KeyboardInterrupt), checkpoint_at_signals():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    pytest.fail("the second signal did not stop it")


def test_one_after_the_last_step_is_not_lost():
  with pytest.raises(KeyboardInterrupt), checkpoint_at_signals():
    os.kill(os.getpid(), signal.SIGINT)


def test_connected_processes_hear_of_it_by_sigterm(monkeypatch):
  sent = []
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(hosts.Preempted), checkpoint_at_signals():
    assert signal.getsignal(signal.SIGTERM) == before  # of jax.distributed
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    signal.raise_signal(signal.SIGINT)
    raise hosts.Preempted
  assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_thread_leaves_signals_alone():
  """As in a stage of the demo."""
  seen = []

  def work():
    with checkpoint_at_signals():
      seen.append((signal.getsignal(signal.SIGINT), stop_signals.requested()))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [(signal.getsignal(signal.SIGINT), None)]
