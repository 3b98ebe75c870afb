"""Real forks of a dummy mount, run by a fresh interpreter: a fork of the test process would carry its threads along."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from kvfs.errors import ConfigError
from kvfsd.cli import background
from kvfsd.cli.program import describe

def serve(readiness):
    {body}

try:
    background.run_in_background(serve, Path(sys.argv[1]), print, deadline_ms={deadline_ms})
except Exception as error:
    print("failed:", type(error).__name__, describe(error))
else:
    print("returned")
"""


def run(log: Path, body: str, deadline_ms: int = 20_000) -> str:
    text = PROGRAM.format(body=body.replace("\n", "\n    "), deadline_ms=deadline_ms)
    done = subprocess.run(
        [sys.executable, "-c", text, str(log)], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout + done.stderr


def test_the_parent_returns_when_the_child_is_ready_and_the_child_goes_on(tmp_path):
    done = tmp_path / "done"
    body = f"""
readiness.note("keys are in K")
print("this goes to the log")
readiness.ready()
while not os.path.exists({str(done)!r} + ".go"):
    time.sleep(0.01)
Path({str(done)!r}).write_text(str(os.getsid(0) == os.getpid()) + os.getcwd())
"""
    assert run(tmp_path / "log", body) == "keys are in K\nreturned\n"
    (tmp_path / "done.go").touch()
    for _ in range(1000):
        if done.exists() and done.read_text():
            break
        subprocess.run(["sleep", "0.02"], check=True)
    assert done.read_text() == "True/"
    assert (tmp_path / "log").read_text() == "this goes to the log\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_an_error_before_ready_is_the_callers_one_line(tmp_path):
    assert run(tmp_path / "log", 'raise ConfigError("no tenant blue; make it")') == (
        "failed: KvfsError no tenant blue; make it\n"
    )
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_bug_leaves_its_traceback_in_the_log(tmp_path):
    assert "internal error: ZeroDivisionError" in run(tmp_path / "log", "1 / 0")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_child_that_dies_silently_is_noticed(tmp_path):
    output = run(tmp_path / "log", "os._exit(3)")
    assert "died before it was ready" in output
    assert str(tmp_path / "log") in output


def test_a_child_that_is_never_ready_is_given_up_and_ended(tmp_path):
    pid_file = tmp_path / "pid"
    output = run(tmp_path / "log", f"Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)", 1500)
    assert "not ready in time" in output
    pid = int(pid_file.read_text())
    for _ in range(1000):
        if not os.path.exists(f"/proc/{pid}"):
            return
        subprocess.run(["sleep", "0.02"], check=True)
    raise AssertionError(f"process {pid} was left behind")


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    assert f"cannot write the log {tmp_path}/none/log" in run(tmp_path / "none" / "log", "pass")


def test_a_long_log_is_put_aside(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate((8 << 20) + 1)
    run(log, "readiness.ready()")
    assert log.stat().st_size == 0
    assert (tmp_path / "log.1").stat().st_size == (8 << 20) + 1
