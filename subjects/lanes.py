"""Lanes: canonical names for sets of capabilities, and which worker serves which.

A lane's name is its capability tokens, sorted and joined with `+`, or `any` for none. A worker serves
every lane whose tokens it has.
"""

import functools
import re
from collections.abc import Iterable

from subjects.codes import InvalidSubject
from subjects.spec import JobSpec

ANY = "any"
_TOKEN = re.compile(r"[a-z0-9-]{1,32}")

DECLARED_NEEDS = {
    "needs_nbd": "nbd",
    "needs_lvm": "lvm",
    "needs_mount": "mount",
    "needs_selinux_tools": "selinux-tools",
}
"""The capability token behind each flag of `capability_requirements`."""

MAX_PULL_PRIORITY = 9
"""The highest priority number that a JetStream `prioritized` pull may carry (0 is served first)."""


def check_token(token: str) -> str:
    """Return the token, or raise InvalidSubject unless it is 1-32 of a-z 0-9 and `-`."""
    if not _TOKEN.fullmatch(token) or token == ANY:
        raise InvalidSubject(f"{token!r} is not a capability: use 1-32 of a-z, 0-9 and -")
    return token


def lane_name(needs: Iterable[str]) -> str:
    """Name the lane of a set of capability tokens."""
    return "+".join(sorted({check_token(token) for token in needs})) or ANY


@functools.lru_cache(1024)
def lane_needs(lane: str) -> frozenset[str]:
    """Read a lane's name back into its capability tokens; refuse one that is not canonical."""
    needs = frozenset() if lane == ANY else frozenset(lane.split("+"))
    if lane_name(needs) != lane:
        raise InvalidSubject(f"{lane!r} is not a lane: sort its tokens and name each once")
    return needs


def job_needs(operation_needs: frozenset[str], spec: JobSpec) -> frozenset[str]:
    """What the operation needs, and what the job itself asks for on top."""
    required = spec.capability_requirements
    return operation_needs | {token for field, token in DECLARED_NEEDS.items() if getattr(required, field)}


def pull_priority(capabilities: frozenset[str], needs: frozenset[str]) -> int:
    """How far a worker is over-qualified for a lane: the least specialised idle worker is served first.

    The last place is kept for workers that lately had no room for one of the lane's jobs.
    """
    return min(MAX_PULL_PRIORITY - 1, len(capabilities) - len(needs))
