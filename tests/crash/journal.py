"""The journal of one worker: which operations it started and which were acknowledged, kept outside the mount."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.model import Operation, State, apply, empty_state


class JournalWriter:
    """One line per event, each in one write(2), so that a killed worker leaves whole lines behind."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def begin(self, operation: Operation) -> None:
        """Note `operation` before its first system call."""
        self._line({"begin": operation})

    def acknowledge(self) -> None:
        """Note that the operation begun last has returned."""
        self._line({"ack": True})

    def complain(self, what: str) -> None:
        """Note a violation that the worker saw itself."""
        self._line({"violation": what})

    def _line(self, value: dict[str, object]) -> None:
        line = json.dumps(value).encode() + b"\n"
        assert os.write(self._descriptor, line) == len(line)


@dataclass
class Replay:
    """What a journal says: the last acknowledged state, the operation in flight, what the worker complained of."""

    state: State
    in_flight: Operation | None = None
    acknowledged: Counter[str] = field(default_factory=Counter)
    """Operations by kind."""
    violations: list[str] = field(default_factory=list)

    def candidates(self) -> list[State]:
        """States that the tree may show: before the operation in flight, or after it. Nothing in between."""
        return [self.state] if self.in_flight is None else [self.state, apply(self.state, self.in_flight)]


def replay(path: Path, start: State | None = None) -> Replay:
    """Apply the acknowledged operations of a journal to `start`."""
    result = Replay(start if start is not None else empty_state())
    if not path.exists():
        return result
    for line in path.read_bytes().splitlines():
        event = json.loads(line)
        if "begin" in event:
            result.in_flight = event["begin"]
        elif "ack" in event:
            assert result.in_flight is not None, "acknowledged without a beginning"
            result.state = apply(result.state, result.in_flight)
            result.acknowledged[result.in_flight["kind"]] += 1
            result.in_flight = None
        else:
            result.violations.append(event["violation"])
    return result
