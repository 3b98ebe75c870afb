import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import ConfigError
from kvfsd.units import SIZE_MAX_BYTES, format_bytes, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64M", 64 << 20), ("64MiB", 64 << 20), ("1.5t", 3 << 39), ("2kb", 2048)],
)
def test_sizes_are_binary(text, size):
    assert parse_size_bytes(text, "x") == size


@pytest.mark.parametrize("text", ["", "-1", "1e9", "64X", "0x10", "1.3k", "5000P", "9" * 20, "٣", "1 M"])
def test_what_is_no_size_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="quota"):
        parse_size_bytes(text, "quota")


@given(st.text(max_size=30))
def test_any_text_is_a_bounded_size_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        assert 0 <= parse_size_bytes(text, "x") <= SIZE_MAX_BYTES


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 << 30, "64.0 GiB"),
        (1 << 62, "4096.0 PiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(count, text):
    assert format_bytes(count) == text
