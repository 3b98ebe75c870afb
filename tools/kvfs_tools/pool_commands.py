"""`kvfsctl pool create|info|relocate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import trio
import typer

from kvfs import limits
from kvfs_tools.command_options import Json, PoolDirectory, with_key
from kvfsd.cli import output, program
from kvfsd.cli.options import KekOptions
from kvfsd.cli.program import argument
from kvfsd.pool.poolfile import absolute
from kvfsd.units import parse_size_bytes

app = program.new_app("Make pools and look at them.")

DEFAULT_SIZE: Final = "64G"


@app.command(
    cls=program.Command,
    epilog=program.examples(
        "kvfsctl pool create /var/lib/kvfs/pool --kek /etc/kvfs/pool.kek --size 512G",
        "kvfsctl pool create pool --kek pool.kek --replicas 2 --medium /dev/nvme1n1 --medium /dev/nvme2n1",
        "kvfsctl pool create pool --kek pool.kek --medium a.img,size=64G,weight=4 --medium b.img,size=1T,weight=1",
    ),
)
@with_key
def create(
    directory: PoolDirectory,
    *,
    size: Annotated[
        str, typer.Option("--size", metavar="SIZE", help="Size of the sparse file in POOL that holds the data.")
    ] = "",
    medium: Annotated[
        list[str] | None,
        typer.Option("--medium", metavar="PATH[,KEY=VALUE...]", help="A medium instead: device, or file with size=."),
    ] = None,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, max=limits.REPLICAS_MAX, help="Copies of each block.")
    ] = 1,
    segment_size: Annotated[
        str, typer.Option("--segment-size", metavar="SIZE", help="Size of a segment (default: a 64th of a medium).")
    ] = "",
    key_directory: Annotated[
        str,
        typer.Option("--key-directory", metavar="DIR", help="Where the slot-key file goes (default: beside the key)."),
    ] = "",
    tenant: Annotated[
        list[str] | None, typer.Option("--tenant", metavar="NAME", help="Make this tenant too; may be repeated.")
    ] = None,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Make a pool in the directory POOL, which is missing or empty.

    The key is needed whenever the pool is opened, and nothing can be read without it: keep a copy elsewhere. A key file
    that does not exist yet is made (64 random hexadecimal digits, mode 0600). KEYs of a medium: size, weight (share in
    placement, default by size), domain (replicas go to different ones).
    """
    from kvfs_tools import pool_creation

    if size and medium:
        raise program.usage_error("--size is for a pool without --medium; give each medium its own size=")
    wanted = pool_creation.NewPool(
        directory=Path(os.path.abspath(directory)),
        media=pool_creation.parse_media(directory, medium or [], parse_size_bytes(size or DEFAULT_SIZE, "--size")),
        replicas=replicas,
        segment_bytes=parse_size_bytes(segment_size, "--segment-size") if segment_size else None,
        key_directory=Path(key_directory).absolute() if key_directory else None,
        kek=key,
        tenants=tuple(tenant or ()),
    )
    made = trio.run(pool_creation.create, wanted)
    for warning in made.pop("warnings"):
        output.warn("kvfsctl", f"warning: {warning}")
    if json:
        output.print_json(made)
    else:
        print(
            f"made pool {made['uuid']} in {output.printable(made['directory'])}; key: {output.printable(made['kek'])}"
        )


@app.command(
    cls=program.Command,
    epilog=program.examples("kvfsctl pool info /var/lib/kvfs/pool", "kvfsctl pool info --json /var/lib/kvfs/pool"),
)
@with_key
def info(
    directory: PoolDirectory,
    *,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Show a pool: format, media with their segments and free space, tenants with their use. Works beside a mount."""
    from kvfs_tools import pool_information

    found = trio.run(pool_information.collect, directory, key)
    for warning in found["warnings"]:
        output.warn("kvfsctl", f"warning: {warning}")
    if json:
        output.print_json(found)
    else:
        pool_information.print_pool(found)


@app.command(
    cls=program.Command,
    epilog=program.examples(
        "kvfsctl pool relocate /var/lib/kvfs/pool 1 /dev/nvme3n1",
        "kvfsctl pool relocate pool 0 larger/medium-0           after it was copied there",
    ),
)
def relocate(
    directory: PoolDirectory,
    medium: Annotated[int, argument("MEDIUM")],
    path: Annotated[str, argument("PATH")],
    *,
    json: Json = False,
) -> None:
    """Tell a closed pool that its medium MEDIUM (number) is found at PATH now.

    PATH must be that very medium: its superblock is read and compared. Needs no key. The number is that of `kvfsctl
    pool info` and of the error that says a medium is missing.
    """
    from kvfs_tools import pool_relocation

    moved = trio.run(pool_relocation.relocate, absolute(Path(directory)), medium, Path(path).absolute())
    if json:
        output.print_json(moved)
    else:
        print(f"medium {moved['index']} is {output.printable(moved['path'])} now")
