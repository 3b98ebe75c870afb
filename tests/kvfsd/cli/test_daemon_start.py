"""What a service manager gives a daemon, and the units that ask for it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from kvfsd.cli.activation import inherited

UNITS = Path(__file__).parents[3] / "systemd"


def run_with_descriptor_3(passed: socket.socket, script: str, **environment: str) -> str:
    """Run `script` in a child whose descriptor 3 is `passed` and whose $LISTEN_PID is its own."""
    shell = 'LISTEN_PID=$$ exec python3 -c "$0" 3<&' + str(passed.fileno())
    done = subprocess.run(
        ["bash", "-c", shell, script],
        pass_fds=[passed.fileno()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr.splitlines()[-1] if done.stderr else done.stdout


SCRIPT = """
from kvfsd.cli.activation import inherited
import os
print([one.getsockname() for one in inherited()], sorted(one for one in os.environ if one.startswith("LISTEN")))
"""


def test_a_passed_socket_is_taken_once(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        said = run_with_descriptor_3(listener, SCRIPT, LISTEN_FDS="1", LISTEN_FDNAMES="x")
    assert said.strip() == f"['{tmp_path}/s'] []"


def test_what_is_no_listening_unix_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "no listening unix stream socket" in run_with_descriptor_3(other, SCRIPT, LISTEN_FDS="1")


def test_variables_of_another_process_are_passed_over() -> None:
    assert inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert inherited({}) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    names = []
    for unit in sorted(UNITS.iterdir()):
        if unit.suffix in (".service", ".socket"):
            text = re.sub(r"^(ExecStart|ExecStopPost)=(-?)\S+", r"\1=\2/bin/true", unit.read_text(), flags=re.MULTILINE)
            text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)
            copy = tmp_path / unit.name.replace("@", "@blue")
            copy.write_text(text)
            names.append(str(copy))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *names],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "kvfs" in line]
    assert not ours, done.stderr
    assert len(names) == 3
