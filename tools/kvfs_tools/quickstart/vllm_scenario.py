"""The quickstart with unmodified vLLM on the CPU: store, kill -9, remount, resume; another tenant misses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from kvfs_tools.quickstart import controls
from kvfs_tools.quickstart.plaintext import PlaintextIndex, SearchReport, search
from kvfs_tools.quickstart.pool import create_pool, create_tenant, mount_tenant
from kvfs_tools.quickstart.processes import MountProcess, StepFailedError, start_logged, tail
from kvfs_tools.quickstart.sandbox import Sandbox

ENGINES = Path(__file__).with_name("engines")
MODEL = "random-tiny-llama-8x512"
TENANT, OTHER_TENANT = "tenant-blue-of-vllm", "tenant-green-of-vllm"
CONNECTORS = ("fs_tier", "example")
POOL_BYTES = 1 << 30
PROMPT_TOKENS = 3089
BLOCK_TOKENS = 128
REUSABLE_TOKENS = (PROMPT_TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS
"""The last token is always computed, the rest of an unfinished block too."""
SCORE_TOLERANCE = 0.05
"""Of the log-probability of eight tokens: a resumed prompt is computed in other batches, in bfloat16."""
SETTLE_ROUNDS = 4
"""Short requests after the prompt, 0.3 s apart, while vLLM's asynchronous stores drain."""
ENGINE_DEADLINE_S = 240.0
INSTALL_DEADLINE_S = 1800.0
VENV_VARIABLE = "KVFS_VLLM_VENV"


class EngineResult(msgspec.Struct, frozen=True):
    """What engines/run_vllm.py found."""

    tokens: list[int]
    score: float
    skipped: int
    first_token_seconds: float
    samples: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class ConnectorOutcome:
    """One connector's three runs."""

    connector: str
    stored: EngineResult
    resumed: EngineResult
    other: EngineResult

    def failures(self) -> list[str]:
        """What should not be so."""
        failed = []
        if self.stored.skipped:
            failed.append(f"the first run already reused {self.stored.skipped} tokens")
        if self.resumed.skipped < REUSABLE_TOKENS:
            failed.append(f"{self.resumed.skipped} of {REUSABLE_TOKENS} tokens reused after kill -9 and remount")
        if self.other.skipped:
            failed.append(f"another tenant reused {self.other.skipped} tokens")
        for name, run in (("resumed", self.resumed), ("other tenant's", self.other)):
            if run.tokens != self.stored.tokens or abs(run.score - self.stored.score) > SCORE_TOLERANCE:
                failed.append(f"the {name} answer differs")
        return [f"{self.connector}: {text}" for text in failed]


def vllm_python(report: Callable[[str], None]) -> Path:
    """The interpreter of an environment with vLLM: $KVFS_VLLM_VENV, or .venv-vllm beside ours, installed if missing."""
    given = os.environ.get(VENV_VARIABLE)
    venv = Path(given) if given else Path(sys.prefix).with_name(".venv-vllm")
    python = venv / "bin" / "python"
    if given and not python.exists():
        raise StepFailedError(f"{VENV_VARIABLE}={given} has no bin/python")
    stamp = venv / ".kvfs-stamp"
    if not given and not stamp.exists():
        report(f"installing vLLM for the CPU into {venv} (some minutes, 3 GB)")
        base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        words = ["bash", str(ENGINES / "install.sh"), str(venv), str(base)]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, timeout=INSTALL_DEADLINE_S, check=False)
        if done.returncode != 0:
            raise StepFailedError(f"vLLM could not be installed into {venv}")
        stamp.touch()
    return python


