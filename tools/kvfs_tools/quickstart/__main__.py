"""`python -m kvfs_tools.quickstart`, run by tools/quickstart."""

from __future__ import annotations

import enum
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from kvfs.errors import KvfsError
from kvfs_tools.quickstart import table
from kvfs_tools.quickstart.processes import detach
from kvfs_tools.quickstart.sandbox import Sandbox
from kvfs_tools.quickstart.scenario import Quickstart, Report, Settings
from kvfs_tools.quickstart.vllm_scenario import POOL_BYTES, VllmQuickstart, vllm_python

app = typer.Typer(add_completion=False)


class Engine(enum.StrEnum):
    """Engines that can be run."""

    VLLM = "vllm"


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise SystemExit(f"stopped by {signal.Signals(number).name}")


Run = Callable[[Sandbox, Report, Console], list[str]]
"""One kind of quickstart: prints its table, returns its failures."""


def _in_sandbox(needed_bytes: int, keep: bool, run: Run) -> list[str]:
    """Do `run` in a fresh sandbox; afterwards nothing is mounted and, unless `keep`, nothing is left."""
    console = Console()
    sandbox = Sandbox.create(needed_bytes)
    started = time.monotonic()

    def report(text: str) -> None:
        console.print(f"[{time.monotonic() - started:5.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    try:
        failures = run(sandbox, report, console)
        report("done")
        return failures
    finally:
        for mountpoint in (sandbox.mountpoint, sandbox.null):
            detach(mountpoint)
        if keep:
            console.print(f"kept: {sandbox.root}", soft_wrap=True)
        else:
            sandbox.remove()


def _replay(settings: Settings, keep: bool) -> list[str]:
    def run(sandbox: Sandbox, report: Report, console: Console) -> list[str]:
        outcome = Quickstart(settings, sandbox, report).run()
        table.print_outcome(outcome, console)
        return outcome.failures()

    return _in_sandbox(settings.needed_bytes, keep, run)


def _vllm(keep: bool) -> list[str]:
    def run(sandbox: Sandbox, report: Report, console: Console) -> list[str]:
        return VllmQuickstart(vllm_python(report), sandbox, report).run(console)

    return _in_sandbox(POOL_BYTES, keep, run)


@app.command()
def quickstart(
    engine: Annotated[Engine | None, typer.Option(help="Run a real engine instead of the replay.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary directory, unmounted, for a look.")] = False,
    blocks: Annotated[int, typer.Option(min=16, max=100_000, help="Different blocks to store.")] = 384,
    block_kib: Annotated[int, typer.Option(min=4, max=65_536, help="KiB per block, a multiple of 4.")] = 2048,
) -> None:
    """Replay a real trace onto a kvfs mount, kill it half-way, remount, verify every byte, look for plaintext."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupted)
    try:
        if engine is None:
            failures = _replay(Settings(blocks=blocks, block_bytes=block_kib << 10), keep)
        else:
            failures = _vllm(keep)
    except KvfsError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    app()
