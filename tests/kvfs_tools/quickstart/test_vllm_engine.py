"""Unmodified vLLM on a mount; needs an environment that has it, which takes minutes and 3 GB to make."""

import os
from pathlib import Path

import pytest

from kvfs_tools.quickstart.vllm_scenario import VENV_VARIABLE
from tests.kvfs_tools.quickstart.running import succeeds_and_leaves_nothing


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(VENV_VARIABLE not in os.environ, reason=f"{VENV_VARIABLE} names no environment with vLLM")
def test_context_survives_kill_and_no_other_tenant_hits(tmp_path: Path) -> None:
    succeeds_and_leaves_nothing(tmp_path, "--engine", "vllm", limit_s=850)
