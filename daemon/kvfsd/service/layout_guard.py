"""The layout guard: blocks that were stored under another layout of the same directory are misses.

vLLM's fs tier keeps `MODEL_DIGEST/config.json`, and its blocks `*.bin` below that directory and below `MODEL_DIGEST_rN`
beside it. The digest of config.json is remembered with the directory (`user.kvfs.layout`). When it changes, every
block there that was committed before the new config.json is fenced: a miss for lookups, opens and listings from then
on, over restarts and rebuilds, and removed in the background.

    config.json committed -> undecided: older blocks are misses -> read and compared -> same: as before
                                                                                    -> other: fenced, swept
"""

from __future__ import annotations

import hashlib
import logging
import stat
from typing import TYPE_CHECKING, Final

import trio

from kvfs import limits
from kvfs.commands import ObjectChanged
from kvfs.errors import BadRecordError, FormatError, NotFoundError
from kvfsd.catalog import retention_flags as flags
from kvfsd.catalog.rows import InodeRow
from kvfsd.catalog.schema import TenantState
from kvfsd.datapath import pipeline
from kvfsd.datapath.stages import ReadRequest, Target
from kvfsd.service.layout_fences import BLOCK_SUFFIX, Fences
from kvfsd.service.layouts import Base, Layout, Layouts

if TYPE_CHECKING:
    from kvfsd.service.service import Service

log = logging.getLogger(__name__)

CONFIG_NAME: Final = b"config.json"
SWEEP_ROWS: Final = 256
SWEEP_VICTIMS: Final = 16


