"""The quickstart as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path


def succeeds_and_leaves_nothing(directory: Path, *options: str, limit_s: float) -> str:
    """Run it with its temporary files in `directory` -> what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "kvfs_tools.quickstart", *options],
        env=dict(os.environ, TMPDIR=str(directory), COLUMNS="120"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sealed bytes found in plaintext: 0" in done.stdout
    assert list(directory.iterdir()) == []
    return done.stdout
