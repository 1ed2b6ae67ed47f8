"""What commands print on stdout: JSON lines for programs, tables and lines for people."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from subjects.codec import encode


def print_json(value: Any) -> None:
    """One object on one line, as it stands on the wire, with what could drive a terminal escaped."""
    sys.stdout.write(_escaped(encode(value).decode()) + "\n")
    sys.stdout.flush()


def print_line(text: str) -> None:
    """One line for people."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as what stands in them; nothing is cut, so that it can be copied."""
    lines = [tuple(titles), *(tuple(printable(str(cell)) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write(text.rstrip() + "\n")
    sys.stdout.flush()


def _escaped(document: str) -> str:
    """JSON escapes the first 32 characters only; others drive terminals too, as the C1 controls do."""
    if document.isprintable():
        return document
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in document)


def printable(text: str) -> str:
    """Without what could drive a terminal: messages come from images, tools and other users."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