class LayoutGuard:
    """Fences of all tenants of a pool. One task runs `run`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._catalog = service.catalog
        self._asked: dict[Base, int] = {}
        self._wanted = trio.Event()
        self._configs: dict[int, Base] = {}
        self._layouts = Layouts(service.catalog, service.pool.ring)
        self.fences = Fences(service.catalog, service.pool.ring)
        for tenant in service.catalog.tenants.all():
            if tenant.state != TenantState.ACTIVE:
                continue
            for directory in service.catalog.retention.directories_with(tenant.tenant, flags.LAYOUT):
                self._resume(Base(tenant.tenant, directory))

    # --- what commands tell and ask --------------------------------------------------------------------

    def note_config(self, tenant: int, directory: int, ino: int) -> None:
        """A config.json was committed or renamed into `directory`: undecided until it was read."""
        if not self._catalog.retention.policy(tenant).layout_guard or not self._layouts.is_base(tenant, directory):
            return
        base = Base(tenant, directory)
        row = self._catalog.inodes.find(tenant, ino)
        if row is None or not stat.S_ISREG(row.mode):
            return
        self._configs[ino] = base
        self._asked[base] = ino
        self._wanted.set()
        if self._layouts.layout(base) is not None:
            self._fence(base, row.generation)

    def note_rewrite(self, ino: int) -> None:
        """The content of a published file changed; most files are no config.json."""
        base = self._configs.get(ino)
        if base is not None:
            self.note_config(*base, ino)

    # --- the task --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide and sweep until cancelled. What could not be read is tried again when the task is started anew."""
        while True:
            while self._asked:
                base, ino = next(iter(self._asked.items()))
                await self._decide(base, ino)
                if self._asked.get(base) == ino:
                    del self._asked[base]
            for base in self._fenced():
                await self._sweep(base)
            self._wanted = trio.Event()
            if not self._asked:
                await self._wanted.wait()

    async def _decide(self, base: Base, ino: int) -> None:
        row = self._catalog.inodes.find(base.tenant, ino)
        if row is None or not 0 < row.size <= limits.BLOCK_BYTES:
            self._lift(base)
            return
        try:
            digest = await self._digest(base.tenant, row)
        except (NotFoundError, BadRecordError) as error:
            log.warning("tenant %d: directory %d: config.json: %s", base.tenant, base.directory, error)
            self._lift(base)
            return
        known = self._layouts.layout(base)
        if known is not None and known.digest == digest:
            self._lift(base)
        else:
            self._remember(base, Layout(digest, 0 if known is None else row.generation))

    async def _digest(self, tenant: int, row: InodeRow) -> bytes:
        path = self._service.path
        request = ReadRequest(Target(tenant, 0, row.ino, 0), staged=False, fresh=False)
        verified = await pipeline.read_block(path, request)
        if verified is None:
            return hashlib.sha256(bytes(row.size)).hexdigest().encode()
        try:
            content = bytes(verified.plaintext[: row.size])
        finally:
            pipeline.release_plaintext(path, verified)
        return hashlib.sha256(content.ljust(row.size, b"\0")).hexdigest().encode()

    def _remember(self, base: Base, layout: Layout) -> None:
        """The layout is new; with a generation, another one than before: what is older is fenced from here on."""
        if not self._layouts.remember(base, layout):
            self._lift(base)
            return
        if layout.generation:
            self._service.metrics.counters.layout_changes += 1
            log.warning("tenant %d: directory %d: another layout, older blocks are fenced", *base)
            self._fence(base, layout.generation)
            self._service.tell(base.tenant, ObjectChanged(0))  # kernels have their names

    def _resume(self, base: Base) -> None:
        """After a start: a fence that is not swept yet holds; a change that nobody has seen is looked for."""
        names = self._service.pool.ring.names(base.tenant)
        config = self._catalog.namespace.lookup(*base, names.seal_name(base.directory, CONFIG_NAME))
        self._fence(base, self._layouts.fenced_generation(base))
        if config is not None:
            self.note_config(*base, config.ino)

    # --- sweeping --------------------------------------------------------------------------------------

    def _fenced(self) -> list[Base]:
        return [base for base in map(Base._make, list(self.fences.tops)) if self._layouts.fenced_generation(base)]

    async def _sweep(self, base: Base) -> None:
        """Remove what is fenced, some objects at a time; then the fence is not needed any more."""
        generation = self.fences.tops[base]
        waiting = self._layouts.tops(base)
        while waiting:
            directory = waiting.pop()
            waiting += await self._sweep_directory(base.tenant, directory, generation)
        if base in self._asked or self.fences.tops.get(base) != generation:
            return  # config.json has changed meanwhile
        self._layouts.swept(base)
        self._lift(base)

    async def _sweep_directory(self, tenant: int, directory: int, generation: int) -> list[int]:
        names = self._service.pool.ring.names(tenant)
        below: list[int] = []
        cookie, end = 0, False
        while not end:
            try:
                listed, end = self._catalog.namespace.list_directory(tenant, directory, cookie, SWEEP_ROWS)
            except NotFoundError:
                return below
            cookie = listed[-1].cookie if listed else cookie
            below += [one.inode.ino for one in listed if stat.S_ISDIR(one.inode.mode)]
            old = []
            for one in listed:
                if stat.S_ISREG(one.inode.mode) and one.inode.generation < generation:
                    try:
                        if names.open_name(directory, one.name).endswith(BLOCK_SUFFIX):
                            old.append(one.inode.ino)
                    except FormatError:
                        continue
            for start in range(0, len(old), SWEEP_VICTIMS):
                self._service.room.evictor.fence_objects(tenant, old[start : start + SWEEP_VICTIMS])
                await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        return below

    # --- fences ----------------------------------------------------------------------------------------

    def _fence(self, base: Base, generation: int) -> None:
        if generation > self.fences.tops.get(base, 0):
            self.fences.set(base.tenant, self._layouts.tops(base), generation)
            self._wanted.set()

    def _lift(self, base: Base) -> None:
        """The fence ends, unless an older one of the same directory is still being swept."""
        self.fences.set(base.tenant, self._layouts.tops(base), self._layouts.fenced_generation(base))
