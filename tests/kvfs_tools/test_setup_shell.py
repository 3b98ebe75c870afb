"""tools/setup.sh: what it finds missing, what it asks apt for, and what it says when it may not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.style.repository import ROOT

NEEDED = {"bash", "dirname", "cat", "id", "env"}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory to be PATH: the shell's own tools and nothing else."""
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return tmp_path


def stub(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def shell(call: str, path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", "-u", "-c", f"source {ROOT}/tools/setup.sh; {call}"],
        env={"PATH": path, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bare_machine_lacks_everything_that_is_needed(bare: Path) -> None:
    missing = shell("find_python() { return 1; }; missing_packages", str(bare)).stdout.split()
    for package in ("gcc", "pkg-config", "libfuse3-dev", "fuse3", "python3", "python3-venv", "python3-dev"):
        assert package in missing


def test_this_machine_lacks_nothing() -> None:
    assert shell("missing_packages", os.environ["PATH"], HOME=os.environ.get("HOME", "")).stdout == ""


def test_apt_is_asked_for_what_is_missing(bare: Path) -> None:
    stub(bare, "apt-get", f'echo "$@" >> {bare}/asked')
    stub(bare, "id", "echo 0")
    done = shell('install_packages "gcc fuse3 "', str(bare))
    assert done.returncode == 0
    assert "installing missing system packages: gcc fuse3" in done.stdout
    update, install = (bare / "asked").read_text().splitlines()
    assert update.endswith("update")
    assert install.split()[-3:] == ["install", "gcc", "fuse3"]


def test_sudo_is_used_without_a_question_when_nobody_can_answer(bare: Path) -> None:
    stub(bare, "apt-get", "exit 0")
    stub(bare, "id", "echo 1000")
    stub(bare, "sudo", f'printf "%s\\n" "$*" >> {bare}/asked; shift; exec "$@"')
    assert shell('install_packages "gcc "', str(bare)).returncode == 0
    assert all(line.startswith("-n env ") for line in (bare / "asked").read_text().splitlines())


def test_without_root_or_sudo_it_says_what_to_do(bare: Path) -> None:
    stub(bare, "apt-get", "exit 0")
    stub(bare, "id", "echo 1000")
    done = shell('install_packages "gcc "', str(bare))
    assert done.returncode == 1
    assert "error: missing packages need root: apt-get install gcc" in done.stderr


def test_another_distribution_is_told_the_names(bare: Path) -> None:
    done = shell('install_packages "gcc fuse3 "', str(bare))
    assert done.returncode == 1
    assert "lacks: gcc fuse3" in done.stderr


def test_failed_installation_ends_the_run(bare: Path) -> None:
    stub(bare, "apt-get", "exit 100")
    stub(bare, "id", "echo 0")
    done = shell('install_packages "gcc "; echo went on', str(bare))
    assert done.returncode == 1
    assert "could not install: gcc" in done.stderr
    assert "went on" not in done.stdout


@pytest.mark.parametrize(("body", "works"), [("exit 1", False), ('exec {python} "$@"', True)])
def test_interpreter_is_tried_not_believed(bare: Path, body: str, works: bool) -> None:
    found = shell("find_python", os.environ["PATH"], HOME=os.environ.get("HOME", "")).stdout.strip()
    stub(bare, "python3", body.format(python=found))
    done = shell("find_python", str(bare), KVFS_PYTHON="python3")
    assert (done.returncode == 0) is works
    if works:
        assert done.stdout.strip() == found
