"""Key-encryption keys and the slot-key file: sources, refusals, damage of either copy, crashes between the copies."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfs.errors import ConfigError, ExistsError, FormatError, InvalidArgumentError, WrongKeyError
from kvfsd.crypto import kdf, kek, keyfile
from kvfsd.crypto.kek import Credential, Passphrase, RawKeyFile, location_warnings
from kvfsd.crypto.keyfile import SlotKeyFile

POOL = bytes(range(16))
OTHER_POOL = bytes(range(1, 17))


class SeededRandomness:
    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def token(self, length_bytes: int) -> bytes:
        return self._random.randbytes(length_bytes)


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch):
    """Passphrases of new files are stretched with 1 MiB instead of 128."""
    monkeypatch.setattr(keyfile, "Stretch", lambda salt, log2_n=10, r=8, p=1: kdf.Stretch(salt, log2_n, r, p))


@pytest.fixture
def raw(tmp_path) -> RawKeyFile:
    return RawKeyFile.create(tmp_path / "pool.kek", SeededRandomness(7))


def slot_file(directory: Path, pool: bytes = POOL, seed: int = 1) -> SlotKeyFile:
    return SlotKeyFile(directory, pool, SeededRandomness(seed))


# --- sources ---------------------------------------------------------------------------------------------------


def test_a_key_file_is_a_hex_line_only_its_owner_reads(raw):
    assert raw.path.stat().st_mode & 0o777 == 0o600
    assert bytes.fromhex(raw.path.read_text()) == raw.key(None) == SeededRandomness(7).token(32)


def test_an_existing_key_file_is_not_overwritten(raw):
    before = raw.path.read_bytes()
    with pytest.raises(ExistsError, match="exists already"):
        RawKeyFile.create(raw.path, SeededRandomness(8))
    assert raw.path.read_bytes() == before


def test_a_key_file_in_a_missing_directory_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        RawKeyFile.create(tmp_path / "missing" / "kek", SeededRandomness())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o620, 0o601, 0o777])
def test_a_key_file_open_to_others_is_refused(raw, mode):
    raw.path.chmod(mode)
    with pytest.raises(WrongKeyError, match=rf"mode {mode:04o} .* chmod 600"):
        raw.key(None)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_stricter_modes_are_fine(raw, mode):
    raw.path.chmod(mode)
    assert len(raw.key(None)) == 32


@pytest.mark.parametrize(
    "content",
    [b"", b"00" * 31, b"00" * 33, b"0g" * 32, b"00" * 32 + b"\n\n", b" " + b"00" * 32, b"00 " * 32, b"\xff" * 64],
)
def test_anything_but_one_hex_line_is_refused(raw, content):
    raw.path.write_bytes(content)
    with pytest.raises(WrongKeyError, match="64 hexadecimal digits"):
        raw.key(None)


def test_strange_files_are_refused_without_hanging(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "long").write_bytes(b"0" * 5000)
    (tmp_path / "long").chmod(0o600)
    for name, text in (("fifo", "regular"), ("long", "longer than"), ("missing", "No such file"), (".", "regular")):
        with pytest.raises(WrongKeyError, match=text):
            RawKeyFile(tmp_path / name).key(None)


def test_a_key_file_of_a_third_user_is_refused(raw, monkeypatch):
    status = list(raw.path.stat())
    status[4] = 4321
    monkeypatch.setattr(kek.os, "geteuid", lambda: 1234)
    monkeypatch.setattr(kek.os, "fstat", lambda _: os.stat_result(status))
    with pytest.raises(WrongKeyError, match="belongs to uid 4321"):
        raw.key(None)


def test_a_credential_is_a_key_file_in_the_credentials_directory(raw):
    raw.path.chmod(0o440)  # systemd's access list shows as group bits
    source = Credential("pool.kek", {"CREDENTIALS_DIRECTORY": str(raw.path.parent)})
    assert source.key(None) == SeededRandomness(7).token(32)
    with pytest.raises(WrongKeyError, match="CREDENTIALS_DIRECTORY is not set"):
        Credential("pool.kek", {}).key(None)
    for name in ("", "../pool.kek", "."):
        with pytest.raises(ConfigError, match="plain name"):
            Credential(name, {})


STRETCH = kdf.Stretch(bytes(16), log2_n=10)


def test_a_passphrase_is_its_first_line_from_wherever_it_comes(tmp_path):
    path = tmp_path / "passphrase"
    path.write_bytes(b"correct horse\r\nsecond line\n")
    path.chmod(0o600)
    reader, writer = os.pipe()
    os.write(writer, b"correct horse\nrest")
    asked = []
    prompt = Passphrase(lambda: asked.append(1) or b"correct horse")
    keys = {
        Passphrase.from_file(path).key(STRETCH),
        Passphrase.from_descriptor(reader).key(STRETCH),
        prompt.key(STRETCH),
        prompt.key(STRETCH),
    }
    os.close(reader)
    os.close(writer)
    assert keys == {STRETCH.key(b"correct horse")}
    assert asked == [1]


def test_poor_passphrases_are_refused(tmp_path):
    with pytest.raises(WrongKeyError, match="at least 8 bytes, have 7"):
        Passphrase(lambda: b"1234567").key(STRETCH)
    path = tmp_path / "passphrase"
    path.write_bytes(b"correct horse")
    path.chmod(0o644)
    with pytest.raises(WrongKeyError, match="mode 0644"):
        Passphrase.from_file(path).key(STRETCH)
    with pytest.raises(WrongKeyError, match="descriptor 999"):
        Passphrase.from_descriptor(999).key(STRETCH)


# --- the file --------------------------------------------------------------------------------------------------


def test_create_and_load(tmp_path, raw):
    file = slot_file(tmp_path)
    slot_key = file.create(raw)
    assert [path.name for path in file.paths] == [
        f"{uuid.UUID(bytes=POOL)}.slots",
        f"{uuid.UUID(bytes=POOL)}.slots.bak",
    ]
    assert file.paths[0].read_bytes() == file.paths[1].read_bytes()
    assert {path.stat().st_mode & 0o777 for path in file.paths} == {0o600}
    again = slot_file(tmp_path)
    assert again.load(raw).candidates == (slot_key,)
    assert again.warnings == []
    assert slot_key not in file.paths[0].read_bytes()
    with pytest.raises(ExistsError):
        slot_file(tmp_path).create(raw)


def test_a_passphrase_pool_keeps_its_scrypt_parameters(tmp_path):
    slot_key = slot_file(tmp_path).create(Passphrase(lambda: b"correct horse"))
    assert slot_file(tmp_path).load(Passphrase(lambda: b"correct horse")).current == slot_key
    with pytest.raises(WrongKeyError, match="passphrase is not the KEK"):
        slot_file(tmp_path).load(Passphrase(lambda: b"wrong horse!"))


def test_refusals_say_which_thing_is_wrong(tmp_path, raw):
    file = slot_file(tmp_path)
    with pytest.raises(WrongKeyError, match=r"missing.*cannot be opened without its key file"):
        file.load(raw)
    file.create(raw)
    (tmp_path / "other").mkdir()
    other = RawKeyFile.create(tmp_path / "other" / "kek", SeededRandomness(9))
    with pytest.raises(WrongKeyError, match="is not the KEK"):
        slot_file(tmp_path).load(other)
    with pytest.raises(WrongKeyError, match="made with a raw key, not with a passphrase"):
        slot_file(tmp_path).load(Passphrase(lambda: b"correct horse"))
    stranger = slot_file(tmp_path, OTHER_POOL)
    for mine, theirs in zip(file.paths, stranger.paths, strict=True):
        shutil.copy(mine, theirs)
    with pytest.raises(WrongKeyError, match=f"belongs to pool {uuid.UUID(bytes=POOL)}"):
        stranger.load(raw)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "grown", "directory"])
def test_one_damaged_copy_is_repaired_with_a_warning(tmp_path, raw, which, damage):
    slot_key = slot_file(tmp_path).create(raw)
    file = slot_file(tmp_path, seed=2)
    path, good = file.paths[which], file.paths[which].read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        broken = {"flip": good[:50] + b"\xff" + good[51:], "cut": good[:-1], "empty": b"", "grown": good + b"x"}[damage]
        path.write_bytes(broken)
    careful = slot_file(tmp_path)
    assert careful.load(raw, repair=False).current == slot_key
    assert "left as it is" in careful.warnings[0]
    assert file.load(raw).current == slot_key
    (warning,) = file.warnings
    assert str(path) in warning
    if damage == "directory":
        assert "failed" in warning
    else:
        assert "written again" in warning
        assert path.read_bytes() == good


def test_both_copies_damaged_is_damage_not_a_wrong_key(tmp_path, raw):
    file = slot_file(tmp_path)
    file.create(raw)
    for path in file.paths:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(FormatError, match="no copy of the key file is whole"):
        slot_file(tmp_path).load(raw)


def test_a_forged_field_with_a_right_checksum_does_not_open(tmp_path, raw):
    """The checksum needs no key; what is in front of the wrapped key is bound to it all the same."""
    file = slot_file(tmp_path)
    file.create(raw)
    content = file.paths[0].read_bytes()
    copy = keyfile.parse(content, "test")
    values = list(keyfile.LAYOUT.unpack(content, "test"))
    values[7] = copy.sequence + 1
    for path in file.paths:
        path.write_bytes(keyfile.LAYOUT.pack(*values))
    with pytest.raises(FormatError, match="tampered"):
        slot_file(tmp_path).load(raw)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, keyfile.LAYOUT.size_bytes * 8 - 1))
def test_any_flipped_bit_is_a_format_error(tmp_path_factory, bit):
    directory = tmp_path_factory.mktemp("slots")
    file = slot_file(directory)
    file.create(RawKeyFile.create(directory / "kek", SeededRandomness(7)))
    content = bytearray(file.paths[0].read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError, match="here"):
        keyfile.parse(bytes(content), "here")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes_are_a_format_error(content):
    with pytest.raises(FormatError, match="here"):
        keyfile.parse(content, "here")


def test_hostile_fields_are_refused_before_any_work(tmp_path):
    file = slot_file(tmp_path)
    file.create(Passphrase(lambda: b"correct horse"))
    values = list(keyfile.LAYOUT.unpack(file.paths[0].read_bytes(), "test"))
    for index, value, text in (
        (3, 40, "scrypt"),
        (4, 60000, "scrypt"),
        (1, 2, "version"),
        (2, 9, "kind 9"),
        (12, b"x" * 16, "reserved"),
    ):
        forged = values[:]
        forged[index] = value
        with pytest.raises(FormatError, match=text):
            keyfile.parse(keyfile.LAYOUT.pack(*forged), "here")


# --- replacing -------------------------------------------------------------------------------------------------


def test_replacing_the_slot_key(tmp_path, raw):
    file = slot_file(tmp_path)
    old = file.create(raw)
    new = b"n" * 32
    file.propose(new)
    assert slot_file(tmp_path).load(raw).candidates == (old, new)
    file.settle(new)
    for path in file.paths:
        path.with_suffix(".other").write_bytes(path.read_bytes())
    assert slot_file(tmp_path).load(raw).candidates == (new,)
    with pytest.raises(InvalidArgumentError, match="not proposed"):
        file.settle(old)


def test_settling_on_the_old_key_drops_the_proposal(tmp_path, raw):
    file = slot_file(tmp_path)
    old = file.create(raw)
    file.propose(b"n" * 32)
    again = slot_file(tmp_path, seed=3)
    again.load(raw)
    again.settle(old)
    assert slot_file(tmp_path).load(raw).candidates == (old,)


@pytest.mark.parametrize("bad", [bytes(32), b"short"])
def test_a_proposal_is_a_key(tmp_path, raw, bad):
    file = slot_file(tmp_path)
    file.create(raw)
    with pytest.raises(InvalidArgumentError, match="slot key"):
        file.propose(bad)


def test_an_unopened_file_is_not_replaced(tmp_path):
    with pytest.raises(InvalidArgumentError, match="not open"):
        slot_file(tmp_path).propose(b"n" * 32)


class CrashError(Exception):
    """What the test raises in place of a system call."""


@pytest.mark.parametrize("step", range(1, 40))
def test_a_crash_at_any_call_of_a_replacement_leaves_old_or_new(tmp_path, raw, monkeypatch, step):
    """The n-th file operation of propose and settle does not happen, nor any after it; then the pool is opened."""
    file = slot_file(tmp_path)
    old, new = file.create(raw), b"n" * 32
    count = 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count >= step:
                raise CrashError(real.__name__)
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "rename", "fsync", "pwrite"):
            patch.setattr(keyfile.os, name, counted(getattr(os, name)))
        try:
            file.propose(new)
            file.settle(new)
        except CrashError:
            pass
    again = slot_file(tmp_path, seed=5)
    candidates = again.load(raw).candidates
    assert candidates in ((old,), (old, new), (new,))
    assert again.paths[0].read_bytes() == again.paths[1].read_bytes()
    if count < step:
        assert candidates == (new,)
        assert again.warnings == []
    again.settle(candidates[-1])
    assert slot_file(tmp_path).load(raw).candidates == (candidates[-1],)


def test_the_replacement_has_fewer_calls_than_the_crash_test_tries(tmp_path, raw, monkeypatch):
    file = slot_file(tmp_path)
    file.create(raw)
    calls = []

    def counted(real):
        return lambda *arguments, **options: calls.append(real) or real(*arguments, **options)

    for name in ("open", "rename", "fsync", "pwrite"):
        monkeypatch.setattr(keyfile.os, name, counted(getattr(os, name)))
    file.propose(b"n" * 32)
    file.settle(b"n" * 32)
    assert 20 < len(calls) < 39


def test_a_copy_is_on_stable_storage_before_the_next_one_is_touched(tmp_path, raw, monkeypatch):
    """Content before name, name before the next step: per copy one fsync, one rename, one fsync of the directory."""
    file = slot_file(tmp_path)
    file.create(raw)
    calls = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor):
        status = os.fstat(descriptor)
        what = "directory" if stat.S_ISDIR(status.st_mode) else "erased" if status.st_nlink == 0 else "content"
        calls.append(what)
        fsync(descriptor)

    monkeypatch.setattr(keyfile.os, "fsync", noted_fsync)
    monkeypatch.setattr(keyfile.os, "rename", lambda old, new: calls.append("rename") or rename(old, new))
    file.propose(b"n" * 32)
    assert calls == ["content", "rename", "directory", "erased"] * 2


def test_an_error_while_replacing_is_told_and_the_old_key_stays(tmp_path, raw, monkeypatch):
    file = slot_file(tmp_path)
    old = file.create(raw)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(keyfile.os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left"):
            file.propose(b"n" * 32)
    assert slot_file(tmp_path).load(raw).candidates == (old,)
    file.propose(b"m" * 32)
    assert slot_file(tmp_path).load(raw).candidates == (old, b"m" * 32)


def test_replaced_content_is_overwritten_but_not_somebodys_hard_link(tmp_path, raw):
    file = slot_file(tmp_path)
    file.create(raw)
    before = file.paths[0].read_bytes()
    os.link(file.paths[1], tmp_path / "backup")
    held = os.open(file.paths[0], os.O_RDONLY)
    file.propose(b"n" * 32)
    assert os.pread(held, 4096, 0) == bytes(len(before))
    os.close(held)
    assert (tmp_path / "backup").read_bytes() == before


def test_remove_erases_both(tmp_path, raw):
    file = slot_file(tmp_path)
    file.create(raw)
    file.remove()
    file.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["pool.kek"]


# --- where it lies ---------------------------------------------------------------------------------------------


def test_warnings_about_where_keys_lie(tmp_path):
    state, media, safe = tmp_path / "state", tmp_path / "media", tmp_path / "safe"
    for directory in (state, media, safe):
        directory.mkdir()
    medium = media / "one.img"

    def warn(secret: Path) -> list[str]:
        return location_warnings([secret], state, [medium, Path("/dev/null")])

    assert warn(safe / "kek") == []
    assert "state directory" in warn(state / "deep" / "kek")[0]
    assert "beside a medium" in warn(media / "kek")[0]
    (safe / "link").symlink_to(media)
    assert "beside a medium" in warn(safe / "link" / "kek")[0]
    assert len(location_warnings([state / "a", media / "b", safe / "c"], state, [medium])) == 2
