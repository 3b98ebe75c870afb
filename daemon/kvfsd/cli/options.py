"""What a mount command line means: SOURCE and `-o` options, parsed once into frozen values (pure)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from kvfs import limits
from kvfs.errors import ConfigError
from kvfsd.units import parse_size_bytes

DEFAULT_TENANT: Final = "default"


@dataclass(frozen=True, slots=True)
class Source:
    """What to mount: a tenant of a pool; `pool` empty = the user's private pool, a socket = a daemon's pool."""

    tenant: str = DEFAULT_TENANT
    pool: str = ""


@dataclass(frozen=True, slots=True)
class KekOptions:
    """Where the pool's key-encryption key comes from; at most one is set, none = the key file kvfs made for it."""

    kek: str = ""
    """A key file."""
    passphrase_file: str = ""
    credential: str = ""
    """Name of a systemd credential ($CREDENTIALS_DIRECTORY/NAME)."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """All `-o` options of a mount."""

    read_only: bool = False
    allow_other: bool = False
    kek: str = ""
    passphrase_file: str = ""
    credential: str = ""
    verify_at_open_max_bytes: int = limits.VERIFY_AT_OPEN_MAX_BYTES
    quota_bytes: int | None = None
    """New hard quota of the tenant; None leaves it."""
    quota_objects: int | None = None
    eviction: bool | None = None
    """Whether the tenant's objects make room at its quota and in a full pool; None leaves it."""
    layout_guard: bool | None = None
    """Whether another config.json fences the blocks that were stored before it; None leaves it."""
    kernel: tuple[str, ...] = ()
    """Options that the kernel itself carries out, passed on as they are."""

    @property
    def kek_options(self) -> KekOptions:
        """The key source among them."""
        return KekOptions(self.kek, self.passphrase_file, self.credential)


def parse_source(text: str) -> Source:
    """SOURCE: `TENANT@POOL` or `POOL`, a directory or a socket. One with an @ in its first part is written `./a@b`."""
    tenant, at, pool = text.partition("@")
    if not at or "/" in tenant:
        tenant, pool = DEFAULT_TENANT, text
    if not pool or not tenant:
        raise ConfigError(f"SOURCE {text!r} is neither TENANT@POOL nor POOL")
    if len(tenant.encode(errors="surrogateescape")) > limits.TENANT_NAME_MAX_BYTES:
        raise ConfigError(f"the tenant's name is over {limits.TENANT_NAME_MAX_BYTES} bytes")
    return Source(tenant, pool)


def _flag(name: str, value: str | None) -> bool:
    if value is not None:
        raise ConfigError(f"mount option {name} takes no value")
    return True


def _text(name: str, value: str | None) -> str:
    if not value:
        raise ConfigError(f"mount option {name} needs a value: {name}=...")
    return value


def _size(name: str, value: str | None) -> int:
    return parse_size_bytes(_text(name, value), f"mount option {name}")


def _count(name: str, value: str | None) -> int:
    text = _text(name, value)
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise ConfigError(f"mount option {name}: {text!r} is no count")
    return int(text)


def _switch(name: str, value: str | None) -> bool:
    if value not in ("on", "off"):
        raise ConfigError(f"mount option {name}: want {name}=on or {name}=off")
    return value == "on"


def _verify_limit(name: str, value: str | None) -> int:
    size = _size(name, value)
    if size > limits.READ_CACHE_MAX_BYTES:
        raise ConfigError(f"mount option {name}: at most {limits.READ_CACHE_MAX_BYTES} bytes, the mount's read cache")
    return size


_OURS: Final[dict[str, tuple[str, Callable[[str, str | None], Any]]]] = {
    "ro": ("read_only", _flag),
    "allow_other": ("allow_other", _flag),
    "kek": ("kek", _text),
    "passphrase_file": ("passphrase_file", _text),
    "credential": ("credential", _text),
    "verify_at_open_max": ("verify_at_open_max_bytes", _verify_limit),
    "quota": ("quota_bytes", _size),
    "quota_objects": ("quota_objects", _count),
    "eviction": ("eviction", _switch),
    "layout_guard": ("layout_guard", _switch),
}
"""Option -> the field of MountOptions it sets, and how its value is read."""

KERNEL_OPTIONS: Final = frozenset({"nosuid", "nodev", "noexec", "noatime"})

IGNORED: Final = frozenset(
    {
        "rw",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "defaults",
        "nofail",
        "_netdev",
        "suid",
        "dev",
        "exec",
        "async",
        "atime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "diratime",
        "nodiratime",
        "lazytime",
        "nolazytime",
        "loud",
        "silent",
    }
)
"""Standard options of mount(8) and fstab(5) that are meant for others or ask for what is so anyway."""

IGNORED_PREFIXES: Final = ("x-", "X-", "comment=")

REFUSED: Final = {
    "remount": "a kvfs mount cannot be changed; unmount and mount it again",
    "bind": "bind is an operation on another mount; use mount --bind",
    "sync": "kvfs has no synchronous mode; use fsync",
    "dirsync": "kvfs has no synchronous mode; use fsync",
    "default_permissions": "permission checks by mode and owner are always on",
}


def _split(text: str) -> Iterator[str]:
    """The elements of an option list; a backslash takes the next character as it is, as in libfuse."""
    for element in re.findall(r"(?:\\.|[^,\\]|\\$)+", text, re.DOTALL):
        yield re.sub(r"\\(.)", r"\1", element, flags=re.DOTALL)


def parse_options(lists: list[str], *, tolerant: bool = False) -> MountOptions:
    """The options of all `-o` lists; of an option that comes twice the last one counts, as with mount(8).

    `tolerant` passes over unknown options (mount -s).

    Raises:
        ConfigError: an option is unknown, refused, or its value is wrong; the text names it.
    """
    options = MountOptions()
    for element in (element for text in lists for element in _split(text)):
        name, equals, value = element.partition("=")
        if name in IGNORED or element.startswith(IGNORED_PREFIXES):
            options = replace(options, read_only=False) if name == "rw" else options
        elif name in KERNEL_OPTIONS:
            options = replace(options, kernel=tuple(dict.fromkeys((*options.kernel, name))))
        elif name in REFUSED:
            raise ConfigError(f"mount option {name}: {REFUSED[name]}")
        elif name in _OURS:
            field, parse = _OURS[name]
            options = replace(options, **{field: parse(name, value if equals else None)})
        elif not tolerant:
            known = ", ".join(sorted(_OURS))
            raise ConfigError(f"unknown mount option {name[:80]!r}; kvfs has {known}")
    check_one_key(options.kek_options)
    return options


def check_split(options: MountOptions) -> None:
    """Refuse what a mount that attaches to a daemon cannot do."""
    refused = {
        "kek": options.kek,
        "passphrase_file": options.passphrase_file,
        "quota": options.quota_bytes is not None,
        "quota_objects": options.quota_objects is not None,
        "eviction": options.eviction is not None,
        "layout_guard": options.layout_guard is not None,
    }
    for name, given in refused.items():
        if given:
            raise ConfigError(f"mount option {name} is the daemon's business, not that of a mount which attaches to it")


def check_one_key(options: KekOptions) -> None:
    """Refuse more than one key source."""
    given = [field.name for field in fields(options) if getattr(options, field.name)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} given; a pool has one key, name one source")
