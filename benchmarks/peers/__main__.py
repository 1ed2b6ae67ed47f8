"""`python -m benchmarks.peers`: h2kbus, the bare loop and five other queues, turn by turn."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers.contest import figures, goals, play, report
from benchmarks.peers.contestants import CONTESTANTS, ENVIRONMENT, PEERS, Turn, require_environment
from benchmarks.peers.servers import DURABILITY
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json
from h2kbus.errors import H2KBusError, SettingsError


def main(
    jobs: Annotated[int, typer.Option(min=10, help="No-op jobs of each turn.")] = 6000,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contestant.")] = 3,
    only: Annotated[str, typer.Option(help="Contestants, with commas [all].")] = "",
    durable: Annotated[
        list[str] | None, typer.Option(help="Durability: no, everysec or always; may be repeated [no].")
    ] = None,
    peers: Annotated[Path, typer.Option(help="The peers' environment.")] = ENVIRONMENT,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each durability.")] = False,
) -> None:
    """Measure, and print a table for each durability."""
    try:
        names = _chosen("--only", only.split(",") if only else list(CONTESTANTS), list(CONTESTANTS))
        kinds = _chosen("--durable", durable or ["no"], list(DURABILITY))
        if PEERS.keys() & set(names):
            require_environment(peers)
        for kind in kinds:
            turn = Turn(jobs=jobs, durability=DURABILITY[kind], peers=peers)
            scores = run_async(play, names, rounds, turn)
            found, wanted = figures(scores), goals(scores.rates)
            if json:
                print_json({"durable": kind, "jobs": jobs, "contestants": found, "goals": wanted})
            else:
                report(kind, DURABILITY[kind].outlives, found, wanted)
    except H2KBusError as error:
        raise SystemExit(f"bench-peers: {error}") from None


def _chosen(option: str, wanted: list[str], known: list[str]) -> list[str]:
    for each in wanted:
        if each not in known:
            raise SettingsError(f"{option} {each!r}: choose of {', '.join(known)}")
    return wanted


if __name__ == "__main__":
    typer.run(main)
