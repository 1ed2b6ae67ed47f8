"""The campaign that the tests of real guests read their results from."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

import h2kbus
from tests.conftest import Program, environment, read_ready
from tests.guests.campaign import AT_ONCE, Campaign
from tests.guests.cases import CASES, OF_EACH_FAMILY, Case
from tests.guests.table import write_table


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case with `--guests all`, otherwise one of each family."""
    if "case" in metafunc.fixturenames:
        every = metafunc.config.getoption("--guests") == "all"
        chosen = [each for each in CASES if every or each.name in OF_EACH_FAMILY]
        metafunc.parametrize("case", chosen, ids=[each.name for each in chosen], scope="session")


def _selected(session: pytest.Session) -> list[Case]:
    specs = [
        each.callspec
        for each in session.items
        if isinstance(each, pytest.Function) and hasattr(each, "callspec")
    ]
    found = [each.params.get("case") for each in specs]
    return [each for each in CASES if each in found]


@pytest.fixture(scope="session")
async def campaign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Campaign]:
    """The selected cases, on a bus of their own whose worker proves what it can do."""
    place = tmp_path_factory.mktemp("guests")
    program = Program(environment(HOME=str(place), USER="tester"), place)
    words = ("up", "--json", "--port", "0", "--data-dir", place / "data", "--slots", AT_ONCE)
    with program.started(*words) as process:
        url = (await anyio.to_thread.run_sync(read_ready, process))["url"]
        async with h2kbus.connect(settings=program.settings(url=url), submitter="tester") as bus:
            run = Campaign(bus, place, _selected(request.session), _teller(request))
            async with anyio.create_task_group() as group:
                group.start_soon(run.run)
                yield run
                group.cancel_scope.cancel()
    written = request.config.getoption("--guests-table")
    if written:
        write_table(Path(written), run.outcomes)


def _teller(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tells people who wait for minutes what has come of what, between the tests' own dots."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    return reporter.write_line if reporter is not None else print
