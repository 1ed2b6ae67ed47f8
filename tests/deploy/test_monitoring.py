"""The alert rules and the dashboard: valid, tested, and of metrics that exist and are documented."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.conftest import REPOSITORY

RULES: Final = REPOSITORY / "deploy" / "prometheus" / "h2kbus.rules.yaml"
RULE_TESTS: Final = RULES.with_name("h2kbus.rules.test.yaml")
SCRAPING: Final = RULES.with_name("prometheus.yaml")
DASHBOARD: Final = REPOSITORY / "deploy" / "grafana" / "h2kbus.json"
DOCUMENTED: Final = set(
    re.findall(r"^\| `(h2kbus_\w+)", (REPOSITORY / "docs" / "metrics.md").read_text(), re.MULTILINE)
)
PROMTOOL: Final = shutil.which("promtool", path=f"{REPOSITORY}/.venv/bin:{os.environ['PATH']}")


def promtool(*words: object) -> str:
    assert PROMTOOL is not None, "promtool is not installed: .ci/setup guests"
    argv = [PROMTOOL, *map(str, words)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def dashboard_queries() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", ()))


def queries() -> list[str]:
    return [*(rule["expr"] for rule in rules()), *dashboard_queries()]


def metrics_in(query: str) -> set[str]:
    """The names of a query's metrics, as they are documented: a histogram's without its endings."""
    return {re.sub(r"_(bucket|sum|count)$", "", each) for each in re.findall(r"\bh2kbus_\w+", query)}


def test_rules_are_valid() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.slow
def test_rules_do_what_their_tests_say() -> None:
    promtool("test", "rules", RULE_TESTS)


def test_scrape_configuration_is_valid() -> None:
    promtool("check", "config", SCRAPING)


def test_every_alert_is_seen_to_fire_and_seen_not_to() -> None:
    fires: dict[bool, set[str]] = {True: set(), False: set()}
    for each in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for case in each["alert_rule_test"]:
            fires[bool(case.get("exp_alerts"))].add(case["alertname"])
    names = {rule["alert"] for rule in rules()}
    assert fires == {True: names, False: names}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("query", queries())
def test_every_metric_that_is_asked_for_is_documented(query: str) -> None:
    """`tests/h2kbus/test_metrics.py` holds that what is documented is what there is."""
    assert metrics_in(query) <= DOCUMENTED
    assert metrics_in(query) or "process_" in query


def test_every_metric_is_on_the_dashboard_or_in_a_rule_or_a_worker_s_own() -> None:
    asked = set().union(*map(metrics_in, queries()))
    assert {each for each in DOCUMENTED - asked if not each.startswith("h2kbus_worker_")} == set()


def test_every_query_of_the_dashboard_is_one_that_prometheus_understands(tmp_path: Path) -> None:
    """As rules that record it, with Grafana's own variables filled in."""
    filled = [each.replace("$__rate_interval", "5m") for each in dashboard_queries()]
    recording = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(filled)]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recording}]}))
    assert f"{len(recording)} rules found" in promtool("check", "rules", file)


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboard_is_tied_to_no_data_source() -> None:
    used = {target["datasource"]["uid"] for panel in panels() for target in panel.get("targets", ())}
    assert used == {"${datasource}"}


def test_compose_serves_what_prometheus_scrapes() -> None:
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    [job] = yaml.safe_load(SCRAPING.read_text())["scrape_configs"]
    [lookup] = job["dns_sd_configs"]
    for name in lookup["names"]:
        assert services[name]["environment"]["H2KBUS_METRICS_PORT"] == lookup["port"]
    serving = {
        name for name, each in services.items() if "H2KBUS_METRICS_PORT" in each.get("environment", {})
    }
    assert set(lookup["names"]) == serving
