"""How a command ends: exit codes, and one line for each error."""

import enum
import sys
from typing import Final, Self

from h2kbus.cli.output import printable
from h2kbus.errors import (
    BusError,
    DuplicateJob,
    H2KBusError,
    InvalidMessage,
    InvalidSubject,
    JobFinished,
    JobNotFound,
    OperationFailed,
    SettingsError,
    WorkerNotFound,
)
from h2kbus.logs import is_json, log


class Exit(enum.IntEnum):
    """The exit codes of every command, and what each means."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        made = int.__new__(cls, value)
        made._value_ = value
        made.meaning = meaning
        return made

    DONE = 0, "done"
    JOB_FAILED = (
        1,
        "the job ended FAILED or CANCELLED; `doctor` or `artifacts --verify` found something wrong",
    )
    USAGE = 2, "bad usage, or an invalid job (the message has the field's path)"
    BUS = 3, "the bus is not reachable, refuses us, or cannot be used"
    NO_SUCH_JOB = 4, "no such job"
    INTERNAL = 70, "a defect of h2kbus"
    INTERRUPTED = 130, "interrupted by Ctrl-C"


EXITS: Final[tuple[tuple[type[H2KBusError], Exit], ...]] = (
    (JobNotFound, Exit.NO_SUCH_JOB),
    (BusError, Exit.BUS),
    (InvalidMessage, Exit.USAGE),
    (InvalidSubject, Exit.USAGE),
    (SettingsError, Exit.USAGE),
    (DuplicateJob, Exit.USAGE),
    (JobFinished, Exit.USAGE),
    (WorkerNotFound, Exit.USAGE),
    (OperationFailed, Exit.JOB_FAILED),
    (H2KBusError, Exit.INTERNAL),
)


def exit_code(error: H2KBusError) -> Exit:
    """The first line of the table that fits."""
    return next(code for kind, code in EXITS if isinstance(error, kind))


def explain(error: H2KBusError, about: str = "") -> None:
    """Say on one line of stderr what went wrong and what to do."""
    say(f"{about}{error.error_code}: {error}. {error.advice}")


def say(words: str) -> None:
    """One line for people, on stderr; stdout is for results. A process that logs in JSON says it there."""
    line = " ".join(words.split())
    if is_json():
        log.info("%s", line)
        return
    sys.stderr.write(f"h2kbus: {printable(line)}\n")
    sys.stderr.flush()
