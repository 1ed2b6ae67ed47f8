"""NATS contexts: the connection profiles that the `nats` command keeps for all NATS tools.

They are JSON files under `$XDG_CONFIG_HOME/nats/context` (`~/.config` by default); `context.txt` beside
that directory names the selected one. Any other such file is named by its absolute path; the files that it
names are looked for beside it, so that `h2kbus auth` can make a directory that works wherever it is copied.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from h2kbus.errors import SettingsError

_FIELDS: Final = {
    "url": "url",
    "creds": "creds",
    "nkey": "nkey",
    "user": "user",
    "password": "password",
    "token": "token",
    "ca": "tls_ca",
    "cert": "tls_cert",
    "key": "tls_key",
    "inbox_prefix": "inbox_prefix",
    "jetstream_api_prefix": "api_prefix",
    # Ours alone; other tools leave it be.
    "h2kbus_root": "root",
}
_PATHS: Final = frozenset({"creds", "nkey", "ca", "cert", "key"})
_UNSUPPORTED: Final = ("nsc", "socks_proxy", "user_jwt", "user_seed", "windows_cert_store")
"""They would change who we are or where we go; dropping them silently would connect as somebody else."""


def load_context(name: str | None, env: Mapping[str, str]) -> dict[str, str]:
    """The settings of a context, by our names: the named one, else the selected one, else none.

    Raises SettingsError for a name that does not exist, a file that is no context, and a field that
    this client cannot honour.
    """
    directory = _directory(env)
    chosen = name or _selected(directory)
    if not chosen:
        return {}
    own = Path(chosen).is_absolute() and chosen.endswith(".json")
    if Path(chosen).name != chosen and not own:
        raise SettingsError(f"context {chosen!r} is not a plain name, and no absolute path of a .json file")
    path = Path(chosen) if own else directory / "context" / f"{chosen}.json"
    fields = _read(path, chosen)
    refused = [field for field in _UNSUPPORTED if fields.get(field)]
    if refused:
        raise SettingsError(
            f"context {chosen}: {', '.join(refused)} is not supported; use creds or nkey ({path})"
        )
    found = {ours: _text(path, theirs, fields.get(theirs), env) for theirs, ours in _FIELDS.items()}
    if own:
        found |= {ours: _beside(path, found[ours]) for theirs, ours in _FIELDS.items() if theirs in _PATHS}
    return {field: value for field, value in found.items() if value}


def _beside(context: Path, file: str | None) -> str | None:
    return str(context.parent / file) if file else None


def _directory(env: Mapping[str, str]) -> Path:
    base = env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or "/") / ".config"
    return Path(base) / "nats"


def _selected(directory: Path) -> str | None:
    try:
        return (directory / "context.txt").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
    except ValueError:
        raise SettingsError(f"{directory / 'context.txt'} names no context: it is no text") from None


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"there is no NATS context {name!r} ({path})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"context {name}: {path} cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise SettingsError(f"context {name}: {path} holds no JSON object")
    return fields


def _text(path: Path, field: str, value: Any, env: Mapping[str, str]) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise SettingsError(f"context file {path}: {field} is not a text")
    if field in _PATHS and value.startswith("~/"):
        return str(Path(env.get("HOME") or "/") / value[2:])
    return value
