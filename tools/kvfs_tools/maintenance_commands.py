"""`kvfsctl check|rebuild`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import trio
import typer

from kvfs_tools.command_options import Json, PoolDirectory, with_key
from kvfsd.cli import output, program
from kvfsd.cli.options import KekOptions
from kvfsd.pool.poolfile import absolute


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(cls=program.Command, epilog=program.examples("kvfsctl check /var/lib/kvfs/pool"))(check)
    app.command(
        cls=program.Command,
        epilog=program.examples(
            "kvfsctl rebuild /var/lib/kvfs/pool              the catalog is gone or damaged",
            "kvfsctl rebuild --force /var/lib/kvfs/pool      replace one that opens; it is kept beside",
            "kvfsctl rebuild newpool --kek pool.kek --medium a.img --medium b.img    the state directory is gone",
        ),
    )(rebuild)


@with_key
def check(
    directory: PoolDirectory,
    *,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Recount the catalog, and check every row: quotas, links, names, blocks, segments. Reads no block.

    Exit status 1 if anything is wrong; it says which row, and what to do.
    """
    found = trio.run(_check, directory, key)
    if json:
        output.print_json(found)
    else:
        for finding in found["findings"]:
            print(output.printable(finding))
        for advice in found["advice"]:
            print(advice)
        print(
            f"checked {found['objects']} objects of {len(found['tenants'])} tenants: {len(found['findings'])} findings"
        )
    if found["findings"]:
        raise typer.Exit(1)


async def _check(directory: str, kek: KekOptions) -> dict[str, Any]:
    from kvfs_tools.readonly import open_read_only
    from kvfsd.admin.admin_methods import tenant_value
    from kvfsd.catalog.check import check as recount

    async with open_read_only(directory, kek) as opened:
        problems = recount(opened.pool.catalog.database)
        tenants = [tenant_value(tenant) for tenant in opened.pool.tenants.list()]
    return {
        "tenants": tenants,
        "objects": sum(tenant["used_objects"] for tenant in tenants),
        "findings": [f"{problem.kind}: {problem.detail}" for problem in problems],
        "advice": sorted({problem.advice for problem in problems}),
    }


@with_key
def rebuild(
    directory: PoolDirectory,
    *,
    force: Annotated[bool, typer.Option("--force", help="Also when there is a catalog that opens.")] = False,
    medium: Annotated[
        list[str] | None,
        typer.Option("--medium", metavar="PATH", help="Make pool.json anew, too; name every medium that is left."),
    ] = None,
    key_directory: Annotated[
        str,
        typer.Option("--key-directory", metavar="DIR", help="With --medium: where the slot-key file lies."),
    ] = "",
    key: KekOptions,
    json: Json = False,
) -> None:
    """Make the catalog anew from the media: everything up to the metadata log's lag (1 s), nothing that was unlinked.

    Media are only read. The catalog that was there is kept beside the new one. Exit status 1 if something was lost.
    With --medium, POOL is a directory without a pool, missing or not, and the state directory that was lost must not
    come back: two catalogs of the same media would overwrite each other's data.
    """
    from kvfs_tools import rebuilding

    if key_directory and not medium:
        raise program.usage_error("--key-directory goes with --medium; pool.json says where the key file is")
    wanted = rebuilding.Wanted(
        directory=absolute(Path(directory)),
        kek=key,
        force=force,
        media=tuple(Path(path).absolute() for path in medium or ()),
        key_directory=Path(key_directory).absolute() if key_directory else None,
    )
    report = trio.run(rebuilding.rebuild_pool, wanted)
    for warning in report["warnings"]:
        output.warn("kvfsctl", f"warning: {warning}")
    if json:
        output.print_json(report)
    else:
        rebuilding.print_report(report)
    if not report["complete"]:
        raise typer.Exit(1)
