"""`kvfsctl tenant create|list|show|set|delete|shred`."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import trio
import typer

from kvfs_tools.command_options import Json, PoolDirectory, TenantName, with_key
from kvfsd.cli import output, program
from kvfsd.cli.options import KekOptions
from kvfsd.units import parse_size_bytes

app = program.new_app("Make, change and delete tenants; on a mounted pool the mount does it.")

Quota = Annotated[str, typer.Option("--quota", metavar="SIZE", help="Hard limit of stored bytes; 0 = none.")]
QuotaObjects = Annotated[
    int | None, typer.Option("--quota-objects", metavar="COUNT", min=0, help="Hard limit of objects; 0 = none.")
]

Attachers = Annotated[
    list[str] | None,
    typer.Option("--uid", metavar="UID", help="User who may attach to it; may be repeated, or be none."),
]


def _administer(directory: str, kek: KekOptions, method: str, **params: Any) -> Any:
    from kvfs_tools.administration import administer

    return administer(directory, kek, method, **params)


def _print(tenants: list[dict[str, Any]], value: object, *, json: bool) -> None:
    from kvfs_tools.pool_information import print_tenants

    if json:
        output.print_json(value)
    else:
        print_tenants(tenants)


@app.command(
    cls=program.Command,
    epilog=program.examples(
        "kvfsctl tenant create /var/lib/kvfs/pool blue",
        "kvfsctl tenant create /var/lib/kvfs/pool blue --quota 200G --uid 1000 --gid 1000",
    ),
)
@with_key
def create(
    directory: PoolDirectory,
    name: TenantName,
    *,
    quota: Quota = "0",
    quota_objects: QuotaObjects = 0,
    uid: Annotated[int | None, typer.Option("--uid", min=0, help="Owner of its root directory (default: you).")] = None,
    gid: Annotated[
        int | None, typer.Option("--gid", min=0, help="Group of its root directory (default: yours).")
    ] = None,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Make the tenant NAME, with keys of its own and an empty root directory."""
    params = {
        "name": name,
        "quota_bytes": parse_size_bytes(quota, "--quota"),
        "quota_objects": quota_objects or 0,
        "uid": os.geteuid() if uid is None else uid,
        "gid": os.getegid() if gid is None else gid,
    }
    made = _administer(directory, key, "tenant_create", **params)
    if json:
        output.print_json(made)


@app.command("list", cls=program.Command, epilog=program.examples("kvfsctl tenant list /var/lib/kvfs/pool"))
@with_key
def list_(
    directory: PoolDirectory,
    *,
    key: KekOptions,
    json: Json = False,
) -> None:
    """List the tenants with quota and use."""
    found = _read(directory, key)
    _print(found, found, json=json)


