"""The guard: what may leave a handler."""

import errno
import logging

import pytest
import trio
from pyfuse3 import FUSEError

from kvfs.errors import BadRecordError, NotFoundError, error_for
from kvfs.fuse.errno_map import Context
from kvfs.fuse.guard import guarded, internal_errors


class Handlers:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    @guarded(Context.READ)
    async def read(self, value: int) -> int:
        if self.error is not None:
            raise self.error
        return value


async def outcome(error: BaseException) -> int:
    with pytest.raises(FUSEError) as caught:
        await Handlers(error).read(1)
    return caught.value.errno


async def test_results_pass() -> None:
    assert await Handlers(None).read(5) == 5


async def test_errors_are_translated_in_the_handlers_context() -> None:
    assert await outcome(BadRecordError("bad")) == errno.EIO
    assert await outcome(NotFoundError("gone")) == errno.EIO
    assert await outcome(FUSEError(errno.EXDEV)) == errno.EXDEV


async def test_a_bug_is_eio_with_a_traceback_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    before = internal_errors["read"]
    assert await outcome(ZeroDivisionError("bug")) == errno.EIO
    assert internal_errors["read"] == before + 1
    assert "ZeroDivisionError" in caplog.text


async def test_an_unknown_status_is_eio() -> None:
    error = error_for(1000, "from the future")  # type: ignore[arg-type]
    assert await outcome(error) == errno.EIO


async def test_cancellation_passes() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            with pytest.raises(trio.Cancelled):
                await Handlers(cancelled).read(1)
            raise
    assert scope.cancelled_caught


async def test_texts_of_errors_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """They may tell names that belong to a tenant."""
    caplog.set_level(logging.DEBUG)
    await outcome(BadRecordError("secret-model-name"))
    assert "BAD_RECORD" in caplog.text
    error = KeyError(b"secret-model-name")
    error.__cause__ = ValueError("secret-model-name")
    await outcome(error)
    assert "ValueError\nfollowed by KeyError\n" in caplog.text
    assert "secret-model-name" not in caplog.text
