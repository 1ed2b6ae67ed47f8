"""How a worker of this machine is to be, as the command line says it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from subjects.spec import DEFAULT_POOL
from subjects.topology import REPROBE_SECONDS

if TYPE_CHECKING:
    from workers.site import Site

MAX_SLOTS: Final = 10
DEFAULT_SLOTS: Final = min(MAX_SLOTS, os.cpu_count() or 1)
DEFAULT_GRACE: Final = 30.0

Slots = Annotated[int, typer.Option(min=1, max=MAX_SLOTS, help="Jobs at once, for each worker.")]
Grace = Annotated[float, typer.Option(min=0, help="Seconds that running jobs get to end after Ctrl-C.")]
Confinement = Annotated[
    bool, typer.Option("--require-confinement", help="Do not start where tools cannot be confined.")
]
VerifyKeys = Annotated[
    Path | None,
    typer.Option(help="Execute only jobs that one of these public keys has signed; one on a line."),
]
ImageRoots = Annotated[
    list[Path],
    typer.Option(
        "--image-root",
        envvar="H2KBUS_IMAGE_ROOTS",
        help="Read images below this directory only; repeatable [any path].",
    ),
]
OutputRoots = Annotated[
    list[Path],
    typer.Option(
        "--output-root",
        envvar="H2KBUS_OUTPUT_ROOTS",
        help="Write results below this directory only; repeatable [any path].",
    ),
]
"""The variables separate directories by colons."""


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker of this machine is to be."""

    pool: str = DEFAULT_POOL
    slots: int = DEFAULT_SLOTS
    grace: float = DEFAULT_GRACE
    switches: dict[str, bool] = {}
    max_disk_size_tb: float = 0.0
    reprobe_seconds: float = REPROBE_SECONDS
    image_roots: tuple[Path, ...] = ()
    output_roots: tuple[Path, ...] = ()
    trusted_keys: frozenset[str] | None = None

    @property
    def site(self) -> "Site":
        """What its jobs may reach. Raises SettingsError for a root that is no directory."""
        from workers.site import Site

        return Site.of(self.image_roots, self.output_roots, self.max_disk_size_tb)
