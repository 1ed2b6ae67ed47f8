"""Which system a guest is, by its os-release."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.guest.release import parse

DEBIAN = 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\n'


@pytest.mark.parametrize(
    ("text", "name", "family", "version"),
    [
        (DEBIAN, "Debian GNU/Linux 12 (bookworm)", "debian", "12"),
        ("ID=rocky\nID_LIKE='rhel centos fedora'\nNAME='Rocky Linux'", "Rocky Linux", "redhat", None),
        ("ID=neon\nID_LIKE='ubuntu debian'\nNAME=neon", "neon", "debian", None),
        ("ID=plan9\nNAME=Plan", "Plan", "unknown", None),
        ("", "Linux", "unknown", None),
        ("NAME='never ends\nID=fedora", "Linux", "redhat", None),
    ],
)
def test_system_is_known_by_its_release(text: str, name: str, family: str, version: str | None) -> None:
    found = parse(text)
    assert (found.name, found.family, found.version) == (name, family, version)


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    assert parse(text).name
