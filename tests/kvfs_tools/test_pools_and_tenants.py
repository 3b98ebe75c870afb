import stat

import pytest


def test_a_pool_is_made_with_its_key_and_shown(kvfsctl):
    kvfsctl.create("--segment-size", "4M")
    kek = kvfsctl.base / "pool.kek"
    assert stat.S_IMODE(kek.stat().st_mode) == 0o600
    info = kvfsctl.json("pool", "info", kvfsctl.pool)
    assert info["kek"] == {"kind": "file", "name": str(kek)}
    (medium,) = info["media"]
    assert (medium["size_bytes"], medium["segment_bytes"], medium["state"]) == (64 << 20, 4 << 20, "active")
    assert medium["free_bytes"] == medium["free_segments"] * medium["segment_bytes"]
    assert [tenant["name"] for tenant in info["tenants"]] == ["blue"]
    table = kvfsctl.ok("pool", "info", kvfsctl.pool)
    assert info["uuid"] in table
    assert "64.0 MiB" in table


def test_media_replicas_and_key_directory_are_as_asked_for(kvfsctl):
    a, b = kvfsctl.base / "a.img", kvfsctl.base / "b.img"
    kvfsctl.create(
        *("--medium", f"{a},size=64M,weight=3,domain=rack1", "--medium", f"{b},size=32M,domain=rack2"),
        *("--replicas", "2", "--key-directory", str(kvfsctl.base / "slots")),
    )
    info = kvfsctl.json("pool", "info", kvfsctl.pool)
    assert info["replicas"] == 2
    assert info["key_directory"] == str(kvfsctl.base / "slots")
    assert [(one["path"], one["weight"], one["failure_domain"]) for one in info["media"]] == [
        (str(a), 3, "rack1"),
        (str(b), 1, "rack2"),
    ]


def test_a_pool_with_a_passphrase_needs_it(kvfsctl):
    secret = kvfsctl.base / "secret"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    wrong = kvfsctl.base / "wrong"
    wrong.write_text("another passphrase\n")
    wrong.chmod(0o600)
    kvfsctl.ok("pool", "create", kvfsctl.pool, "--size", "64M", "--passphrase-file", str(secret))
    assert kvfsctl.json("pool", "info", kvfsctl.pool)["kek"]["kind"] == "passphrase-file"
    assert "wrong" in kvfsctl.refused("pool", "info", kvfsctl.pool, "--passphrase-file", str(wrong))


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (("--size", "64M"), 1, "--kek FILE"),
        (("--kek", "k", "--size", "lots"), 1, "--size"),
        (("--kek", "k", "--size", "1M"), 1, "too small"),
        (("--kek", "k", "--size", "64M", "--medium", "x"), 2, "--size is for a pool without --medium"),
        (("--kek", "k", "--medium", "x,colour=red"), 1, "colour=red"),
        (("--kek", "k", "--medium", ",size=64M"), 1, "names no path"),
        (("--kek", "k", "--medium", "x,weight=²"), 1, "weight"),
        (("--kek", "k", "--size", "64M", "--replicas", "2"), 1, "2 replicas"),
        (("--kek", "k", "--size", "64M", "--replicas", "9"), 2, "--replicas"),
        (("--kek", "k", "--passphrase-file", "p"), 1, "kek and passphrase_file"),
        (("--kek", "k", "--size", "64M", "--tenant", "a/b"), 1, "a/b"),
    ],
)
def test_a_pool_that_cannot_be_made_leaves_nothing(kvfsctl, monkeypatch, options, status, says):
    monkeypatch.chdir(kvfsctl.base)
    before = sorted(kvfsctl.base.iterdir())
    assert says in kvfsctl.refused("pool", "create", kvfsctl.pool, *options, status=status)
    assert sorted(kvfsctl.base.iterdir()) == before


def test_nothing_is_overwritten(kvfsctl):
    kvfsctl.create()
    key = (kvfsctl.base / "pool.kek").read_bytes()
    assert "already" in kvfsctl.refused("pool", "create", kvfsctl.pool, "--kek", str(kvfsctl.base / "pool.kek"))
    assert (kvfsctl.base / "pool.kek").read_bytes() == key
    assert kvfsctl.json("tenant", "list", kvfsctl.pool)


