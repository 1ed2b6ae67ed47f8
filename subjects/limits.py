"""Named limits: at most so many jobs with one label at once, whatever their lanes.

A label names what the jobs share, a source host or a datastore for instance. A job takes one place of each
of its labels before it goes to its lane, and has it until it has ended.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from subjects.spec import JobId, LimitLabel, Places, Timestamp, keep_utc


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which job has the place of that number (0 is the first) under a label."""

    label: LimitLabel
    number: Annotated[int, Meta(ge=0)]
    job_id: JobId


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """The most places that operators allow under a label, whatever the jobs themselves ask for."""

    at_most: Places
    by: str
    at: Timestamp

    def __post_init__(self) -> None:
        keep_utc(self, "at")


def label_key(label: str) -> str:
    """A label as one token of a key: a label may hold what a token cannot, so it is hashed."""
    return hashlib.sha256(label.encode()).hexdigest()[:40]


def allowed(label: str, asked: int, ceilings: Mapping[str, Ceiling]) -> int:
    """How many jobs with this label may run at once, in the eyes of a job that asks for so many."""
    ceiling = ceilings.get(label)
    return asked if ceiling is None else min(asked, ceiling.at_most)
