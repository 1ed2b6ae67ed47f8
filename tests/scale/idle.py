"""Idle workers, many in one process: `python -m tests.scale.idle URL FIRST COUNT`."""

import functools
import sys

import anyio

from h2kbus.connection import connect
from h2kbus.plugins import load_catalog
from h2kbus.settings import ConnectionSettings
from subjects.catalog import OperationCatalog
from subjects.grammar import Grammar
from subjects.topology import Topology
from tests.conftest import worker_profile
from workers.service import Worker


async def main(url: str, first: int, count: int) -> None:
    catalog = load_catalog([])
    async with anyio.create_task_group() as group:
        for number in range(first, first + count):
            group.start_soon(functools.partial(_work, url, number, catalog))


async def _work(url: str, number: int, catalog: OperationCatalog) -> None:
    settings = ConnectionSettings(url=url, connect_timeout_seconds=60)
    async with connect(settings) as connection:
        profile = worker_profile(f"idle-{number}", tokens=("qemu-img",))
        worker = Worker(connection, Topology(Grammar(settings.root)), catalog, profile)
        await worker.serve(grace=0.0)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
