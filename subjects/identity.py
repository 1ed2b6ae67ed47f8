"""Who submits: a token of the command's subject, which the server's permissions vouch for.

`audit.requested_by` is what the submitter says of it, and stands in the job for people.
"""

import re
from typing import Final

LONGEST: Final = 64
_OTHER: Final = re.compile(r"[^A-Za-z0-9_-]")


def submitter_of(name: str) -> str:
    """A person's name as the submitter's token in subjects: what no token may have becomes `_`."""
    return _OTHER.sub("_", name)[:LONGEST] or "unknown"


def is_own_name(submitter: str, requested_by: str) -> bool:
    """Whether a job says itself that it comes from who submitted it."""
    return submitter in (requested_by, submitter_of(requested_by))
