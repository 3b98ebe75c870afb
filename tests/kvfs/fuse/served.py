"""The child process of mount tests: serves a mount over the fake DPU half and takes orders on its standard input.

One JSON object a line: {"fail": [command, error class, nth, times]}, {"clear": true}, {"calls": true},
{"handler": [operation, nth]}, {"gone": [path, name]}, {"corrupt": path}, {"state": true}; one JSON answer a line.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
from typing import Any

import trio

from kvfs import errors
from kvfs.commands import EntryGone, ObjectChanged
from kvfs.fuse import guard
from kvfs.fuse import mount as mount_module
from kvfs.fuse.operations import Operations
from kvfs.fuse.state import MountState
from tests.kvfs.fake_dpu import FakeDpu

states: list[MountState] = []
handler_faults: dict[str, list[int]] = {}


class TestOperations(Operations):
    """Operations whose handlers raise when they are told to."""

    def __init__(self, state: MountState) -> None:
        super().__init__(state)
        states.append(state)


def _faulty(name: str) -> Any:
    inner = getattr(Operations, name).__wrapped__

    async def handler(self: Operations, *args: Any) -> Any:
        left = handler_faults.get(name)
        if left is not None:
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError(f"planted in {name}")
        return await inner(self, *args)

    handler.__name__ = name
    return guard.guarded(guard.Context.NAME)(handler)


for _name in dir(Operations):
    if hasattr(getattr(Operations, _name), "__wrapped__"):
        setattr(TestOperations, _name, _faulty(_name) if "--faulty" in sys.argv else getattr(Operations, _name))
mount_module.Operations = TestOperations  # type: ignore[misc]


def obey(dpu: FakeDpu, order: dict[str, Any]) -> Any:
    match order:
        case {"fail": [command, error, nth, times]}:
            kind = getattr(errors, error, None) or RuntimeError
            dpu.fail(command, kind("planted"), nth, times)
        case {"clear": _}:
            dpu.clear_faults()
            handler_faults.clear()
        case {"hold": command}:
            dpu.holds[command] = trio.Event()
        case {"calls": _}:
            calls = dict(dpu.calls)
            dpu.calls.clear()
            return calls
        case {"handler": [operation, nth]}:
            handler_faults[operation] = [nth]
        case {"gone": name}:
            dpu.nodes[1].entries.pop(name.encode())
            dpu.emit(EntryGone(parent=1, name=name.encode()))
        case {"bad": path}:
            dpu.bad.add(dpu.at(path).ino)
        case {"replaced": [old, new]}:
            dpu.nodes[1].entries[new.encode()] = dpu.nodes[1].entries.pop(old.encode())
        case {"drop": path}:
            del dpu.nodes[dpu.at(path).ino]
        case {"replace": [path, data]}:
            node = dpu.at(path)
            content = base64.b64decode(data)
            node.blocks, node.size, node.generation = {0: content}, len(content), node.generation + 1000
            dpu.emit(ObjectChanged(ino=node.ino))
        case {"lost": _}:
            dpu.emit(ObjectChanged(ino=0))
        case {"content": path}:
            return base64.b64encode(dpu.content(path)).decode()
        case {"many": [path, count]}:
            parent = dpu.at(path)
            for number in range(count):
                dpu.nodes[10_000_000 + number] = type(parent)(10_000_000 + number, 0o100644, 0, 0)
                parent.entries[b"n%07d" % number] = (10_000_000 + number, next(dpu._cookies))
        case {"state": _}:
            state = states[-1]
            return {
                "handles": len(state.table),
                "inodes": sum(1 for _ in state.table.inodes()),
                "pending": len(state.pending),
                "staged": sum(map(len, dpu.staged.values())),
                "blocks": state.staging.used_blocks,
                "kept_open": len(dpu.kept_open),
                "cache_bytes": state.reads.cache.used_bytes,
                "nodes": len(dpu.nodes),
                "allocated": len(dpu.allocated),
                "internal_errors": sum(guard.internal_errors.values()),
            }
        case {"attributes": path}:
            node = dpu.at(path)
            return {"mode": node.mode, "uid": node.uid, "gid": node.gid, "size": node.size, "nlink": node.nlink}
        case _:
            raise ValueError(order)
    return None


async def orders(dpu: FakeDpu) -> None:
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        print(json.dumps(obey(dpu, json.loads(line))), flush=True)


async def main() -> None:
    settings = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    dpu = FakeDpu(quota_bytes=settings.pop("quota_bytes", 0))
    options = mount_module.MountOptions(**settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(orders, dpu)
        await mount_module.serve(dpu, sys.argv[1], options, started=lambda: print('"mounted"', flush=True))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        trio.run(main)
    except* errors.ConfigError as group:
        print(json.dumps({"refused": str(group.exceptions[0])}), flush=True)
        sys.exit(3)
    os._exit(0)  # a thread may still wait for a line of orders
