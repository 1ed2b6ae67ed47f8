"""Quotas as operators set them, and what schedulers have refused because of one."""

import contextlib
from collections.abc import Mapping
from typing import Final

import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import InvalidMessage
from subjects.codec import decode, encode
from subjects.grammar import token
from subjects.quota import Quota, Refusal
from subjects.topology import Topology

EVERYBODY: Final = "*"
"""The name of the quota for all who have none of their own."""
_DELETED: Final = {"KV-Operation": "DEL"}


class Quotas(msgspec.Struct, frozen=True):
    """Every quota that is set, by the submitter's name."""

    by_name: Mapping[str, Quota] = {}

    def of(self, submitter: str) -> Quota | None:
        """The one that counts for a submitter, if any does."""
        return self.by_name.get(submitter) or self.by_name.get(EVERYBODY)


async def read_quotas(connection: Connection, topology: Topology) -> Quotas:
    """What operators have set. What is no quota is left out."""
    stream = topology.bucket_stream(topology.settings_bucket)
    default, prefix = topology.default_quota_subject, topology.quota_subject("")
    found = {}
    async for stored in connection.read(stream, f"{default.rpartition('.')[0]}.>"):
        name = EVERYBODY if stored.subject == default else stored.subject.removeprefix(prefix)
        with contextlib.suppress(InvalidMessage):
            if stored.data:
                found[name] = decode(Quota, stored.data)
    return Quotas(found)


async def set_quota(connection: Connection, topology: Topology, submitter: str, quota: Quota | None) -> None:
    """Set a submitter's quota, or everybody's; None takes it back. Raises InvalidSubject for a bad name."""
    named = submitter != EVERYBODY
    subject = topology.quota_subject(token(submitter)) if named else topology.default_quota_subject
    if quota is None:
        await connection.publish(subject, b"", _DELETED)
    else:
        await connection.publish(subject, encode(quota))


async def read_refusal(connection: Connection, topology: Topology, submitter: str) -> Refusal | None:
    """Why commands of the submitter were refused last, if any ever were."""
    stream = topology.bucket_stream(topology.locks_bucket)
    stored = await connection.get_last(stream, topology.refusal_subject(submitter))
    with contextlib.suppress(InvalidMessage):
        return decode(Refusal, stored.data) if stored is not None and stored.data else None
    return None
