"""The job of a manifest is submitted once more, as a new job."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from h2kbus.documents import Defaults, Document, read_documents
from subjects.codec import decode, encode
from subjects.spec import JobSpec
from tests.h2kbus.documents.conftest import Refuse

Job = dict[str, Any]


@pytest.fixture
def manifest(job: Job) -> Job:
    job["job_id"] = "first"
    job["created_at"] = "2026-03-01T12:00:00Z"
    return {
        "manifest_version": "1.0", "job_id": "first", "attempt": 1, "token": 7, "operation": job["operation"],
        "spec": job, "submitted_by": "ann", "worker_id": "w1", "host": "h", "h2kbus_version": "0.1.0",
        "state": "COMPLETED",
        **dict.fromkeys(("submitted_at", "started_at", "ended_at"), "2026-03-01T12:00:00Z"),
    }  # fmt: skip


def spec_of(manifest: Job) -> JobSpec:
    return decode(JobSpec, encode(manifest["spec"]))


def read_with(manifest: Job, place: Path, output_dir: str | None = None) -> Document:
    file = place / "manifest.json"
    file.write_bytes(encode(manifest))
    (document,) = read_documents(file, Defaults(requested_by="me", output_dir=output_dir))
    return document


def test_job_is_the_same_but_for_what_made_it_that_job(manifest: Job, tmp_path: Path) -> None:
    document = read_with(manifest, tmp_path)
    assert document.spec == msgspec.structs.replace(spec_of(manifest), job_id=None, created_at=None)
    assert document.warnings == ()


def test_results_go_to_the_directory_that_is_given(manifest: Job, tmp_path: Path) -> None:
    document = read_with(manifest, tmp_path, "/again")
    assert document.spec.artifacts.output_path == "/again"
    assert document.spec.audit == spec_of(manifest).audit


def test_job_whose_secrets_were_taken_out_is_refused(refuse: Refuse, manifest: Job) -> None:
    manifest["spec"]["parameters"] = {"source": {"vc_password": "***"}}
    assert refuse("manifest.json", manifest).path == "$.spec.parameters.source.vc_password"


@pytest.mark.parametrize("change", [{"spec": 7}, {"attempt": 0}, {"spec": {"operation": "convert"}}])
def test_what_is_no_manifest_is_refused(refuse: Refuse, manifest: Job, change: Job) -> None:
    refuse("manifest.json", manifest | change)
