"""What the campaign asks of the bus: jobs of every kind, from a seed."""

import random
from pathlib import Path
from typing import Final

from subjects.spec import ArtifactPolicy, Audit, ExecutionPolicy, ImageSpec, JobSpec

PLACES: Final = 3


def plan(rng: random.Random, number: int, place: Path) -> JobSpec:
    """One job. The same generator gives the same jobs."""
    job_id = f"job-{number}"
    # One in twenty wants a name that others want too, one in three no output at all.
    shared = rng.random() < 0.05
    name = f"shared-{rng.randrange(3)}" if shared else f"{job_id}.out" if rng.random() < 0.65 else None
    directory = "small" if not shared and rng.random() < 0.1 else "out"
    idempotent = rng.random() > 0.15
    # One in five reads from a host that stands no more than so many at once.
    limit = {f"source-host/esx-{rng.randrange(2)}": PLACES} if rng.random() < 0.2 else {}
    return JobSpec(
        operation="chaos",
        job_id=job_id,
        image=ImageSpec(path="/nowhere/disk.img"),
        artifacts=ArtifactPolicy(output_path=str(place / directory), log_upload=False),
        audit=Audit(requested_by="chaos"),
        execution_policy=ExecutionPolicy(
            retry_count=rng.choice((0, 1, 2, 3, 5)),
            idempotent=idempotent,
            priority=rng.choice((3, 5)),
        ),
        limit=limit,
        parameters={
            "ledger": str(place / "ledger.jsonl"),
            "seconds": rng.choice((0.02, 0.1, 0.3, 0.5, 3.0) if number % 4 == 0 else (0.02, 0.1, 0.3)),
            "name": name,
            "succeeds_at": rng.choice((1, 1, 1, 1, 1, 1, 1, 2)),
        },
    )
