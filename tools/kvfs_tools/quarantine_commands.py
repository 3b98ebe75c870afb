"""`kvfsctl quarantine list|restore|purge`."""

from __future__ import annotations

from typing import Annotated, Any

from kvfs_tools.command_options import Json, SourceText, with_key
from kvfsd.cli import output, program
from kvfsd.cli.options import KekOptions, parse_source
from kvfsd.units import format_bytes

app = program.new_app("What was put aside: objects with bad records, and unlinks that followed a fault.")


def _administer(source: str, kek: KekOptions, method: str, **params: Any) -> Any:
    from kvfs_tools.administration import administer

    named = parse_source(source)
    return administer(named.pool, kek, method, name=named.tenant, **params)


@app.command("list", cls=program.Command, epilog=program.examples("kvfsctl quarantine list blue@/var/lib/kvfs/pool"))
@with_key
def list_(
    source: SourceText,
    *,
    key: KekOptions,
    json: Json = False,
) -> None:
    """List a tenant's objects in quarantine. hidden: a record is bad; unlinked: an unlink followed a fault."""
    from kvfs_tools.pool_information import shown_time

    found = _administer(source, key, "quarantine_list")
    if json:
        output.print_json(found)
        return
    rows = [
        [
            one["ino"],
            one["kind"],
            format_bytes(one["size"]),
            shown_time(one["time_ns"]),
            one["name"] or "-",
            one["reason"],
        ]
        for one in found
    ]
    output.print_table(("OBJECT#", "KIND", "SIZE#", "SINCE", "NAME", "REASON"), rows)


@app.command(cls=program.Command, epilog=program.examples("kvfsctl quarantine restore blue@/var/lib/kvfs/pool 4711"))
@with_key
def restore(
    source: SourceText,
    ino: Annotated[int, program.argument("OBJECT")],
    *,
    key: KekOptions,
) -> None:
    """Give an unlinked object its name back, or show a hidden one again (reading it checks it anew)."""
    _administer(source, key, "quarantine_restore", ino=ino)


@app.command(cls=program.Command, epilog=program.examples("kvfsctl quarantine purge blue@/var/lib/kvfs/pool"))
@with_key
def purge(
    source: SourceText,
    *,
    key: KekOptions,
) -> None:
    """Free all unlinked objects of the tenant now; by themselves they go after a day, or when space is needed."""
    freed = _administer(source, key, "quarantine_purge")
    print(f"freed {freed['freed_objects']} objects, {format_bytes(freed['freed_bytes'])}")
