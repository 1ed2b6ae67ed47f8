"""Ask the advisory services about every locked package: `make audit`, and continuous integration.

Python's lock files are asked about by pip-audit, npm's (`package-lock.json`) at OSV. Exit code 1 for a
package with a known vulnerability that is not in `.ci/audit-ignored`, 2 for bad usage. Where a service cannot
be asked, that is said in so many words and is no failure: a build must not depend on it.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

_OSV = "https://api.osv.dev/v1/querybatch"
_MOST = 1000
"""How many packages OSV takes in one question."""
_IGNORED = Path(__file__).with_name("audit-ignored")


class NotAsked(Exception):
    """The service gave no answer; the sentence says why."""


class Answer(NamedTuple):
    """What the service said of a lock file's packages, by name."""

    known: dict[str, list[str]]
    unasked: dict[str, str]
    asked: int


def main() -> int:
    """Audit the lock files of the command line, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("locks", nargs="+", type=Path)
    parser.add_argument("--program", default=str(Path(sys.executable).with_name("pip-audit")))
    parser.add_argument("--osv", default=_OSV, help="where OSV answers questions about npm's packages")
    parser.add_argument("--ignored", type=Path, default=_IGNORED)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for each lock file")
    given = parser.parse_args()
    ignored = read_ignored(given.ignored)
    vulnerable = [lock for lock in given.locks if audited(given, lock, ignored)]
    return 1 if vulnerable else 0


def audited(given: argparse.Namespace, lock: Path, ignored: list[str]) -> bool:
    """Whether a lock file has a package with a known vulnerability. Everything is told."""
    try:
        if lock.suffix == ".json":
            answer = ask_osv(given.osv, lock, ignored, given.deadline)
        else:
            answer = ask(given.program, lock, ignored, given.deadline)
    except NotAsked as reason:
        say(f"{lock}: NOT AUDITED: the advisory service could not be asked: {reason}")
        return False
    for package, advisories in answer.known.items():
        say(f"{lock}: VULNERABLE: {package}: {', '.join(advisories)}")
    if answer.unasked:
        some = next(iter(answer.unasked.values()))
        say(f"{lock}: NOT AUDITED: {len(answer.unasked)} of {answer.asked} packages: {some}")
    elif not answer.known:
        say(f"{lock}: no known vulnerability in {answer.asked} packages")
    return bool(answer.known)


def ask(program: str, lock: Path, ignored: list[str], deadline: float) -> Answer:
    """Run pip-audit over one lock file. Raises NotAsked."""
    argv = [program, "--requirement", str(lock), "--disable-pip", "--require-hashes", "--format", "json"]
    argv += ["--progress-spinner", "off", "--timeout", "10"]
    argv += [word for each in ignored for word in ("--ignore-vuln", each)]
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=deadline)
        said: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        raise NotAsked(f"no answer within {deadline:g} s") from None
    except (ValueError, LookupError, TypeError):
        words = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotAsked(words[-1][:300] if words else f"{program} said nothing") from None
    return read_answer(said)


def ask_osv(url: str, lock: Path, ignored: list[str], deadline: float) -> Answer:
    """Ask OSV about npm's packages in a lock file; `deadline` bounds each silence. Raises NotAsked."""
    packages = read_npm(lock)
    found: list[dict[str, Any]] = []
    try:
        for start in range(0, len(packages), _MOST):
            some = packages[start : start + _MOST]
            queries = [{"package": {"name": n, "ecosystem": "npm"}, "version": v} for n, v in some]
            body = json.dumps({"queries": queries}).encode()
            # The address is the one above, or given by whoever runs this.
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=deadline) as answer:  # noqa: S310
                found += json.load(answer)["results"]
        advisories = [[one["id"] for one in each.get("vulns", ())] for each in found]
        told = zip(packages, advisories, strict=True)
        known = {f"{n} {v}": [one for one in ids if one not in ignored] for (n, v), ids in told}
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise NotAsked(f"{type(error).__name__}: {error}"[:300]) from None
    return Answer({package: ids for package, ids in known.items() if ids}, {}, len(packages))


def read_npm(lock: Path) -> list[tuple[str, str]]:
    """Name and version of each package that a `package-lock.json` names, once."""
    entries: dict[str, dict[str, Any]] = json.loads(lock.read_text(encoding="utf-8"))["packages"]
    found = {
        (each.get("name", path.rpartition("node_modules/")[2]), each["version"])
        for path, each in entries.items()
        if "node_modules/" in path and "version" in each
    }
    return sorted(found)


def read_answer(said: list[dict[str, Any]]) -> Answer:
    """Sort pip-audit's dependencies: with advisories, not asked about, and all."""
    known = {
        f"{each['name']} {each['version']}": [one["id"] for one in each["vulns"]]
        for each in said
        if each.get("vulns")
    }
    unasked = {each["name"]: each["skip_reason"] for each in said if "skip_reason" in each}
    return Answer(known, unasked, len(said))


def read_ignored(path: Path) -> list[str]:
    """The advisories that are left out, one a line, each followed by the reason. Exits for one without."""
    ignored = []
    for line in path.read_text(encoding="utf-8").splitlines():
        advisory, _, reason = line.partition(" ")
        if not line or line.startswith("#"):
            continue
        if not reason.strip():
            say(f"{path}: {advisory} is left out without a reason")
            sys.exit(2)
        ignored.append(advisory)
    return ignored


def say(words: str) -> None:
    """One line for people."""
    sys.stdout.write(f"audit: {words}\n")


if __name__ == "__main__":
    sys.exit(main())
