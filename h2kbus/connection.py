"""The connection to NATS: bounded and self-healing.

Everything durable goes through `publish` and `api`, everything read by name through direct gets.
"""

import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import Any, Final

import anyio
import msgspec
import nats
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from h2kbus.answers import (
    Batch,
    Stored,
    error_of,
    found_in,
    has_more,
    outcome_of,
    problem_of,
    reply_of,
    sequence_of,
    status_of,
    stored,
)
from h2kbus.client_errors import mapped_errors
from h2kbus.errors import (
    BusError,
    BusUnreachable,
    ErrorCode,
    NotProvisioned,
    ServerUnfit,
)
from h2kbus.handshake import check_server, client_options, connect_error, is_hopeless
from h2kbus.inbox import Inbox, Outgoing, denial, raised, settled
from h2kbus.settings import DEFAULT_API_PREFIX, ConnectionSettings
from h2kbus.wire import MessageHandler, WireClient

log = logging.getLogger("h2kbus")

DEADLINE_SECONDS: Final = 5.0
"""How long one request to the server may take."""
CLOSE_SECONDS: Final = 2.0
BATCH_SIZE: Final = 2000
"""Messages of one direct get. Each such request costs the server milliseconds, however little it finds:
it counts what is left."""
BATCH_BYTES: Final = 8 << 20
"""A batch ends with the message that reaches it; large messages come in smaller batches."""
EVERYTHING: Final = ">"
"""The filter of a whole stream. The server goes through messages for it, and for any other through its
index of all subjects first."""

_DENIED: Final = re.compile(
    r'permissions violation for (?P<kind>publish|subscription) to "(?P<subject>[^"]+)"', re.IGNORECASE
)


