"""The shipped slice of a real request trace, and how much of it one replay uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import msgspec

from kvfs.errors import ConfigError

CHAIN_BLOCKS = 4
"""Blocks of each prompt that are replayed, from its start: many short prompts show more reuse than a few long ones."""


class _Line(msgspec.Struct):
    hash_ids: list[int]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the ids of its prompt's blocks, in chain order."""

    chain: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a replay of a plan must find on an empty store that loses nothing."""

    lookups: int
    hits: int
    distinct: int


def parse_trace(lines: Iterable[bytes], where: str) -> list[Request]:
    """Requests of a trace in JSON lines. Raises ConfigError naming the line that is not one."""
    requests = []
    for number, line in enumerate(lines, start=1):
        try:
            chain = tuple(msgspec.json.decode(line, type=_Line).hash_ids)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{where} line {number}: {error}") from error
        if not chain:
            raise ConfigError(f"{where} line {number}: a request without blocks")
        requests.append(Request(chain))
    return requests


def shipped_trace() -> list[Request]:
    """The slice in data/mooncake_slice.jsonl (its source and licence are beside it)."""
    data = resources.files("kvfs_tools.quickstart").joinpath("data", "mooncake_slice.jsonl").read_bytes()
    return parse_trace(data.splitlines(), "mooncake_slice.jsonl")


def plan_replay(requests: Sequence[Request], blocks: int, chain_blocks: int = CHAIN_BLOCKS) -> list[Request]:
    """The first requests, cut to `chain_blocks` each, that together name at most `blocks` different blocks."""
    if blocks < 1 or chain_blocks < 1:
        raise ConfigError(f"a replay needs at least one block, not {blocks} of {chain_blocks} per request")
    seen: set[int] = set()
    plan = []
    for request in requests:
        chain = list(request.chain[:chain_blocks])
        while chain and len(seen | set(chain)) > blocks:
            chain.pop()
        if chain:
            plan.append(Request(tuple(chain)))
            seen |= set(chain)
        if len(seen) >= blocks:
            break
    return plan


def leading_hits(present: Sequence[bool]) -> int:
    """How many blocks an engine can use: the run of present ones at the start of the chain."""
    return next((index for index, there in enumerate(present) if not there), len(present))


def expectation(plan: Sequence[Request]) -> Expectation:
    """Simulate `plan` on an empty, unbounded, lossless store."""
    stored: set[int] = set()
    lookups = hits = 0
    for request in plan:
        lookups += len(request.chain)
        hits += leading_hits([block in stored for block in request.chain])
        stored |= set(request.chain)
    return Expectation(lookups, hits, len(stored))
