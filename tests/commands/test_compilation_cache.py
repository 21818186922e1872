"""Programs of the compilation cache compute what programs compiled anew do."""

import pytest


@pytest.mark.slow
def test_a_killed_run_that_resumes_with_cached_programs_equals_one_without_a_cache(
  tmp_path, killer, outcome, sft_changes
):
  """The uninterrupted run compiles everything itself; the killed one resumes with the programs of its first start."""
  killer("sft", sft_changes).finish(tmp_path / "whole")
  log = (tmp_path / "whole.log").read_text()
  assert "whole: 0/6, compiling\n" in log and not {"\r", "\x1b"} & {*log}
  cached, programs = killer("sft", sft_changes), tmp_path / "programs"
  del cached.environment["JAX_ENABLE_COMPILATION_CACHE"]
  cached.environment["JAX_COMPILATION_CACHE_DIR"] = str(programs)
  process = cached.start(tmp_path / "killed")
  while not (tmp_path / "killed" / "checkpoints" / "3").exists():
    assert process.poll() is None, "the run ended before its third checkpoint"
  process.kill()
  process.wait()
  found = {path.name for path in programs.iterdir()}
  cached.finish(tmp_path / "killed")
  assert any("sft_step" in name for name in found)
  assert not any("sft_step" in path.name for path in programs.iterdir() if path.name not in found)
  assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