class Connection:
    """One connection of one process. Made by `connect`."""

    def __init__(self, client: WireClient) -> None:
        self.nats = client
        self.inbox = Inbox(client)
        self.api_prefix = DEFAULT_API_PREFIX
        self.on_reconnect: list[Callable[[], None]] = []
        self.on_denied: list[Callable[[str], bool]] = []
        """Each is given a subject that the server refused, in lower case, and says if it waited there."""
        self.closed = anyio.Event()
        self._connected = anyio.Event()
        # Subscriptions that are being made, in lower case: whether the server has refused each.
        self._subscribing: dict[str, bool] = {}

    @property
    def max_payload(self) -> int:
        return self.nats.max_payload

    @property
    def is_connected(self) -> bool:
        return self.nats.is_connected

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = DEADLINE_SECONDS,
    ) -> int:
        """Store a message and return its sequence in the stream, once the server has acknowledged it.

        Raises RevisionConflict for a lost compare-and-set, SubjectTaken where the stream holds one
        message per subject, BusFull, PermissionDenied, and BusTimeout when the outcome is unknown.
        """
        if not self.nats.is_connected:
            await self._reconnected(timeout)
        with mapped_errors:
            answer = await self.inbox.ask(subject, payload, headers, timeout=timeout)
        return sequence_of(subject, answer)

    async def publish_together(self, *messages: Outgoing) -> list[int | BusError]:
        """Like `publish` for several messages in one round trip: each one's sequence, or its error."""
        if not self.nats.is_connected:
            await self._reconnected(DEADLINE_SECONDS)
        with mapped_errors:
            answers = [await self.inbox.begin(*each, timeout=DEADLINE_SECONDS) for each in messages]
        pairs = zip(messages, answers, strict=True)
        return [outcome_of(message[0], await settled(answer)) for message, answer in pairs]

    async def publish_unconfirmed(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send and forget: hints, pulls and acknowledgements that a redelivery would repeat."""
        with mapped_errors:
            await self.nats.publish(subject, payload, reply)

    async def ask(self, subject: str, payload: bytes = b"", *, timeout: float = DEADLINE_SECONDS) -> Msg:
        """Any request with one answer."""
        if not self.nats.is_connected:
            await self._reconnected(timeout)
        with mapped_errors:
            return await self.inbox.ask(subject, payload, timeout=timeout)

    async def api(self, name: str, body: Any = None, *, timeout: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """Call the JetStream API; its errors become ours. A missing thing is a `KeyError` of its name."""
        answer = await self.ask(
            f"{self.api_prefix}.{name}", b"" if body is None else msgspec.json.encode(body), timeout=timeout
        )
        if not answer.data:
            raise ServerUnfit("the server runs without JetStream", code=ErrorCode.JETSTREAM_MISSING)
        reply = reply_of(name, answer)
        if problem := problem_of(name, reply):
            if problem.code == HTTPStatus.NOT_FOUND:
                raise KeyError(name)
            raise error_of(problem, name)
        return reply

    async def get_last(self, stream: str, subject: str) -> Stored | None:
        """The newest message under a subject, read directly from the stream; None when there is none."""
        return found_in(stream, await self.ask(f"{self.api_prefix}.DIRECT.GET.{stream}.{subject}"))

    async def get_last_together(self, stream: str, subjects: Sequence[str]) -> list[Stored | None]:
        """Like `get_last` for several subjects in one round trip."""
        return await self._get_together(stream, [(f".{each}", b"") for each in subjects])

    async def get_first_together(self, stream: str, filters: Sequence[str]) -> list[Stored | None]:
        """The oldest message under each subject filter, in one round trip; None where there is none."""
        queries = [msgspec.json.encode({"seq": 1, "next_by_subj": each}) for each in filters]
        return await self._get_together(stream, [("", query) for query in queries])

    async def get_revisions_together(self, stream: str, sequences: Sequence[int]) -> list[Stored | None]:
        """The messages that were stored under these sequences, at once; None for one that is gone."""
        queries = [msgspec.json.encode({"seq": each}) for each in sequences]
        return await self._get_together(stream, [("", query) for query in queries])

    async def _get_together(self, stream: str, queries: Sequence[tuple[str, bytes]]) -> list[Stored | None]:
        if not self.nats.is_connected:
            await self._reconnected(DEADLINE_SECONDS)
        name = f"{self.api_prefix}.DIRECT.GET.{stream}"
        with mapped_errors:
            answers = [
                await self.inbox.begin(f"{name}{ending}", body, timeout=DEADLINE_SECONDS)
                for ending, body in queries
            ]
        return [found_in(stream, raised(await settled(answer))) for answer in answers]

    async def get_batch(self, stream: str, query: dict[str, Any], *, size: int = BATCH_SIZE) -> Batch:
        """Up to `size` messages by one direct get; see `read` for all of them.

        Raises BusTimeout unless the whole batch arrives in time, PermissionDenied at once.
        """
        if not self.nats.is_connected:
            await self._reconnected(DEADLINE_SECONDS)
        messages: list[Stored] = []

        def take(message: Msg) -> bool:
            if "Nats-Sequence" not in (message.headers or {}):
                return True
            messages.append(stored(message))
            return False

        request = msgspec.json.encode({**query, "batch": size, "max_bytes": BATCH_BYTES})
        with mapped_errors:
            end = await self.inbox.ask_many(
                f"{self.api_prefix}.DIRECT.GET.{stream}", request, take, timeout=DEADLINE_SECONDS
            )
        if status_of(end) == "503":
            raise NotProvisioned(f"this server has no stream {stream}")
        return Batch(messages, has_more(end))

    async def read(
        self, stream: str, subject: str = EVERYTHING, *, after: int = 0, since: str | None = None
    ) -> AsyncIterator[Stored]:
        """Every message that the stream holds now, or those under a subject filter, oldest first.

        It needs no consumer. `after` skips sequences up to it; `since` (RFC 3339) skips what was stored
        before.
        """
        query: dict[str, Any] = {"next_by_subj": subject}
        query |= {"start_time": since} if since and not after else {"seq": after + 1}
        batch = Batch([], has_more=True)
        while batch.has_more:
            batch = await self.get_batch(stream, query)
            if not batch.messages:
                return
            for message in batch.messages:
                yield message
            query = {"next_by_subj": subject, "seq": batch.messages[-1].seq + 1}

    async def listen(self, subject: str, handler: MessageHandler) -> Subscription:
        """Subscribe with a plain function; the caller unsubscribes.

        Returns once the server has taken the subscription. Raises PermissionDenied.
        """
        with mapped_errors:
            subscription = await self.nats.listen(subject, handler)
        await self._require_heard(subject)
        return subscription

    async def _require_heard(self, subject: str) -> None:
        """A refusal of a subscription comes before the answer to whatever is asked next."""
        self._subscribing[subject.lower()] = False
        try:
            await self.flush()
        finally:
            refused = self._subscribing.pop(subject.lower(), False)
        if refused:
            raise denial(subject)

    async def drain(self, subscription: Subscription) -> None:
        """Unsubscribe, and return once what was under way has been handled."""
        with anyio.move_on_after(DEADLINE_SECONDS), mapped_errors:
            await subscription.drain()  # type: ignore[no-untyped-call] # nats-py leaves it untyped

    async def flush(self) -> None:
        """Wait until the server has seen everything sent so far.

        Not to be cancelled: the client takes an answer that nobody waits for as a broken connection.
        """
        with anyio.CancelScope(shield=True), mapped_errors:
            await self.nats.flush(timeout=int(DEADLINE_SECONDS))

    async def _reconnected(self, timeout: float) -> None:
        """While disconnected the client buffers what it should refuse: wait for the reconnection here."""
        with anyio.move_on_after(timeout) as waited:
            while not self.nats.is_connected:
                await self._connected.wait()
        if waited.cancelled_caught:
            raise BusUnreachable(f"not connected for {timeout:g} s")

    async def open(self, settings: ConnectionSettings, options: dict[str, Any]) -> None:
        """Connect and check the server; see `connect`, which also closes."""
        self.api_prefix = settings.api_prefix
        errors: list[Exception] = []
        connecting = True
        with anyio.move_on_after(settings.connect_timeout_seconds):

            async def on_error(error: Exception) -> None:
                self._take_error(error)
                if not connecting:
                    # Without a server it tries for hours, and each attempt would be remembered.
                    return
                errors.append(error)
                # The client would try for ever; where nobody listens or all refuse us, that is clear now.
                if is_hopeless(errors, len(settings.servers)):
                    raise error

            try:
                await self.nats.connect(
                    **options,
                    error_cb=on_error,
                    disconnected_cb=self._on_disconnect,
                    reconnected_cb=self._on_reconnect,
                    closed_cb=self._on_closed,
                )
            except (OSError, nats.errors.Error) as error:
                errors.append(error)
        connecting = False
        if not self.nats.is_connected:
            raise connect_error(settings, self.nats, errors)
        self._connected.set()
        check_server(self.nats, settings)
        await self._require_heard(await self.inbox.start())

    async def close(self) -> None:
        """Send what is buffered and close, within two seconds."""
        self.inbox.stop()
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            with contextlib.suppress(nats.errors.Error, OSError):
                await self.nats.flush(timeout=1)
            await self.nats.close()

    async def _on_disconnect(self) -> None:
        self._connected = anyio.Event()
        self.inbox.fail_all("the connection was lost before the answer came")

    async def _on_reconnect(self) -> None:
        self._connected.set()
        for call in self.on_reconnect:
            call()

    async def _on_closed(self) -> None:
        self.closed.set()
        self.inbox.fail_all("the connection is closed")

    def _take_error(self, error: Exception) -> None:
        """The client tells of refusals here only, and in lower case."""
        denied = _DENIED.search(str(error))
        if denied is None:
            return
        subject, kind = denied["subject"], denied["kind"]
        if kind == "subscription":
            awaited = subject in self._subscribing
            if awaited:
                self._subscribing[subject] = True
        else:
            awaited = any([self.inbox.fail_denied(subject), *(call(subject) for call in self.on_denied)])
        if not awaited:
            log.warning("the server refused the %s for %s", kind, subject)


@contextlib.asynccontextmanager
async def connect(settings: ConnectionSettings) -> AsyncIterator[Connection]:
    """Connect, check the server, and close on the way out.

    Raises BusUnreachable when no server answers within `settings.connect_timeout_seconds`,
    PermissionDenied for wrong credentials, TlsFailed, ServerUnfit for a server that is too old or lacks
    JetStream, SettingsError for files that cannot be used.
    """
    connection, options = Connection(WireClient()), client_options(settings)
    try:
        await connection.open(settings, options)
        yield connection
    finally:
        await connection.close()
