"""Tracebacks for the log: where and what kind, never the text of an exception, which may hold a tenant's names."""

from __future__ import annotations

import traceback


def without_text(error: BaseException) -> str:
    """The chain of `error`, oldest first: type and frames of each exception."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    parts = [f"{type(one).__name__}\n{''.join(traceback.format_tb(one.__traceback__))}" for one in reversed(chain)]
    return "followed by ".join(parts).rstrip()