def test_tenants_are_made_listed_changed_and_deleted(kvfsctl):
    kvfsctl.create()
    kvfsctl.ok("tenant", "create", kvfsctl.pool, "red", "--quota", "1.5G", "--quota-objects", "7", "--uid", "12")
    red = kvfsctl.json("tenant", "show", kvfsctl.pool, "red")
    assert (red["quota_bytes"], red["quota_objects"], red["used_bytes"]) == (3 << 29, 7, 0)
    assert [one["name"] for one in kvfsctl.json("tenant", "list", kvfsctl.pool)] == ["blue", "red"]
    changed = kvfsctl.json("tenant", "set", kvfsctl.pool, "red", "--quota", "2G")
    assert (changed["quota_bytes"], changed["quota_objects"]) == (2 << 30, 7)
    assert "1.5 GiB" not in kvfsctl.ok("tenant", "list", kvfsctl.pool)
    kvfsctl.ok("tenant", "delete", kvfsctl.pool, "red")
    assert "no tenant red" in kvfsctl.refused("tenant", "show", kvfsctl.pool, "red")


def test_tenant_refusals(filled):
    assert "exists already" in filled.refused("tenant", "create", filled.pool, "blue")
    assert "nothing to set" in filled.refused("tenant", "set", filled.pool, "blue", status=2)
    assert "no tenant red" in filled.refused("tenant", "set", filled.pool, "red", "--quota", "1G")
    assert "--quota" in filled.refused("tenant", "create", filled.pool, "red", "--quota", "many")
    assert "objects" in filled.refused("tenant", "delete", filled.pool, "blue")
    filled.ok("tenant", "delete", filled.pool, "blue", "--force")
    assert "no tenant" in filled.refused("ls", f"blue@{filled.pool}")


def test_no_pool_no_key_and_the_wrong_key_are_said(kvfsctl):
    kvfsctl.create()
    assert "no pool" in kvfsctl.refused("pool", "info", str(kvfsctl.base))
    other = kvfsctl.base / "other.kek"
    other.write_text("ab" * 32 + "\n")
    other.chmod(0o600)
    assert "other.kek is not the KEK" in kvfsctl.refused("tenant", "list", kvfsctl.pool, "--kek", str(other))
    other.chmod(0o644)
    assert "chmod 600" in kvfsctl.refused("tenant", "list", kvfsctl.pool, "--kek", str(other))
    (kvfsctl.base / "pool.kek").unlink()
    assert "pool.kek" in kvfsctl.refused("tenant", "create", kvfsctl.pool, "red")


def test_who_may_attach_is_set_listed_and_taken_back(kvfsctl):
    kvfsctl.create()
    out = kvfsctl.base / "blue.credential"
    assert kvfsctl.json("tenant", "show", kvfsctl.pool, "blue")["uids"] == []
    kvfsctl.ok("tenant", "set", kvfsctl.pool, "blue", "--uid", "1001", "--uid", "1000", "--gid", "50")
    kvfsctl.ok("tenant", "set", kvfsctl.pool, "blue", "--quota", "32M", "--gid", "51")
    kvfsctl.ok("tenant", "credential", kvfsctl.pool, "blue", "--out", str(out))
    shown = kvfsctl.json("tenant", "show", kvfsctl.pool, "blue")
    assert (shown["uids"], shown["gids"], shown["credentials"]) == ([1000, 1001], [51], 1)
    assert shown["quota_bytes"] == 32 << 20
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    secret = bytes.fromhex(out.read_text())
    assert len(secret) == 32
    catalog = b"".join(path.read_bytes() for path in (kvfsctl.base / "pool").glob("catalog.db*"))
    assert secret not in catalog, "only a digest is kept"
    assert "File exists" in kvfsctl.refused("tenant", "credential", kvfsctl.pool, "blue", "--out", str(out))
    missing = kvfsctl.base / "none.credential"
    kvfsctl.refused("tenant", "credential", kvfsctl.pool, "none", "--out", str(missing))
    assert not missing.exists()
    kvfsctl.ok("tenant", "set", kvfsctl.pool, "blue", "--uid", "none")
    kvfsctl.ok("tenant", "credential", kvfsctl.pool, "blue", "--revoke")
    shown = kvfsctl.json("tenant", "show", kvfsctl.pool, "blue")
    assert (shown["uids"], shown["gids"], shown["credentials"]) == ([], [51], 0)
    assert "2^32" in kvfsctl.refused("tenant", "set", kvfsctl.pool, "blue", "--uid", str(2**32 - 1))
