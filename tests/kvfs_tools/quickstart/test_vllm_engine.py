"""Unmodified vLLM on a mount; needs an environment that has it, which takes minutes and 3 GB to make."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvfs_tools.quickstart.vllm_scenario import VENV_VARIABLE


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(VENV_VARIABLE not in os.environ, reason=f"{VENV_VARIABLE} names no environment with vLLM")
def test_context_survives_kill_and_no_other_tenant_hits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvfs_tools.quickstart", "--engine", "vllm"],
        env=dict(os.environ, TMPDIR=str(tmp_path), COLUMNS="120"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sealed bytes found in plaintext: 0" in done.stdout
    assert list(tmp_path.iterdir()) == []
