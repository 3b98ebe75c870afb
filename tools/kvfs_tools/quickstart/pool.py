"""A pool, tenants and mounts by kvfs's own commands, inside a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvfs_tools.quickstart.processes import MountProcess, program, run_tool
from kvfs_tools.quickstart.sandbox import Sandbox


def key_file(sandbox: Sandbox) -> Path:
    """The file of the pool's KEK: not in the pool."""
    return sandbox.keys / "pool.key"


def create_pool(sandbox: Sandbox, size_bytes: int, environment: Mapping[str, str]) -> None:
    """Make the sandbox's pool with one medium of `size_bytes`."""
    words = ["kvfsctl", "pool", "create", str(sandbox.pool), "--size", str(size_bytes), "--kek", str(key_file(sandbox))]
    run_tool(words, environment)


def create_tenant(sandbox: Sandbox, tenant: str, environment: Mapping[str, str]) -> None:
    """Make a tenant in the sandbox's pool."""
    run_tool(["kvfsctl", "tenant", "create", str(sandbox.pool), tenant, "--kek", str(key_file(sandbox))], environment)


def mount_tenant(sandbox: Sandbox, tenant: str, mountpoint: Path, environment: Mapping[str, str]) -> MountProcess:
    """`kvfs mount` in the foreground, in a process of its own."""
    source = f"{tenant}@{sandbox.pool}"
    words = [program("kvfs"), "mount", "-f", source, str(mountpoint), "-o", f"kek={key_file(sandbox)}"]
    return MountProcess(words, mountpoint, sandbox.logs / "mount.log", environment)
