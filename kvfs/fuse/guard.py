"""The guard around every handler: nothing but FUSEError leaves it.

pyfuse3 ends the mount on any other exception (measured). Cancellation passes: it means that the mount ends anyway.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar, cast

from pyfuse3 import FUSEError

from kvfs.errors import KvfsError, Status
from kvfs.fuse.errno_map import Context, errno_for
from kvfs.tracebacks import without_text

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

internal_errors: Final[Counter[str]] = Counter()
"""Operation -> exceptions of ours that reached its guard; one process has one mount."""

_LOGGED: Final = frozenset({Status.BAD_RECORD, Status.MEDIUM_UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.INTERNAL})


Handler: TypeAlias = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def guarded(context: Context) -> Callable[[Handler[S, P, T]], Handler[S, P, T]]:
    """Decorate a handler: domain errors become the errno of `context`, everything else EIO, a log entry and a count."""

    def decorate(handler: Handler[S, P, T]) -> Handler[S, P, T]:
        operation = handler.__name__

        @functools.wraps(handler)
        async def guard(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await handler(self, *args, **kwargs)
            except FUSEError:
                raise
            except KvfsError as error:
                if error.status in _LOGGED:
                    log.warning("%s: %s", operation, error.status.name)
                raise FUSEError(errno_for(error.status, context)) from None
            except Exception as error:
                internal_errors[operation] += 1
                log.error("%s failed, a bug of ours, the caller sees EIO: %s", operation, without_text(error))  # noqa: TRY400 - no texts
                raise FUSEError(errno.EIO) from None

        return cast("Handler[S, P, T]", guard)

    return decorate
