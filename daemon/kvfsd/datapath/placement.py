"""Placement: which media hold the replicas of a key, by weighted rendezvous hashing over failure domains. Pure.

Each medium scores the key by itself; the best scores win. So a key moves only if the winner joined or left, and nobody
keeps a table. Score = -weight / ln(u) with u uniform in (0, 1) from a hash of key and medium: a medium of weight w wins
in proportion to w (weighted rendezvous, Schindelhauer and Schomaker 2005).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from kvfs import limits
from kvfs.errors import InvalidArgumentError

_SCALE: Final = 2.0**-52
"""Hashes are cut to 52 bits, which with the half added below are exact in a double and never 0 or 1."""


@dataclass(frozen=True, slots=True)
class MediumWeight:
    """A medium as placement sees it: pool-wide index, 16-byte UUID (what is hashed), weight >= 0, failure domain.

    An empty failure domain stands for a domain of its own. Weight 0 takes nothing.
    """

    index: int
    uuid: bytes
    weight: int
    failure_domain: str = ""


def place(key: bytes, media: Sequence[MediumWeight], replicas: int) -> tuple[int, ...]:
    """Indices of the media for `replicas` copies of `key`, best first: distinct failure domains while there are any.

    Fewer than `replicas` if fewer media have a weight; empty if none has. InvalidArgumentError unless
    1 <= replicas <= limits.REPLICAS_MAX.
    """
    if not 1 <= replicas <= limits.REPLICAS_MAX:
        raise InvalidArgumentError(f"replicas: want 1 to {limits.REPLICAS_MAX}, have {replicas}")
    if replicas == 1:
        return _best(key, media)
    chosen: list[MediumWeight] = []
    ranked = rank(key, media)
    while ranked and len(chosen) < replicas:
        domains: set[str] = set()
        rest: list[MediumWeight] = []
        for medium in ranked:
            fresh = not medium.failure_domain or medium.failure_domain not in domains
            if fresh and len(chosen) < replicas:
                domains.add(medium.failure_domain)
                chosen.append(medium)
            else:
                rest.append(medium)
        ranked = rest
    return tuple(medium.index for medium in chosen)


def place_without(
    key: bytes, media: Sequence[MediumWeight], replicas: int, least: int, avoid: Collection[int]
) -> tuple[int, ...]:
    """As `place`, on none of the media in `avoid`; empty unless that is as safe as `least` copies on any of the media.

    That is: as many copies, in as many failure domains. A record that is stored less safely would have to be found and
    repaired later, so it is not stored at all.
    """
    chosen = place(key, [medium for medium in media if medium.index not in avoid], replicas)
    wanted = place(key, media, least)
    if len(chosen) < len(wanted) or _domains(media, chosen) < _domains(media, wanted):
        return ()
    return chosen


def _domains(media: Sequence[MediumWeight], chosen: Collection[int]) -> int:
    """How many failure domains the chosen media are in."""
    return len({medium.failure_domain or medium.uuid for medium in media if medium.index in chosen})


def rank(key: bytes, media: Sequence[MediumWeight]) -> list[MediumWeight]:
    """All media that take records, in the order in which `key` prefers them."""
    scored = [(_score(key, medium), medium) for medium in media if medium.weight > 0]
    scored.sort(key=lambda pair: (-pair[0], pair[1].index))
    return [medium for _, medium in scored]


def block_key(pool: bytes, object_number: int, block: int) -> bytes:
    """What is placed: a block of an object in a pool. The generation is left out, so a rewrite stays where it was."""
    return pool + object_number.to_bytes(8, "little") + block.to_bytes(8, "little")


def _best(key: bytes, media: Sequence[MediumWeight]) -> tuple[int, ...]:
    """The first of `rank`, without sorting: the usual case of one copy."""
    best, best_score = -1, 0.0
    for medium in media:
        if medium.weight <= 0:
            continue
        score = _score(key, medium)
        if score > best_score or (score == best_score and medium.index < best):
            best, best_score = medium.index, score
    return () if best < 0 else (best,)


def _score(key: bytes, medium: MediumWeight) -> float:
    """Score of `medium` for `key`, always positive."""
    uniform = ((xxhash.xxh3_64_intdigest(medium.uuid + key) >> 12) + 0.5) * _SCALE
    return -medium.weight / math.log(uniform)
