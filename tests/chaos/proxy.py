"""A road to the server that can be cut, blocked in either direction, or made slow: one for each process."""

import asyncio
import contextlib
from typing import Self


class Proxy:
    """Forwards one loopback port to another. It lives in the campaign's own event loop."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._refuses = False
        self.delay = 0.0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.heal()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        if self._server is not None:
            self._server.close()

    def cut(self) -> None:
        """Close every connection, and refuse new ones."""
        self._refuses = True
        for writer in list(self._writers):
            writer.transport.abort()

    def block(self, *directions: str) -> None:
        """Forward nothing any more in these directions; the connections stay."""
        for direction in directions:
            self._open[direction].clear()

    def heal(self) -> None:
        self._refuses = False
        self.delay = 0.0
        for gate in self._open.values():
            gate.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if self._refuses:
                return writer.transport.abort()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            self._writers |= {writer, far_writer}
            try:
                await asyncio.gather(
                    self._pump("up", reader, far_writer), self._pump("down", far_reader, writer)
                )
            finally:
                self._writers -= {writer, far_writer}
                far_writer.transport.abort()
        return writer.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(64 * 1024):
            await self._open[direction].wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError
