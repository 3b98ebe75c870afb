"""Entry points of the installed commands `kvfs` and `mount.kvfs`."""

from __future__ import annotations

from kvfsd.cli.app import main, mount_helper

__all__ = ["main", "mount_helper"]

if __name__ == "__main__":
    raise SystemExit(main())
