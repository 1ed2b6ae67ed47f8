"""Short campaigns with fixed seeds: the fleet keeps its promises, and a broken one is caught."""

from pathlib import Path

import pytest

from tests.chaos.__main__ import summary
from tests.chaos.campaign import Plan, run
from tests.chaos.cluster import FAKETIME

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(300)]

SUSPENDED = ("worker suspended for longer than its lease", "network swallows everything")


@pytest.mark.parametrize("seed", [11, 12])
async def test_every_promise_is_kept_under_faults(tmp_path: Path, seed: int) -> None:
    report = await run(Plan(seed=seed, jobs=500, faults=60, every=0.8), tmp_path / "campaign")
    assert report.violations == [], summary(report)


async def test_rolling_restart_loses_and_repeats_nothing(tmp_path: Path) -> None:
    kinds = ("worker drained", "scheduler drained")
    report = await run(Plan(seed=13, jobs=300, faults=20, every=1, kinds=kinds), tmp_path / "campaign")
    assert report.violations == [], summary(report)


SEEDS_OF_BROKEN = (3, 4, 5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("variant", "kinds", "promise"),
    [
        ("no-fencing", SUSPENDED, "outputs are those recorded"),
        ("blind-writes", SUSPENDED, "nothing follows the end"),
        ("early-acks", ("worker killed",), "every job ends"),
        ("no-image-locks", (), "what completed has its output"),
    ],
)
async def test_broken_variant_is_caught(
    tmp_path: Path, variant: str, kinds: tuple[str, ...], promise: str
) -> None:
    """By one of a few campaigns: whether a fault hits what is broken depends on the moment."""
    told = []
    for seed in SEEDS_OF_BROKEN:
        faults = 14 if kinds else 0
        plan = Plan(seed=seed, jobs=160, faults=faults, every=1.2, calm=8, kinds=kinds, variant=variant)
        report = await run(plan, tmp_path / f"campaign-{seed}")
        if promise in {each.promise for each in report.violations}:
            return
        told.append(summary(report))
    pytest.fail("\n".join(told))


def test_clocks_can_be_stepped() -> None:
    assert FAKETIME is not None, "install the Debian package faketime: .ci/setup does"
