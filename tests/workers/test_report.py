"""The report that an operation writes: everything that it found, and no secret."""

import datetime as dt
from pathlib import Path

import msgspec

from tests.conftest import rehearsal
from workers.report import ActionLine, Report, write_report

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def test_report_holds_no_secret(tmp_path: Path) -> None:
    report = Report(
        job_id="job-1",
        operation="rehearse",
        attempt=1,
        started_at=NOW,
        ended_at=NOW,
        spec=rehearsal(vc_password="correct horse battery", seconds=1),
        actions=(ActionLine(action="work", outcome="applied", detail="opened with correct horse battery"),),
        image={"path": "/images/a.vmdk", "fetched_from": "https://root:letmein@esx/a.vmdk"},
        commands=("tool --password swordfish",),
    )
    write_report(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert [each for each in ("correct horse", "letmein", "swordfish") if each in text] == []
    told = msgspec.json.decode(text)
    assert told["spec"]["parameters"] == {"vc_password": "***", "seconds": 1}
    assert told["image"]["path"] == "/images/a.vmdk"
