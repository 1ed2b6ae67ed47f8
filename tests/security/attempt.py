"""A worker's part, as a program: it runs one tool, confined or not, and prints how that ended, as JSON.

A program of its own so that it can run as an unprivileged user, as workers do. Its argument is JSON.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from h2kbus.errors import OperationFailed
from workers.joblog import JobLog
from workers.limits import ToolLimits
from workers.process import ToolRunner
from workers.sandbox import Allowance


async def attempt(wanted: dict[str, Any]) -> str:
    """What the tool said, or the words of its failure."""
    descriptor = os.open(wanted["source"], os.O_RDONLY)
    known = {**wanted["known"], "descriptor": descriptor}
    argv = ["/usr/bin/python3", "-I", wanted["program"], wanted["attack"], json.dumps(known)]
    allowance = Allowance(
        limits=msgspec.convert(wanted["limits"], ToolLimits),
        readable=tuple(map(Path, wanted["readable"])),
        host=not wanted["confined"],
    )
    with JobLog(Path(os.devnull)) as log:
        tools = ToolRunner(log, Path(wanted["scratch"]), confined=wanted["confined"])
        try:
            output = await tools.run(argv, allowance=allowance, pass_fds=[descriptor], timeout=60)
        except OperationFailed as failure:
            return f"stopped: {failure}"
    return output.stdout.decode().strip()


if __name__ == "__main__":
    sys.stdout.write(asyncio.run(attempt(json.loads(sys.argv[1]))))
