"""The command that serves the page for browsers."""

import functools
import threading
from typing import Annotated

import anyio
import typer
from anyio.abc import TaskStatus

from h2kbus.cli.exits import say
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line
from h2kbus.cli.services import Drain, serve
from h2kbus.dashboard import (
    DEFAULT_PORT,
    LOOPBACK,
    PageServer,
    PageSettings,
    is_loopback,
    sign_in_link,
    websocket_url,
)


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(dashboard)


def dashboard(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is this machine only.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT,
    websocket: Annotated[
        str | None, typer.Option(help="The bus as browsers reach it [ws://<host of --url>:4280].")
    ] = None,
) -> None:
    r"""Serve a page that shows and steers the bus in a browser.

    It serves files only: the page itself connects to the bus, by its WebSocket listener. The link that is
    printed signs in with the bus's token, if there is one; browsers keep what follows the # to themselves.

    \b
    h2kbus dashboard
    h2kbus --context keys/olga.json dashboard --websocket wss://bus.example:4280
    """
    settings = context.obj.settings("h2kbus-dashboard")
    page = PageSettings(
        websocket=websocket_url(settings, websocket),
        root=settings.root,
        submitter=settings.submitter(),
        inboxPrefix=settings.inbox_prefix or "",
        apiPrefix=settings.api_prefix,
    )
    run_async(_serve, PageServer(host, port, page), page, settings.token, context.obj.json)


async def _serve(server: PageServer, page: PageSettings, token: str | None, as_json: bool) -> None:
    with server:
        announce = functools.partial(_announce, server, page, token, as_json)
        await serve([functools.partial(_run, server)], announce)


async def _run(server: PageServer, *, task_status: TaskStatus[Drain]) -> None:
    stopped = threading.Event()
    task_status.started(stopped.set)
    try:
        await anyio.to_thread.run_sync(server.serve_until, stopped, abandon_on_cancel=True)
    finally:
        stopped.set()


def _announce(server: PageServer, page: PageSettings, token: str | None, as_json: bool) -> None:
    """The link goes to stdout only: it may hold the token, which no log should keep."""
    link = sign_in_link(server.address, token)
    if as_json:
        print_json({"url": server.address, "link": link, "websocket": page.websocket})
    else:
        print_line(link)
    say(f"serving the page for the bus at {page.websocket}; Ctrl-C ends it")
    host = str(server.server_address[0])
    if not is_loopback(host):
        say(f"{host} is not this machine's loopback: put TLS in front, or secrets cross the network readable")
