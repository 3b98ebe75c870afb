import pytest

from tests.kvfs_tools.pools import Kvfsctl, some_files


@pytest.fixture
def kvfsctl(tmp_path, capsys, monkeypatch) -> Kvfsctl:
    for variable, name in (("XDG_RUNTIME_DIR", "run"), ("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.delenv("KVFS_DEBUG", raising=False)
    return Kvfsctl(tmp_path, capsys)


@pytest.fixture
def filled(kvfsctl) -> Kvfsctl:
    kvfsctl.create()
    kvfsctl.fill(some_files)
    return kvfsctl
