"""A pool of a million objects, and a flat directory of a million names: time to mount, memory, rates.

    python tests/bench/scale.py [--objects 1000000] [--flat 1000000] [--through mount] [--json FILE]

Small objects in 4,096 directories, and a flat directory of empty ones, are made through the service in one process
(`--through service`, the default: minutes) or by closes of several client processes on a mount (`--through mount`:
half an hour). Then the pool is mounted: the time until the first call is answered, memory of the serving process,
lookups that hit and that miss, a listing of the flat directory (each listed name pins a lookup until the kernel
forgets it), memory again. Bars: 2 s, 400 MB, 100 bytes per listed name (from 500,000 names on: the growth includes the
catalog's page cache, which is bounded).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import mountlib
from tests.bench.lookups import miss_lookups_per_s, rates_of_clients
from tests.bench.systems import drop_caches, memory_bytes

DIRECTORIES = 4096
BARS = {"mount_s": 2.0, "rss_bytes_max": 400e6, "pinned_bytes_per_name": 100.0}
"""At most, from the issue that asked for this."""
NAMES_FOR_PINNED_BAR = 500_000
OBJECT_BYTES = 96
TENANT = "engine"
BUILD_LIMIT_S = 4 * 3600.0
ROOT = Path(__file__).resolve().parents[2]


def object_path(number: int) -> str:
    """Path of an object: a hash-like name in one of DIRECTORIES directories."""
    digest = f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 & (1 << 128) - 1:032x}"
    return f"{digest[:3]}/{digest}.bin"


def _build(root: str, client: int, clients: int, count: int, flat: bool) -> float:
    """One client's share of `count` objects or flat names -> names per second."""
    started, made = time.perf_counter(), 0
    for number in range(client, count, clients):
        path = f"{root}/flat/{number:064x}.bin" if flat else f"{root}/{object_path(number)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        if not flat:
            os.write(descriptor, number.to_bytes(8, "little") * (OBJECT_BYTES // 8))
        os.close(descriptor)
        made += 1
    return made / (time.perf_counter() - started)


def build_through_service(pool: mountlib.PoolFixture, objects: int, flat: int) -> dict[str, float]:
    """Make everything in a process of its own -> creates per second."""
    words = [str(pool.pool), str(pool.kek), str(objects), str(flat)]
    command = [sys.executable, "-m", "tests.bench.fill_pool", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, timeout=BUILD_LIMIT_S)
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def build_through_mount(root: Path, objects: int, flat: int, clients: int) -> dict[str, float]:
    """Make everything -> creates per second."""
    for number in range(DIRECTORIES if objects else 0):
        (root / f"{number:03x}").mkdir(exist_ok=True)
    (root / "flat").mkdir(exist_ok=True)
    rates = {}
    for label, count in (("object_creates_per_s", objects), ("flat_creates_per_s", flat)):
        is_flat = label.startswith("flat")
        rates[label] = rates_of_clients(clients, _build, str(root), clients, count, is_flat) if count else 0.0
        print(f"{label}: {rates[label]:.0f}", file=sys.stderr, flush=True)
    return rates


def hits_per_s(root: Path, objects: int, count: int = 20_000) -> float:
    """Stat of random objects, each a cold lookup of two names."""
    rng = random.Random(1)
    paths = [f"{root}/{object_path(rng.randrange(objects))}" for _ in range(count)]
    started = time.perf_counter()
    for path in paths:
        os.stat(path)
    return count / (time.perf_counter() - started)


def list_flat(root: Path) -> tuple[int, float]:
    """(names, seconds) of one listing, in bounded memory on this side as well."""
    started, names = time.perf_counter(), 0
    with os.scandir(root / "flat") as entries:
        for _ in entries:
            names += 1
    return names, time.perf_counter() - started


def measure(mount: mountlib.Mount, objects: int, flat: int) -> dict[str, float]:
    """Everything after the build, on a freshly started mount."""
    if mount.alive():
        mount.stop()
    drop_caches()
    started = time.perf_counter()
    mount.start()
    root, pid = mount.mountpoint, mount.pid
    found = {"mount_s": time.perf_counter() - started, "rss_bytes_mounted": float(memory_bytes(pid))}
    if objects:
        found["hit_lookups_per_s"] = hits_per_s(root, objects)
    found["cold_miss_lookups_per_s"] = miss_lookups_per_s(str(root / "flat"), 1)
    before = memory_bytes(pid)
    names, seconds = list_flat(root)
    if names != flat:
        raise SystemExit(f"the listing shows {names} names of {flat}")
    found |= {"names_listed": float(names), "list_s": seconds, "listed_per_s": names / seconds if names else 0.0}
    found["pinned_bytes_per_name"] = max(0, memory_bytes(pid) - before) / max(1, names)
    found["rss_bytes_listed"] = float(memory_bytes(pid))
    found["miss_lookups_per_s"] = miss_lookups_per_s(str(root / "flat"), 1)
    drop_caches()
    time.sleep(2.0)  # the kernel's FORGETs arrive in batches
    found["rss_bytes_forgotten"] = float(memory_bytes(pid))
    found["rss_bytes_max"] = float(memory_bytes(pid, "VmHWM"))
    return found


def failures(measured: dict[str, float]) -> list[str]:
    """Bars that were missed."""
    few = measured["names_listed"] < NAMES_FOR_PINNED_BAR
    bars = {key: bar for key, bar in BARS.items() if not (few and key == "pinned_bytes_per_name")}
    return [f"{key} {measured[key]:.1f}, at most {bar}" for key, bar in bars.items() if measured[key] > bar]


def main() -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--flat", type=int, default=1_000_000)
    parser.add_argument("--through", choices=("service", "mount"), default="service", help="how the objects are made")
    parser.add_argument("--clients", type=int, default=2, help="client processes of --through mount")
    parser.add_argument("--directory", help="where the pool is made")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    mountlib.end_on_sigterm()
    with mountlib.mounted_pool(where=arguments.directory, limit_s=BUILD_LIMIT_S) as (pool, mount, _watchdog):
        if arguments.through == "mount":
            measured = build_through_mount(mount.mountpoint, arguments.objects, arguments.flat, arguments.clients)
        else:
            mount.stop()
            measured = build_through_service(pool, arguments.objects, arguments.flat)
        measured |= measure(mount, arguments.objects, arguments.flat)
    missed = failures(measured)
    for key, value in measured.items():
        print(f"{key:28} {value:16,.1f}")
    print(*(f"BELOW {line}" for line in missed), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
