"""The event loop of every command."""

import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple

import anyio

GARBAGE_THRESHOLD: Final = 20_000
"""New objects between two collections. Records come and go by the thousand and hold no cycles."""

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def run(function: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run a coroutine function to its end, on uvloop: a sixth more jobs a second than with asyncio's loop."""
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    logging.getLogger("asyncio").addFilter(_is_news)
    return anyio.run(function, *arguments, backend_options={"use_uvloop": True})


def _is_news(record: logging.LogRecord) -> bool:
    """The client begins TLS on a connection that it opened without, and each of these ends with a warning."""
    return "eof_received" not in record.getMessage()
