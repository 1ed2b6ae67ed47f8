"""The JSON report of a job: one line per action, and everything needed to repeat it by hand."""

import datetime as dt
from pathlib import Path
from typing import Any, Literal

import msgspec

from h2kbus.redaction import Redactor
from subjects.spec import JobSpec
from workers.joblog import JobLog, encodable
from workers.outputs import output_errors
from workers.scratch import fresh

Outcome = Literal["applied", "not needed", "skipped", "failed"]


class ActionLine(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one action, and why."""

    action: str
    outcome: Outcome
    detail: str = ""


class ActionNotes:
    """What became of each action so far, told to the job's log as well."""

    def __init__(self, log: JobLog) -> None:
        self.lines: list[ActionLine] = []
        self._log = log

    def add(self, action: str, outcome: Outcome, detail: str) -> None:
        self.lines.append(ActionLine(action=action, outcome=outcome, detail=detail))
        self._log.line(f"{action}: {outcome} ({detail})")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation found and did. `image` and `output` are facts about the files, sizes in bytes."""

    job_id: str
    operation: str
    attempt: int
    started_at: dt.datetime
    ended_at: dt.datetime
    spec: JobSpec
    actions: tuple[ActionLine, ...]
    image: dict[str, Any]
    output: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    tools: dict[str, str] = {}
    commands: tuple[str, ...] = ()


def write_report(report: Report, path: Path) -> None:
    """Write the report as indented JSON, without secrets. Raises OUTPUT_UNWRITABLE or NO_SPACE."""
    told = Redactor.of(report.spec.parameters).value(msgspec.to_builtins(report))
    with output_errors(path), fresh(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(encodable(told)), indent=2) + b"\n")