class VllmQuickstart:
    """One run in one sandbox; leaves no process and no mount behind."""

    def __init__(self, python: Path, sandbox: Sandbox, report: Callable[[str], None]) -> None:
        self._python = python
        self._sandbox = sandbox
        self._report = report
        self._environment = sandbox.environment()
        self._model = sandbox.root / "model" / MODEL

    def run(self, console: Console) -> list[str]:
        """All connectors; prints the table; returns the failures."""
        create_pool(self._sandbox, POOL_BYTES, self._environment)
        for tenant in (TENANT, OTHER_TENANT):
            create_tenant(self._sandbox, tenant, self._environment)
        self._engine(["-c", f"import pathlib, tiny_model; tiny_model.write_model(pathlib.Path({str(self._model)!r}))"])
        outcomes = [self._connector(name) for name in CONNECTORS]
        report, control_found = self._search(outcomes)
        console.print(first_token_table(outcomes))
        searched = f"{report.files} files, {report.searched_bytes / 1e6:.0f} MB"
        console.print(f"searched for samples of every stored file: {searched}", highlight=False)
        console.print(f"sealed bytes found in plaintext: {report.found_bytes}", highlight=False)
        failed = [text for outcome in outcomes for text in outcome.failures()]
        failed += [f"plaintext found: {finding}" for finding in report.findings[:8]]
        return failed if control_found else [*failed, "the planted control was not found"]

    def _connector(self, name: str) -> ConnectorOutcome:
        self._report(f"vLLM, {name}: store, then kill -9 of the mount")
        stored = self._on_mount(TENANT, name, SETTLE_ROUNDS, MountProcess.kill)
        self._report(f"vLLM, {name}: resume in a new process on a new mount")
        resumed = self._on_mount(TENANT, name, 0, MountProcess.stop)
        self._report(f"vLLM, {name}: the same prompt as another tenant, which must miss")
        other = self._on_mount(OTHER_TENANT, name, 0, MountProcess.stop)
        return ConnectorOutcome(name, stored, resumed, other)

    def _on_mount(self, tenant: str, name: str, settle: int, end: Callable[[MountProcess], None]) -> EngineResult:
        """Mount `tenant`, run the engine on it, and end the mount by `end`."""
        mount = mount_tenant(self._sandbox, tenant, self._sandbox.mountpoint, self._environment)
        try:
            result = self._serve(name, settle)
            end(mount)
        finally:
            mount.kill()
        return result

    def _serve(self, name: str, settle: int) -> EngineResult:
        result = self._sandbox.root / "result.json"
        words = [str(ENGINES / "run_vllm.py"), "--connector", name, "--directory", str(self._sandbox.mountpoint)]
        words += ["--model", str(self._model), "--result", str(result)]
        words += ["--tokens", str(PROMPT_TOKENS), "--settle", str(settle)]
        self._engine(words)
        return msgspec.json.decode(result.read_bytes(), type=EngineResult)

    def _engine(self, words: list[str]) -> None:
        log = self._sandbox.root / "engine.log"
        environment = dict(os.environ, PYTHONPATH=str(ENGINES))
        process = start_logged([str(self._python), *words], log, environment)
        try:
            status = process.wait(ENGINE_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise StepFailedError(f"vLLM was not done after {ENGINE_DEADLINE_S:.0f} s:\n{tail(log)}") from error
        finally:
            process.kill()
        if status != 0:
            raise StepFailedError(f"vLLM ended with {status}:\n{tail(log)}")

    def _search(self, outcomes: list[ConnectorOutcome]) -> tuple[SearchReport, bool]:
        self._report("looking for plaintext in media, state, keys, logs and whatever was left behind")
        index = PlaintextIndex()
        samples = {path: runs for outcome in outcomes for path, runs in outcome.stored.samples.items()}
        for path, runs in samples.items():
            for run in runs:
                index.add(f"content of {path}", bytes.fromhex(run))
        parts = {part for path in samples for part in Path(path).parts if len(part) > len("config.json")}
        for name in {*parts, MODEL, TENANT, OTHER_TENANT}:
            index.add_name(name.encode())
        pieces = [bytes.fromhex(run) for runs in samples.values() for run in runs]
        control = controls.plant(
            self._sandbox.temporary, max(pieces, key=lambda piece: len(set(piece))), MODEL.encode()
        )
        report = search(index, self._sandbox.searched)
        return controls.remove_from(report, control), controls.all_found(report, control)


def first_token_table(outcomes: list[ConnectorOutcome]) -> Table:
    """Time to the first token, resumed beside recomputed."""
    table = Table(title=f"time to first token, prompt of {PROMPT_TOKENS} tokens", title_justify="left")
    table.add_column("vLLM connector")
    for name in ("recompute ms", "resume ms", "tokens reused", "another tenant reused"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        recompute, resume = outcome.other.first_token_seconds * 1e3, outcome.resumed.first_token_seconds * 1e3
        counts = (str(outcome.resumed.skipped), str(outcome.other.skipped))
        table.add_row(outcome.connector, f"{recompute:.0f}", f"{resume:.0f}", *counts)
    return table
