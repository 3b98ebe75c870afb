import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import ConfigError
from kvfsd.cli.options import MountOptions, Source, parse_options, parse_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("pool", Source("default", "pool")),
        ("blue@/p/o@ol", Source("blue", "/p/o@ol")),
        ("./a@b", Source("default", "./a@b")),
        ("/p/a@b", Source("default", "/p/a@b")),
        ("blue@/run/kvfsd.sock", Source("blue", "/run/kvfsd.sock")),
    ],
)
def test_a_source_is_a_tenant_and_a_pool(text, source):
    assert parse_source(text) == source


@pytest.mark.parametrize("text", ["", "@pool", "blue@", "x" * 65 + "@pool"])
def test_a_bad_source_is_refused(text):
    with pytest.raises(ConfigError):
        parse_source(text)


def test_all_options_together():
    assert parse_options(["ro,allow_other", "kek=/k/a,verify_at_open_max=2M,quota=1G,quota_objects=10,noexec"]) == (
        MountOptions(
            read_only=True,
            allow_other=True,
            kek="/k/a",
            verify_at_open_max_bytes=2 << 20,
            quota_bytes=1 << 30,
            quota_objects=10,
            kernel=("noexec",),
        )
    )


def test_a_backslash_takes_a_comma_as_it_is():
    assert parse_options([r"kek=/k\,a\\b,ro"]) == MountOptions(kek="/k,a\\b", read_only=True)


def test_what_is_meant_for_mount_and_systemd_is_passed_over():
    line = "rw,auto,noauto,user,_netdev,nofail,relatime,x-systemd.requires=a.service,X-mount.mkdir,comment=x,,defaults"
    assert parse_options([line]) == MountOptions()


def test_the_last_of_two_counts():
    assert parse_options(["quota=1G,quota=2G,ro,rw"]) == MountOptions(quota_bytes=2 << 30)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frobnicate", "unknown mount option 'frobnicate'"),
        ("allow_othr", "allow_other"),
        ("ro=1", "takes no value"),
        ("kek", "needs a value"),
        ("kek=", "needs a value"),
        ("quota=lots", "mount option quota"),
        ("quota_objects=-1", "mount option quota_objects"),
        ("verify_at_open_max=1T", "at most"),
        ("remount", "unmount and mount"),
        ("sync", "fsync"),
        ("kek=a,credential=b", "kek and credential"),
    ],
)
def test_wrong_options_are_named(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_options([text])


def test_sloppy_mounting_passes_over_unknown_options_only():
    assert parse_options(["frobnicate,ro"], tolerant=True) == MountOptions(read_only=True)
    with pytest.raises(ConfigError):
        parse_options(["quota=lots"], tolerant=True)


@given(st.lists(st.text(), max_size=3))
def test_any_text_gives_options_or_a_config_error(lists):
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_options(lists), MountOptions)


@given(st.text())
def test_any_text_gives_a_source_or_a_config_error(text):
    try:
        source = parse_source(text)
    except ConfigError:
        return
    assert source.tenant
    assert source.pool