@app.command(cls=program.Command, epilog=program.examples("kvfsctl tenant show /var/lib/kvfs/pool blue --json"))
@with_key
def show(
    directory: PoolDirectory,
    name: TenantName,
    *,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Show one tenant."""
    found = _read(directory, key, name)[0]
    _print([found], found, json=json)


def _read(directory: str, kek: KekOptions, name: str = "") -> list[dict[str, Any]]:
    """All tenants, or the one called `name`; nothing is written, a mount of the pool is not asked."""
    import trio

    from kvfs_tools.readonly import open_read_only
    from kvfsd.admin.admin_methods import tenant_value

    async def read() -> list[dict[str, Any]]:
        async with open_read_only(directory, kek) as opened:
            tenants = opened.pool.tenants
            return [tenant_value(tenant) for tenant in ([tenants.show(name)] if name else tenants.list())]

    return trio.run(read)


@app.command(
    "set",
    cls=program.Command,
    epilog=program.examples(
        "kvfsctl tenant set /var/lib/kvfs/pool blue --quota 400G --quota-objects 0",
        "kvfsctl tenant set /var/lib/kvfs/pool blue --min-bytes 100G --high 97 --low 90",
        "kvfsctl tenant set /var/lib/kvfs/pool blue --uid 1000 --uid 1001     users who may attach to it",
        "kvfsctl tenant set /var/lib/kvfs/pool blue --uid none --gid 2000     no user, but a group",
    ),
)
@with_key
def set_(
    directory: PoolDirectory,
    name: TenantName,
    *,
    quota: Quota = "",
    quota_objects: QuotaObjects = None,
    min_bytes: Annotated[
        str, typer.Option("--min-bytes", metavar="SIZE", help="What other tenants' needs leave it; 0 = nothing.")
    ] = "",
    high_percent: Annotated[
        int | None,
        typer.Option("--high", metavar="PERCENT", help="Of its quota: above this, the oldest objects go; 100 = never."),
    ] = None,
    low_percent: Annotated[
        int | None, typer.Option("--low", metavar="PERCENT", help="Of its quota: down to this, ahead of need.")
    ] = None,
    eviction: Annotated[
        str, typer.Option("--eviction", metavar="on|off", help="off: nothing is evicted, at its quota it gets EDQUOT.")
    ] = "",
    layout_guard: Annotated[
        str, typer.Option("--layout-guard", metavar="on|off", help="off: another config.json fences no older blocks.")
    ] = "",
    uid: Attachers = None,
    gid: Annotated[
        list[str] | None, typer.Option("--gid", metavar="GID", help="Group that may attach to it; as --uid.")
    ] = None,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Change quotas, what is evicted, and who may attach through a daemon.

    What is over a new quota stays until it is evicted; it only cannot grow. --uid and --gid replace the list of users,
    or groups; mounts that are attached already stay.
    """
    limits = {
        "quota_bytes": parse_size_bytes(quota, "--quota") if quota else None,
        "quota_objects": quota_objects,
        "min_bytes": parse_size_bytes(min_bytes, "--min-bytes") if min_bytes else None,
        "high_percent": high_percent,
        "low_percent": low_percent,
        "eviction": _switch("--eviction", eviction),
        "layout_guard": _switch("--layout-guard", layout_guard),
    }
    access = {"uids": _numbers("--uid", uid), "gids": _numbers("--gid", gid)}
    asked: list[tuple[str, dict[str, Any]]] = [("tenant_set", limits), ("tenant_set_access", access)]
    changes = [(method, given) for method, given in asked if any(value is not None for value in given.values())]
    if not changes:
        raise program.usage_error("nothing to set; give --quota, --quota-objects, --min-bytes, --uid ...")
    for method, given in changes:
        changed = _administer(directory, key, method, name=name, **given)
    _print([changed], changed, json=json)


def _switch(option: str, text: str) -> bool | None:
    """What `on`, `off` or nothing at all says."""
    if text not in ("", "on", "off"):
        raise program.usage_error(f"{option} {text}: want on or off")
    return text == "on" if text else None


def _numbers(option: str, given: list[str] | None) -> list[int] | None:
    """The list that repeated options mean; None if there is none of them, empty for "none"."""
    if not given:
        return None
    if given == ["none"]:
        return []
    if not all(re.fullmatch(r"[0-9]{1,10}", one, re.ASCII) for one in given):
        raise program.usage_error(f"{option}: want numbers, or none by itself")
    return [int(one) for one in given]


@app.command(
    "credential",
    cls=program.Command,
    epilog=program.examples(
        "kvfsctl tenant credential /var/lib/kvfs/pool blue --out blue.credential",
        "kvfs mount blue@/run/kvfs/kvfsd.sock /kv -o credential=blue.credential",
        "kvfsctl tenant credential /var/lib/kvfs/pool blue --revoke",
    ),
)
@with_key
def credential_(
    directory: PoolDirectory,
    name: TenantName,
    *,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="New file for the credential, mode 0600.")] = "",
    revoke: Annotated[bool, typer.Option("--revoke", help="Make all earlier ones useless (first).")] = False,
    key: KekOptions,
) -> None:
    """Make a mount credential: whoever can read FILE may attach to the tenant through a daemon, as any user.

    The pool keeps a digest of it. With --revoke all earlier ones stop working; mounts that are attached stay.
    """
    if not out and not revoke:
        raise program.usage_error("nothing to do; give --out FILE, --revoke, or both")
    from kvfs_tools.mount_credential import write_new

    if revoke:
        _administer(directory, key, "tenant_drop_credentials", name=name)
    if out:
        with write_new(out) as digest:
            _administer(directory, key, "tenant_add_credential", name=name, digest=digest.hex())


@app.command(cls=program.Command, epilog=program.examples("kvfsctl tenant delete /var/lib/kvfs/pool blue --force"))
@with_key
def delete(
    directory: PoolDirectory,
    name: TenantName,
    *,
    force: Annotated[bool, typer.Option("--force", help="Delete everything in it, too.")] = False,
    key: KekOptions,
) -> None:
    """Delete a tenant that is not mounted: its keys at once, its space in the background of the next mounts."""
    _administer(directory, key, "tenant_delete", name=name, force=force)


@app.command(cls=program.Command, epilog=program.examples("kvfsctl tenant shred /var/lib/kvfs/pool blue --force"))
@with_key
def shred(
    directory: PoolDirectory,
    name: TenantName,
    *,
    force: Annotated[bool, typer.Option("--force", help="Shred everything in it, too.")] = False,
    key: KekOptions,
) -> None:
    """Delete a tenant so that nothing of it ever opens again, in older copies of media and catalog neither.

    The pool's slot key is replaced: the pool must not be mounted, and backups of the slot-key files must be replaced
    afterwards, because the old ones are useless to you, and with the key still open what was shredded.
    """
    from kvfs_tools import tenant_shredding

    trio.run(partial(tenant_shredding.shred, Path(directory), key, name, force=force))
