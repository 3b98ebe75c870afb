"""Run a verification over tenants, show its progress, and print what came out."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from typing import Any, Final

from kvfs_tools.inspection import TenantView
from kvfs_tools.readonly import open_read_only
from kvfs_tools.verification import Report, Verifier
from kvfsd.catalog.connection import REPAIR
from kvfsd.cli.options import KekOptions
from kvfsd.cli.output import print_table
from kvfsd.units import format_bytes

PROGRESS_PERIOD_S: Final = 0.5


async def verify_pool(directory: str, options: KekOptions, tenant: str | None, path: str) -> Report:
    """Verify `path` of one tenant, or of all (None); the report of all together.

    Raises:
        NotFoundError: no such tenant, or no such path in it.
    """
    report = Report()
    progress = Progress()
    async with open_read_only(directory, options) as opened:
        tenants = opened.pool.tenants.list() if tenant is None else [opened.pool.tenants.show(tenant)]
        for one in tenants:
            view = TenantView(opened.pool, one)
            await Verifier(view, opened.media, report, progress.show).tree(view.find(os.fsencode(path)))
        report.damaged_rows = [
            f"tenant {damage.tenant}: {damage.text}" for damage in opened.pool.catalog.database.damage.known()
        ]
    progress.clear()
    return report


class Progress:
    """A line on stderr that counts, when stderr is a terminal."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_PERIOD_S
        self._width = 0

    def show(self, report: Report) -> None:
        """Show where the verification is, at most every PROGRESS_PERIOD_S."""
        if time.monotonic() < self._next or not sys.stderr.isatty():
            return
        self._next = time.monotonic() + PROGRESS_PERIOD_S
        self._write(count_line(report))

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._write("")

    def _write(self, text: str) -> None:
        print(f"\r{text.ljust(self._width)}", end="" if text else "\r", file=sys.stderr, flush=True)
        self._width = len(text)


def count_line(report: Report) -> str:
    """How much was verified, and how much of it is bad."""
    read = f"{report.replicas} replicas, {format_bytes(report.payload_bytes)}"
    bad = f"{report.bad_replicas} bad replicas, {report.lost_blocks} blocks lost, {report.bad_names} bad names"
    if report.damaged_rows:
        bad += f", {len(report.damaged_rows)} damaged rows"
    return f"verified {report.objects} objects, {report.blocks} blocks, {read}: {bad}"


def report_value(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        **asdict(report),
        "clean": report.clean,
        "bad": [{**asdict(bad), "path": os.fsdecode(bad.path)} for bad in report.bad],
    }


def print_report(report: Report) -> None:
    """The report for people: what is bad, then the counts."""
    if report.bad:
        rows = [[os.fsdecode(b.path), b.block, b.medium, b.segment, b.offset_bytes, b.reason] for b in report.bad]
        print_table(("PATH", "BLOCK#", "MEDIUM", "SEGMENT#", "BYTE#", "WHAT IS WRONG"), rows)
    if len(report.bad) < report.bad_replicas:
        print(f"... and {report.bad_replicas - len(report.bad)} more")
    for text in report.damaged_rows:
        print(f"catalog: {text}; {REPAIR}")
    print(count_line(report))
