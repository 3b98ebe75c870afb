"""Handlers of extended attributes: `user.*` is stored, other name spaces are refused without harm.

Reading `security.*`, `system.*` or `trusted.*` says "no such attribute": the kernel itself asks for
`security.capability` before cached writes, and tar, cp and ls ask for ACLs; setting one is EOPNOTSUPP.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from pyfuse3 import RequestContext

from kvfs import retention
from kvfs.commands import Bytes, GetXattr, ListXattrs, Names, RemoveXattr, SetXattr
from kvfs.errors import KvfsError, NotSupportedError, NoXattrError, XattrTooLargeError
from kvfs.fuse.errno_map import Context
from kvfs.fuse.guard import guarded
from kvfs.fuse.state import MountState
from kvfs.limits import XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES, XATTRS_PER_OBJECT_MAX_BYTES
from kvfs.openfile import OpenFile

log = logging.getLogger(__name__)

_STORED: Final = b"user."


class XattrHandlers:
    """Extended attributes; those of a file that is not published yet wait for its first commit."""

    state: MountState

    def _unpublished(self, ino: int) -> OpenFile | None:
        inode = self.state.table.get(ino)
        file = inode.file if inode is not None else None
        return file if file is not None and not file.published else None

    @guarded(Context.NAME)
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """Value of an attribute; ENODATA if there is none."""
        if not name.startswith(_STORED):
            raise NoXattrError("only user.* attributes are stored")
        file = self._unpublished(inode)
        if name == retention.STATE:
            return await self._state_of(inode, file)
        if file is not None:
            value = file.xattrs.get(name)
            if value is None:
                raise NoXattrError("no such attribute")
            return value
        result = (await self.state.queue_pair.submit(GetXattr(ino=inode, name=name))).result
        assert isinstance(result, Bytes)
        return result.value

    async def _state_of(self, ino: int, unpublished: OpenFile | None) -> bytes:
        if unpublished is not None:
            words = {"staged", "open"} | ({"pinned"} if unpublished.xattrs.get(retention.PIN) == b"1" else set())
            return retention.state_text(words)
        result = (await self.state.queue_pair.submit(GetXattr(ino=ino, name=retention.STATE))).result
        assert isinstance(result, Bytes)
        if self.state.table.staged(ino) is None:
            return result.value
        return retention.state_text({word.decode() for word in result.value.split()} - {"sealed"} | {"staged"})

    @guarded(Context.NAME)
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set an attribute; pyfuse3 has checked XATTR_CREATE and XATTR_REPLACE."""
        if not name.startswith(_STORED):
            raise NotSupportedError("only user.* attributes are stored")
        if len(name) > XATTR_NAME_MAX_BYTES or len(value) > XATTR_VALUE_MAX_BYTES:
            raise XattrTooLargeError(f"an attribute of {len(value)} bytes, at most {XATTR_VALUE_MAX_BYTES}")
        file = self._unpublished(inode)
        if file is not None:
            async with file.commit_lock:
                if not file.published:
                    _check_setting(name, value)
                    _set_pending(file, name, value)
                    return
        await self.state.queue_pair.submit(SetXattr(ino=inode, name=name, value=value, flags=0))

    @guarded(Context.NAME)
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an attribute; ENODATA if there is none."""
        if not name.startswith(_STORED):
            raise NotSupportedError("only user.* attributes are stored")
        file = self._unpublished(inode)
        if file is not None:
            async with file.commit_lock:
                if not file.published:
                    if file.xattrs.pop(name, None) is None:
                        raise NoXattrError("no such attribute")
                    return
        await self.state.queue_pair.submit(RemoveXattr(ino=inode, name=name))

    @guarded(Context.NAME)
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """Names of all attributes."""
        file = self._unpublished(inode)
        if file is not None:
            return list(file.xattrs)
        result = (await self.state.queue_pair.submit(ListXattrs(ino=inode))).result
        assert isinstance(result, Names)
        return result.names


def _check_setting(name: bytes, value: bytes) -> None:
    """Refuse, while the caller still hears it, what the daemon would refuse at the first commit."""
    if not name.startswith(retention.PREFIX):
        return
    try:
        retention.parse_setting(name, value)
    except KvfsError as error:
        log.warning("a file that is being written: %s", error)
        raise


def _set_pending(file: OpenFile, name: bytes, value: bytes) -> None:
    others = sum(len(key) + len(held) for key, held in file.xattrs.items() if key != name)
    if others + len(name) + len(value) > XATTRS_PER_OBJECT_MAX_BYTES:
        raise XattrTooLargeError(f"attributes of one object over {XATTRS_PER_OBJECT_MAX_BYTES} bytes")
    file.xattrs[name] = value
    file.changed = True
