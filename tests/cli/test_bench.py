"""The benchmark's conversions are real ones, and none of its matrix is left out."""

import itertools

import pytest

from h2kbus.cli.bench import convert


@pytest.mark.anyio
@pytest.mark.slow
async def test_every_source_goes_to_every_target_from_a_sparse_and_a_full_disk() -> None:
    found = await convert.measure(size_mib=8, rounds=1)
    cells = [(each["disk"], each["source"], each["target"]) for each in found["cells"]]
    names = [each.name for each in convert.SOURCES], [each.name for each in convert.TARGETS]
    assert cells == list(itertools.product(convert.DENSITY, *names))
    assert all(each[figure] > 0 for each in found["cells"] for figure in ("defaults", "options", "proven"))
