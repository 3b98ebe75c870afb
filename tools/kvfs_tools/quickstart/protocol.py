"""vLLM's file protocol of a KV cache tier: names, probe, lookups, stores and loads, call by call.

What OffloadingConnector's `fs` tier does to files (docs/ENGINES.md), written anew so that the quickstart can measure it
without an engine: no fsync, one write per block, commit by rename, a short write or read is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

PROBE_BYTES = 4096


class FileTier:
    """One engine's view of a directory of KV blocks. Methods are for any number of threads, after `start`."""

    def __init__(self, root: Path, model: str, block_bytes: int) -> None:
        config = {"model_name": model, "block_bytes": block_bytes, "inference_engine": "kvfs quickstart"}
        self._config = json.dumps(config, sort_keys=True)
        sha12 = hashlib.sha256(self._config.encode()).hexdigest()[:12]
        self._base = f"{root}/{model.replace('/', '_')}_{sha12}"
        self._thread = threading.local()
        self.direct_io = 0
        """O_DIRECT if the probe succeeded, else 0."""

    def start(self) -> None:
        """Write the configuration file once, and probe for O_DIRECT with a 4 KiB file."""
        os.makedirs(self._base, exist_ok=True)
        path = f"{self._base}/config.json"
        if not os.path.exists(path):
            with open(path, "w") as file:
                file.write(self._config)
        self.direct_io = self._probe()

    def _probe(self) -> int:
        path = f"{self._base}/.o_direct_probe{self._suffix()}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_DIRECT, 0o644)
            try:
                os.write(descriptor, mmap.mmap(-1, PROBE_BYTES))
            finally:
                os.close(descriptor)
        except OSError:
            return 0
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)
        return os.O_DIRECT

    def _suffix(self) -> str:
        if not hasattr(self._thread, "suffix"):
            self._thread.suffix = f"_{random.getrandbits(63)}.tmp"
        return str(self._thread.suffix)

    def path(self, digest: bytes) -> str:
        """`<model>_<sha12>_r0/<hhh>/<hh>_g0/<hash>.bin`."""
        name = digest.hex()
        return f"{self._base}_r0/{name[:3]}/{name[3:5]}_g0/{name}.bin"

    def lookup(self, digests: Sequence[bytes]) -> list[bool]:
        """One access(2) per block, in chain order, before any load."""
        return [os.access(self.path(digest), os.F_OK) for digest in digests]

    def store(self, digest: bytes, block: memoryview) -> None:
        """Write one block under a temporary name and rename it; OSError if any byte is not taken."""
        path = self.path(digest)
        if os.path.exists(path):
            return
        temporary = path + self._suffix()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_TRUNC | self.direct_io
        try:
            descriptor = os.open(temporary, flags, 0o644)
            try:
                written = os.write(descriptor, block)
                if written < len(block):
                    raise OSError(f"short write of {path}: {written} of {len(block)} bytes")
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise

    def load(self, digest: bytes, block: memoryview) -> None:
        """Read one block with one readv; OSError if it is absent or short."""
        path = self.path(digest)
        descriptor = os.open(path, os.O_RDONLY | self.direct_io)
        try:
            count = os.readv(descriptor, [block])
        finally:
            os.close(descriptor)
        if count < len(block):
            raise OSError(f"short read of {path}: {count} of {len(block)} bytes")
