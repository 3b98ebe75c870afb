"""Shredding a tenant of an open pool: the slot key is replaced, and what the old one wrapped never opens again.

    key file: old and new slot key -> media: system snapshot with the slots that stay, sealed under the new one
    -> catalog: rows of those slots instead -> key file: new slot key alone

Cut off before the catalog's transaction, the next opening takes all back; after it, ends it. A rebuild without a
catalog takes the newest snapshot that opens with a slot key of the key file, which is one of the two (docs/THREATS.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from kvfs.errors import PoolBusyError
from kvfsd.catalog.schema import TenantState
from kvfsd.crypto import keys
from kvfsd.crypto.keys import KeySlot, Rewrap
from kvfsd.metalog.logsealing import seal_system_record
from kvfsd.metalog.metadata_log import LogPayload, MetadataLog, SealedLogPayload, SystemReplacement, system_tenants
from kvfsd.ondisk.metalog import SystemTenant
from kvfsd.pool.pool import Pool, all_slots


async def shred_tenant(pool: Pool, log: MetadataLog, tenant: int) -> None:
    """Make everything of `tenant` unreadable for ever; its space is freed afterwards, as after a deletion.

    The caller sees to it that the tenant is not attached.

    Raises:
        NotFoundError: no such tenant.
        PoolBusyError: a tenant or key was made or deleted meanwhile; nothing is shredded.
        ConfigError: the key file cannot be replaced. If that was its last step, the next opening ends the shred.
        KvfsError: what media and catalog raise.
    """
    pool.catalog.tenants.get(tenant)

    async def publish(rewrap: Rewrap) -> None:
        await log.replace_system(_replacement(pool, rewrap))
        await pool.sync()

    await keys.shred(pool.ring, pool.key_file, tenant, publish)


def _replacement(pool: Pool, rewrap: Rewrap) -> SystemReplacement:
    """The system records after the shred, and the rows that go with them."""
    catalog = pool.catalog
    stays = {(slot.tenant, slot.epoch) for slot in rewrap.slots}

    def seal(asked: LogPayload) -> SealedLogPayload:
        return seal_system_record(pool.uuid, rewrap.slot_key, pool.ports.randomness, asked)

    def tenants() -> list[SystemTenant]:
        return [_rewrapped(one, rewrap.slots, rewrap.tenant) for one in system_tenants(catalog)]

    def commit() -> None:
        now = {(slot.tenant, slot.epoch) for slot in all_slots(catalog) if slot.tenant != rewrap.tenant}
        if now != stays:
            raise PoolBusyError("a tenant or key was made or deleted during the shred; nothing is shredded, try again")
        catalog.tenants.begin_delete(rewrap.tenant)
        catalog.tenants.put_slots(rewrap.slots)

    return SystemReplacement(tenants=tenants, seal=seal, commit=commit, committed=lambda: pool.ring.adopt(rewrap))


def _rewrapped(tenant: SystemTenant, slots: Sequence[KeySlot], shredded: int) -> SystemTenant:
    """The tenant with its slots wrapped anew; the shredded one as it is after the shred: deleted, without slots."""
    return SystemTenant(
        tenant=tenant.tenant,
        sealed_name=tenant.sealed_name,
        quota_bytes=tenant.quota_bytes,
        quota_objects=tenant.quota_objects,
        root_ino=tenant.root_ino,
        state=TenantState.DELETING if tenant.tenant == shredded else tenant.state,
        created_ns=tenant.created_ns,
        slots=[(slot.epoch, slot.wrapped) for slot in slots if slot.tenant == tenant.tenant],
        policy=[] if tenant.tenant == shredded else tenant.policy,
        access=[] if tenant.tenant == shredded else tenant.access,
    )
