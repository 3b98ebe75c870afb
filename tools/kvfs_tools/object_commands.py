"""`kvfsctl ls|stat|verify`: what is in a tenant, read-only, on a closed pool or beside its mount."""

from __future__ import annotations

from typing import Annotated, Final

import trio
import typer

from kvfs_tools.command_options import Json, SourceText, with_key
from kvfsd.cli import output, program
from kvfsd.cli.options import KekOptions, parse_source

EXIT_BAD: Final = 1

ObjectPath = Annotated[str, program.argument("[PATH]")]
Recursive = Annotated[bool, typer.Option("-R", "--recursive", help="Everything below, too.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(
        cls=program.Command,
        epilog=program.examples("kvfsctl ls blue@/var/lib/kvfs/pool /vllm", "kvfsctl ls -R --json pool | jq -r .path"),
    )(ls)
    app.command(cls=program.Command, epilog=program.examples("kvfsctl stat blue@/var/lib/kvfs/pool /vllm/config.json"))(
        stat
    )
    app.command(
        cls=program.Command,
        epilog=program.examples(
            "kvfsctl verify /var/lib/kvfs/pool              all tenants",
            "kvfsctl verify blue@/var/lib/kvfs/pool /vllm   one directory of one tenant",
        ),
    )(verify)


@with_key
def ls(
    source: SourceText,
    path: ObjectPath = "/",
    *,
    recursive: Recursive = False,
    key: KekOptions,
    json: Json = False,
) -> None:
    """List a directory of a tenant: mode, links, owner, group, size, time, name. --json prints one object per line."""
    from kvfs_tools import object_reports

    named = parse_source(source)
    asked = object_reports.Listing(named.tenant, path, recursive=recursive, json=json)
    trio.run(object_reports.list_objects, named.pool, key, asked)


@with_key
def stat(
    source: SourceText,
    path: Annotated[str, program.argument("PATH")],
    *,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Show one object: attributes, extended attributes, and where each of its blocks lies."""
    from kvfs_tools import object_reports

    named = parse_source(source)
    found = trio.run(object_reports.describe_object, named.pool, key, named.tenant, path)
    if json:
        output.print_json(found)
    else:
        object_reports.print_object(found)


@with_key
def verify(
    source: SourceText,
    path: ObjectPath = "/",
    *,
    key: KekOptions,
    json: Json = False,
) -> None:
    """Read every replica of every block and check it as a read would. Exit status 1 if anything is bad.

    POOL alone means all tenants. Nothing is changed: what is bad is quarantined when an engine reads it.
    """
    from kvfs_tools import verify_report

    named = parse_source(source)
    tenant = named.tenant if source != named.pool else None
    report = trio.run(verify_report.verify_pool, named.pool, key, tenant, path)
    if json:
        output.print_json(verify_report.report_value(report))
    else:
        verify_report.print_report(report)
    if not report.clean:
        raise typer.Exit(EXIT_BAD)
