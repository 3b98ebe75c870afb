"""Entry points of the installed commands `kvfs`, `mount.kvfs` and `kvfsd`."""

from __future__ import annotations

from kvfsd.cli.app import main, mount_helper
from kvfsd.cli.daemon_app import main as daemon

__all__ = ["daemon", "main", "mount_helper"]

if __name__ == "__main__":
    raise SystemExit(main())
