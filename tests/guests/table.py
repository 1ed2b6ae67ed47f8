"""The table of what was measured, as it stands in the documentation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.guests.campaign import Boot, Outcome, Run
from tests.guests.cases import CASES, Case

BEGIN: Final = "<!-- measured by the tests of real guests -->"
END: Final = "<!-- end of what was measured -->"
_HEAD: Final = (
    "| operation | guest | broken by | boots before | what was done | boots after | second run |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def write_table(document: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write into the document's table what was measured now; a case that did not run keeps its row."""
    text = document.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    known = {_key(each): each for each in text[start:end].splitlines() if each.startswith("| `")}
    measured = [row(each, outcomes[each.name]) for each in CASES if each.name in outcomes]
    known |= {_key(each): each for each in measured}
    rows = [known[key] for key in ((f"`{each.operation}`", each.guest) for each in CASES) if key in known]
    document.write_text(f"{text[:start]}\n\n" + "\n".join([*_HEAD, *rows]) + f"\n\n{text[end:]}")


def _key(line: str) -> tuple[str, str]:
    operation, guest = line.split(" | ")[:2]
    return operation.removeprefix("| "), guest


def row(case: Case, outcome: Outcome) -> str:
    """One line of the table. There is no word in it that was not measured."""
    cells = (
        f"`{case.operation}`",
        case.guest,
        case.breakage,
        _boot(outcome.before),
        _run(outcome.first),
        _boot(outcome.after),
        _again(case, outcome),
    )
    return f"| {' | '.join(cells)} |"


def _boot(boot: Boot) -> str:
    return f"{'yes' if boot.boots else 'no'}: {boot.stage} ({boot.seconds:.0f} s)"


def _run(run: Run) -> str:
    if not run.completed:
        return f"failed: {run.error.partition(':')[0]}"
    applied = [name for name, outcome in run.actions.items() if outcome == "applied"]
    return f"{', '.join(applied) or 'nothing'} ({run.seconds:.0f} s)"


def _again(case: Case, outcome: Outcome) -> str:
    if not case.repeatable:
        return "converts again"
    if outcome.second is None:
        return "there was none"
    changed = [name for name, word in outcome.second.actions.items() if word not in {"not needed", "skipped"}]
    if changed or not outcome.second.completed:
        return f"not idempotent: {', '.join(changed) or outcome.second.error}"
    return f"not needed ({outcome.second.seconds:.0f} s)"
