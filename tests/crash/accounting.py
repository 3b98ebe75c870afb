"""What kvfs says it stores, beside a full recount and beside what the tree holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.crash.check import Expected
from tests.mountlib import MountError, PoolFixture


@dataclass(frozen=True)
class Accounting:
    """`kvfsctl check --json` of a closed pool, as far as the crash rounds need it."""

    used_bytes: int
    used_objects: int
    findings: tuple[str, ...]

    @classmethod
    def take(cls, pool: PoolFixture, tenant: str) -> Accounting:
        """Run the recount (a finding makes kvfsctl exit 1, which is no error here)."""
        try:
            text = pool.kvfsctl("check", str(pool.pool), "--json", limit_s=120)
        except MountError as error:
            return cls(0, 0, (str(error),))
        report: dict[str, Any] = json.loads(text)
        row = next(row for row in report["tenants"] if row["name"] == tenant)
        return cls(row["used_bytes"], row["used_objects"], tuple(report["findings"]))

    def violations(self, expected: Expected) -> list[str]:
        """Findings of the recount, and differences to what the tree itself must cost."""
        lines = [f"recount: {finding}" for finding in self.findings]
        if self.findings:
            return lines
        if self.used_objects != expected.objects:
            lines.append(f"accounting: {self.used_objects} objects charged, the tree has {expected.objects}")
        if not expected.bytes_low <= self.used_bytes <= expected.bytes_high:
            wanted = f"{expected.bytes_low} to {expected.bytes_high}"
            lines.append(f"accounting: {self.used_bytes} bytes charged, the tree has {wanted}")
        return lines


def segments_in_use(pool: PoolFixture) -> int:
    """Segments of all media that are not free, of a closed pool."""
    media = json.loads(pool.kvfsctl("pool", "info", str(pool.pool), "--json"))["media"]
    return sum(medium["segments"] - medium["free_segments"] for medium in media)
