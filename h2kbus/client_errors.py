"""The one place where the NATS client's errors become ours."""

from typing import Final

import nats.errors

from h2kbus.errors import BusFull, BusTimeout, BusUnreachable


class _MappedErrors:
    """Wraps each call of the client."""

    def __enter__(self) -> None:
        """It has no state, so that one serves every request."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        if isinstance(error, nats.errors.MaxPayloadError):
            raise BusFull("the message is larger than the server accepts") from None
        if isinstance(error, (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError)):
            raise BusUnreachable(f"the connection is not there: {error}") from None
        if isinstance(error, nats.errors.Error):
            raise BusTimeout(f"the bus did not take the request: {error}") from None


mapped_errors: Final = _MappedErrors()
