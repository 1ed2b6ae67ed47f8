"""Jobs that wait in their lanes, remembered by the revisions of their records: sixteen bytes for each.

A million of them wait at times. A job that has moved on has another revision, and nothing is found under
the old one, so nothing ever has to be taken out.
"""

from array import array


class Waiting:
    """A queue of revisions, by the time at which each was seen last (this process's monotonic seconds)."""

    def __init__(self) -> None:
        self._revisions = array("Q")
        self._seen = array("d")
        self._first = 0

    def __len__(self) -> int:
        return len(self._revisions) - self._first

    def add(self, revision: int, now: float) -> None:
        """Remember a revision; `now` never goes back."""
        self._revisions.append(revision)
        self._seen.append(now)

    def due(self, before: float, at_most: int) -> list[int]:
        """Take out those that were seen before that time, the longest ago first."""
        end = self._first
        last = min(len(self._seen), self._first + at_most)
        while end < last and self._seen[end] < before:
            end += 1
        found = self._revisions[self._first : end].tolist()
        self._first = end
        if self._first > len(self._seen) // 2:
            del self._revisions[: self._first], self._seen[: self._first]
            self._first = 0
        return found

    def clear(self) -> None:
        """Forget all of them."""
        del self._revisions[:], self._seen[:]
        self._first = 0
