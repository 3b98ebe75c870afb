"""The verdict over vLLM's runs; the runs themselves are `bash tools/quickstart --engine vllm`."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from kvfs_tools.quickstart import vllm_scenario
from kvfs_tools.quickstart.processes import StepFailedError
from kvfs_tools.quickstart.vllm_scenario import REUSABLE_TOKENS, ConnectorOutcome, EngineResult

MISS = EngineResult(tokens=[1, 2], score=-3.0, skipped=0, first_token_seconds=0.5, samples={})
HIT = msgspec.structs.replace(MISS, skipped=REUSABLE_TOKENS, first_token_seconds=0.1)
GOOD = ConnectorOutcome("fs_tier", stored=MISS, resumed=HIT, other=MISS)


def test_a_hit_after_the_kill_and_a_miss_elsewhere_is_success() -> None:
    assert GOOD.failures() == []


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (replace(GOOD, stored=msgspec.structs.replace(MISS, skipped=128)), "first run already reused 128"),
        (replace(GOOD, resumed=msgspec.structs.replace(HIT, skipped=REUSABLE_TOKENS - 128)), "of 3072 tokens reused"),
        (replace(GOOD, other=msgspec.structs.replace(MISS, skipped=128)), "another tenant reused 128"),
        (replace(GOOD, resumed=msgspec.structs.replace(HIT, tokens=[1, 3])), "resumed answer differs"),
        (replace(GOOD, other=msgspec.structs.replace(MISS, score=-3.1)), "other tenant's answer differs"),
    ],
)
def test_everything_else_fails(bad: ConnectorOutcome, text: str) -> None:
    assert [failure for failure in bad.failures() if text in failure]
    assert all(failure.startswith("fs_tier: ") for failure in bad.failures())


def test_table() -> None:
    console = Console(record=True, width=120)
    console.print(vllm_scenario.first_token_table([GOOD]))
    row = next(line for line in console.export_text().splitlines() if "fs_tier" in line)
    assert [word for word in row.split() if word.isdigit()] == ["500", "100", "3072", "0"]


def test_given_environment_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm_scenario.VENV_VARIABLE, str(tmp_path))
    with pytest.raises(StepFailedError, match="no bin/python"):
        vllm_scenario.vllm_python(print)


def test_given_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setenv(vllm_scenario.VENV_VARIABLE, str(tmp_path))
    assert vllm_scenario.vllm_python(print) == tmp_path / "bin" / "python"


def test_engine_scripts_are_shipped() -> None:
    assert {"run_vllm.py", "tiny_model.py", "cpu_offload_spec.py", "install.sh"} <= {
        path.name for path in vllm_scenario.ENGINES.iterdir()
    }
