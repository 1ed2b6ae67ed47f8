"""Which system a guest is, by its os-release (freedesktop.org's specification). No input or output."""

import shlex
from typing import Final

import msgspec

PATHS: Final = ("/etc/os-release", "/usr/lib/os-release")
MAX_CHARS: Final = 64 * 1024
"""No real one has a tenth of it, and splitting words as a shell does takes its time."""

_FAMILIES: Final = {
    "debian": "debian",
    "ubuntu": "debian",
    "linuxmint": "debian",
    "kali": "debian",
    "raspbian": "debian",
    "rhel": "redhat",
    "centos": "redhat",
    "fedora": "redhat",
    "rocky": "redhat",
    "almalinux": "redhat",
    "ol": "redhat",
    "amzn": "redhat",
    "suse": "suse",
    "sles": "suse",
    "opensuse": "suse",
    "opensuse-leap": "suse",
    "opensuse-tumbleweed": "suse",
}


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """`family` is debian, redhat or suse, by which tools a system is maintained; unknown for others."""

    id: str
    name: str
    version: str | None = None
    family: str = "unknown"


def parse(text: str) -> Release:
    """Read an os-release; what is missing or broken in it is left out."""
    fields = dict(filter(None, map(_field, text[:MAX_CHARS].splitlines())))
    system = fields.get("ID", "linux").lower()
    like = [system, *fields.get("ID_LIKE", "").lower().split()]
    return Release(
        id=system,
        name=fields.get("PRETTY_NAME") or fields.get("NAME") or "Linux",
        version=fields.get("VERSION_ID") or None,
        family=next((_FAMILIES[each] for each in like if each in _FAMILIES), "unknown"),
    )


def _field(line: str) -> tuple[str, str] | None:
    key, equals, value = line.strip().partition("=")
    if not equals or key.startswith("#"):
        return None
    try:
        words = shlex.split(value)
    except ValueError:
        return None
    return key, " ".join(words)
