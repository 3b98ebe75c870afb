"""The commands of `kvfs` and `mount.kvfs`: arguments in, calls of the modules beside this one."""

from __future__ import annotations

import getopt
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from kvfs.errors import ConfigError
from kvfsd.cli import program, request
from kvfsd.cli.program import argument, examples

app = program.new_app("Mount KV-cache tenants as filesystems, sealed at rest.")

UMOUNT_DEADLINE_S: Final = 60.0
MOUNT_FAILED: Final = 32
MOUNT_USAGE: Final = 1
"""Exit statuses of mount(8)."""

_MOUNT_OPTIONS: Final = """\b
Options of -o:
  ro                       read only
  allow_other              other users may use the mount (needs user_allow_other in fuse.conf unless root)
  kek=FILE                 the pool's key file
  passphrase_file=FILE     a file whose first line is the pool's passphrase
  credential=NAME          a systemd credential that holds the key; at a socket: a file with a mount credential
  quota=SIZE               set the tenant's byte quota first (64G; 0 = none)
  quota_objects=COUNT      set the tenant's object quota first (0 = none)
  eviction=on|off          off: nothing is evicted; a full quota is EDQUOT at once
  layout_guard=on|off      off: blocks stay whatever vLLM's config.json beside them becomes
  verify_at_open_max=SIZE  files up to this size are verified when they are opened (8M)
  nosuid nodev noexec noatime, and what only mount(8) and systemd read (rw, _netdev, x-...)
"""


@app.callback()
def kvfs(
    *,
    version: Annotated[bool, program.version_option("kvfs")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (may stand anywhere).")] = False,
) -> None:
    """Mount KV-cache tenants as filesystems, sealed at rest."""


@app.command(
    cls=program.Command,
    epilog=examples(
        "kvfs mount ~/kv                                    a private pool, made on first use",
        "kvfs mount blue@/var/lib/kvfs/pool /kv             tenant blue of a pool",
        "kvfs mount -o kek=pool.key,allow_other pool /kv    tenant default, other users may use it",
        "kvfs mount -f pool /kv                             stay in the foreground, Ctrl-C unmounts",
        "kvfs mount blue@/run/kvfs/kvfsd.sock /kv           attach to a daemon (kvfsd serve)",
    )
    + "\n\n"
    + _MOUNT_OPTIONS,
)
def mount(
    words: Annotated[list[str], argument("[SOURCE] MOUNTPOINT")],
    option_lists: Annotated[
        list[str] | None, typer.Option("-o", metavar="OPT[,OPT=VALUE...]", help="Mount options, see below.")
    ] = None,
    *,
    foreground: Annotated[bool, typer.Option("-f", "--foreground", help="Serve from this process.")] = False,
) -> None:
    """Mount a tenant of a pool at MOUNTPOINT.

    SOURCE is TENANT@POOL or POOL (tenant "default"), where POOL is a pool's directory or the socket of a kvfsd that
    serves it; without it a private pool is used, and made on first use. The command returns when the mount is ready;
    with -f it stays and serves.
    """
    try:
        asked = request.parse_request(words, option_lists or [])
    except ConfigError as error:
        raise program.usage_error(str(error)) from error
    _start(asked, foreground=foreground)


def _start(asked: request.MountRequest, *, foreground: bool) -> None:
    from kvfsd.cli import launch

    request.check_machine()
    request.check_not_mounted(asked.mountpoint)
    if foreground:
        launch.in_foreground(asked)
    else:
        launch.in_background(asked)


@app.command(
    cls=program.Command,
    epilog=examples(
        "kvfs umount ~/kv             wait until everything is in order",
        "kvfs umount --lazy ~/kv      free the mountpoint although files are open",
    ),
)
def umount(
    mountpoint: Annotated[str, argument("MOUNTPOINT")],
    *,
    lazy: Annotated[bool, typer.Option("-l", "--lazy", help="Detach now; end when the last file is closed.")] = False,
    deadline_s: Annotated[
        float, typer.Option("--deadline", metavar="SECONDS", min=0.0, max=86_400.0, help="How long to wait.")
    ] = UMOUNT_DEADLINE_S,
) -> None:
    """Unmount, and wait until the serving process has ended. Also clears away what a crash left behind."""
    from kvfsd.cli import output
    from kvfsd.cli import umount as umounting

    note = umounting.unmount(mountpoint, lazy=lazy, deadline_ms=round(deadline_s * 1000))
    if note:
        output.warn("kvfs", f"{mountpoint}: {note}")


@app.command(
    cls=program.Command,
    epilog=examples(
        "kvfs status                  a table of the mounts",
        "kvfs status --stages ~/kv    with the pipeline's stages: calls, errors, latencies",
        "kvfs status --json           everything, for scripts",
    ),
)
def status(
    mountpoint: Annotated[str | None, argument("[MOUNTPOINT]")] = None,
    *,
    stages: Annotated[bool, typer.Option("--stages", help="Show each stage of the data path.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the mounts: tenant, use and quota, lookup hits and misses."""
    from kvfsd.cli import output
    from kvfsd.cli import status as status_of

    found = status_of.collect(mountpoint)
    if json:
        output.print_json(found)
    else:
        status_of.print_mounts(found, stages=stages)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kvfs` -> exit status."""
    return program.run(app, "kvfs", sys.argv[1:] if argv is None else argv)


def mount_helper(argv: Sequence[str] | None = None) -> int:
    """Run `mount.kvfs SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]` as mount(8) calls it -> its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        asked, fake = _parse_helper(words)
        if not fake:
            _start(asked, foreground=False)
    except Exception as error:
        if os.environ.get("KVFS_DEBUG"):
            traceback.print_exc()
        print(f"mount.kvfs: {program.describe(error)}", file=sys.stderr)
        return MOUNT_USAGE if isinstance(error, MountUsageError) else MOUNT_FAILED
    return program.EXIT_OK


class MountUsageError(ConfigError):
    """`mount.kvfs` was called in a wrong way."""


def _parse_helper(words: Sequence[str]) -> tuple[request.MountRequest, bool]:
    """The request, and whether everything but the mount itself is to be done (mount -f)."""
    try:
        options, arguments = getopt.gnu_getopt(list(words), "sfnvo:t:N:")
        if len(arguments) != 2:
            raise MountUsageError("usage: mount.kvfs SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]")
        flags = {flag for flag, _ in options}
        lists = [value for flag, value in options if flag == "-o"]
        return request.parse_request(arguments, lists, tolerant="-s" in flags), "-f" in flags
    except (getopt.GetoptError, ConfigError) as error:
        raise MountUsageError(str(error)) from error
