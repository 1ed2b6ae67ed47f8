"""Secrets are taken out of what is kept for people to read: logs, reports, manifests, errors.

Two things tell a secret: where it stands, by the table of patterns below, and what it is, for values of a
job's parameters whose names say that they are secret.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

HIDDEN: Final = "***"
SHORTEST: Final = 4
"""A secret of fewer characters is not looked for everywhere: too much else has them too."""

_NAMES: Final = r"pass(?:word|wd|phrase|code)|secret|token|api[_-]?key|private[_-]?key|credential"
_SECRET_NAME: Final = re.compile(_NAMES, re.IGNORECASE)
# A string of JSON, or what a shell takes for one word; a quote that is not closed goes up to the next blank.
_VALUE: Final = (
    r"""(?:"(?:[^"\\]|\\.)*+"(?=\s*[,}\]]|\s|$)|(?:"(?:[^"\\]|\\.)*+"|'[^']*+'|[^\s"']|["']\S*+)++)"""
)
# Bounded, so that no line is looked through more than once for each place where a name may begin.
_PART: Final = r"[\w-]{0,128}"

_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # user:password@ in an address
        (r"(?<=://)[^/,\s]+@", f"{HIDDEN}@"),
        # --password VALUE, --key-secret=VALUE, but not the option that follows one without a value
        (rf"(?<!\S)(-{_PART}(?:{_NAMES}){_PART}(?:=|\s+))(?!--\w){_VALUE}", rf"\1{HIDDEN}"),
        # PASSWORD=VALUE, "api_key": "VALUE"; a path or a sentence may hold such a word, and is left alone
        (rf"""(?<![\w./-])([\w.-]{{0,128}}(?:{_NAMES})["']?\s*[=:]\s*){_VALUE}""", rf"\1{HIDDEN}"),
        # qemu's --object secret,id=sec0,data=VALUE
        (r"(\bsecret,(?:[\w.-]+=[^,\s]*,)*data=)[^,\s]+", rf"\1{HIDDEN}"),
        # Headers of HTTP; what names the scheme stays
        (
            r"\b((?:proxy-)?authorization\s*[:=]\s*(?:(?:basic|bearer|digest|negotiate)\s+)?)[^\s'\"]+",
            rf"\1{HIDDEN}",
        ),
        (r"\b((?:set-)?cookie\s*:\s*)\S.*", rf"\1{HIDDEN}"),
        # Seeds of nkeys, and signed tokens (JWT)
        (r"(?-i:\bS[ACNOUX][A-Z2-7]{56}\b)", HIDDEN),
        (r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*", HIDDEN),
    )
)
_MARKS: Final = (
    "pass",
    "secret",
    "token",
    "api",
    "private",
    "credential",
    "://",
    "authorization",
    "cookie",
    "eyj",
)
"""A line with none of them, and no seed in it, is left alone at once: of each pattern one, in lower case."""
_SEED: Final = re.compile(r"S[ACNOUX][A-Z2-7]{56}")


class Redactor:
    """Takes secrets out of texts and plain values: those that look like one, and `secrets` themselves."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for each in secrets for form in _written(each) if len(form) >= SHORTEST}
        # The longest first: one secret may be a part of another.
        self._secrets = sorted(forms, key=len, reverse=True)

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Redactor":
        """One that knows the secrets among a job's parameters; most jobs have none."""
        found = list(_secrets_in(parameters))
        return cls(found) if found else PLAIN

    def text(self, text: str) -> str:
        for each in self._secrets:
            text = text.replace(each, HIDDEN)
        lowered = text.lower()
        if any(each in lowered for each in _MARKS) or _SEED.search(text):
            for pattern, replacement in _PATTERNS:
                text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any) -> Any:
        """A plain value, its texts redacted; under a secret's name nothing stays but yes, no and none."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.value(key): self._named(key, each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each) for each in value]
        return value

    def _named(self, name: Any, value: Any) -> Any:
        if not (isinstance(name, str) and _SECRET_NAME.search(name)) or isinstance(value, (bool, type(None))):
            return self.value(value)
        return HIDDEN


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    return PLAIN.text(text)


PLAIN: Final = Redactor()
"""Knows no secret but by its looks."""


def _written(secret: str) -> set[str]:
    """A secret as it is, and as it stands in JSON and on a command line."""
    in_json = {json.dumps(secret, ensure_ascii=each)[1:-1] for each in (True, False)}
    return {secret, *in_json, shlex.quote(secret).strip("'")}


def _secrets_in(value: Any, *, named: bool = False) -> Iterator[str]:
    """The texts and numbers under names of secrets."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _secrets_in(each, named=named or bool(_SECRET_NAME.search(str(name))))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _secrets_in(each, named=named)
    elif named and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value)
