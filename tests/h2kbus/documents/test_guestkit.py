import datetime as dt
from typing import Any

import pytest

from tests.h2kbus.documents.conftest import Read, Refuse

Envelope = dict[str, Any]


@pytest.fixture
def envelope() -> Envelope:
    return {
        "version": "1.0",
        "kind": "VMOperation",
        "operation": "guestkit.inspect",
        "payload": {"type": "guestkit.inspect.v1", "data": {"image": {"path": "/vms/a.qcow2"}}},
    }


def test_the_least_envelope_is_a_job_without_warnings(read: Read, envelope: Envelope) -> None:
    (document,) = read("job.json", envelope)
    spec = document.spec
    assert document.warnings == ()
    assert (spec.operation, spec.image.path) == ("inspect", "/vms/a.qcow2")
    assert (spec.job_id, spec.created_at) == (None, None)
    assert (spec.audit.requested_by, spec.artifacts.output_path) == ("carol", "/default/out")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("guestkit.inspect", "inspect"),
        ("guestkit.fix", "offline_fix"),
        ("hyper2kvm.convert", "convert"),
        ("hyper2kvm.initramfs_regenerate", "initramfs_regenerate"),
    ],
)
def test_dotted_operations_are_mapped(read: Read, envelope: Envelope, theirs: str, ours: str) -> None:
    envelope["operation"] = theirs
    envelope["payload"]["type"] = f"{theirs}.v1"
    assert read("job.json", envelope)[0].spec.operation == ours


@pytest.mark.parametrize("operation", ["guestkit.profile", "system.echo", "inspect", "", None])
def test_an_operation_without_counterpart_is_refused(
    refuse: Refuse, envelope: Envelope, operation: str | None
) -> None:
    envelope["operation"] = operation
    assert refuse("job.json", envelope).path == "$.operation"


@pytest.mark.parametrize("kind", ["guestkit.inspect.v2", "guestkit.convert.v1", "v1", 1])
def test_another_payload_is_refused(refuse: Refuse, envelope: Envelope, kind: Any) -> None:
    envelope["payload"]["type"] = kind
    assert refuse("job.json", envelope).path == "$.payload.type"


def test_execution_is_mapped_and_priority_inverted(read: Read, envelope: Envelope) -> None:
    envelope["execution"] = {
        "idempotency_key": "weekly-1",
        "max_attempts": 3,
        "timeout_seconds": 900,
        "priority": 9,
    }
    (document,) = read("job.json", envelope)
    policy = document.spec.execution_policy
    assert document.spec.job_id == "weekly-1"
    assert (policy.retry_count, policy.timeout_seconds, policy.priority) == (2, 900, 2)
    assert document.warnings == ()


def test_more_attempts_than_allowed_are_cut_with_a_warning(read: Read, envelope: Envelope) -> None:
    envelope["execution"] = {"max_attempts": 50}
    (document,) = read("job.json", envelope)
    assert document.spec.execution_policy.retry_count == 5
    assert document.warnings[0].startswith("$.execution.max_attempts: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", 11), ("priority", 0), ("priority", "9"), ("max_attempts", 0), ("timeout_seconds", 5)],
)
def test_an_error_names_the_field_of_the_envelope(
    refuse: Refuse, envelope: Envelope, field: str, value: Any
) -> None:
    envelope["execution"] = {field: value}
    assert refuse("job.json", envelope).path == f"$.execution.{field}"


def test_a_key_that_cannot_be_an_id_is_a_warning(read: Read, envelope: Envelope) -> None:
    envelope |= {"execution": {"idempotency_key": "a.b"}, "job_id": "job-2"}
    (document,) = read("job.json", envelope)
    assert document.spec.job_id == "job-2"
    assert document.warnings[0].startswith("$.execution.idempotency_key: ")


def test_the_key_goes_before_the_id(read: Read, envelope: Envelope) -> None:
    envelope |= {"execution": {"idempotency_key": "key"}, "job_id": "job-2"}
    (document,) = read("job.json", envelope)
    assert document.spec.job_id == "key"
    assert document.warnings == ("$.job_id: the idempotency key is the job's id instead",)


def test_known_capabilities_are_needs_and_others_are_warnings(read: Read, envelope: Envelope) -> None:
    envelope["constraints"] = {
        "required_capabilities": ["guestkit.inspect", "fs.lvm", "disk.nbd", "gpu"],
        "required_features": ["selinux"],
    }
    (document,) = read("job.json", envelope)
    needs = document.spec.capability_requirements
    assert (needs.needs_lvm, needs.needs_nbd, needs.needs_mount, needs.needs_selinux_tools) == (
        True,
        True,
        False,
        True,
    )
    assert document.warnings == (
        "$.constraints.required_capabilities[3]: 'gpu' is no capability here, ignored",
    )


def test_the_worker_pool_is_the_pool(read: Read, envelope: Envelope) -> None:
    envelope["routing"] = {"worker_pool": "pool-prod", "worker_id": None}
    (document,) = read("job.json", envelope)
    assert (document.spec.pool, document.warnings) == ("pool-prod", ())


def test_a_pool_that_cannot_be_named_here_is_refused(refuse: Refuse, envelope: Envelope) -> None:
    envelope["routing"] = {"worker_pool": "Pool.A"}
    assert refuse("job.json", envelope).path == "$.routing.worker_pool"


def test_a_conversion_has_its_target(read: Read, envelope: Envelope) -> None:
    envelope["operation"] = "guestkit.convert"
    envelope["payload"] = {
        "type": "guestkit.convert.v1",
        "data": {
            "source": {"path": "/vms/a.vmdk", "format": "VMDK", "checksum": "sha256:..."},
            "target": {"path": "/out/b.qcow2", "format": "qcow2", "compression": True},
        },
    }
    (document,) = read("job.json", envelope)
    spec = document.spec
    assert (spec.image.format, spec.image.checksum, spec.artifacts.output_path) == ("vmdk", None, "/out")
    assert spec.parameters == {"output_name": "b.qcow2", "output_format": "qcow2", "compress": True}
    assert document.warnings == (
        "$.payload.data.source.checksum: the checksum is elided, so nothing is verified by it",
    )


def test_repairs_are_actions(read: Read, envelope: Envelope) -> None:
    envelope["operation"] = "guestkit.fix"
    envelope["payload"]["type"] = "guestkit.fix.v1"
    envelope["payload"]["data"]["operations"] = [{"type": "fsck", "options": {"auto_repair": True}}]
    (document,) = read("job.json", envelope)
    assert document.spec.requested_actions == ("fsck",)
    assert document.warnings == (
        "$.payload.data.operations[0].options.auto_repair: has no counterpart here, ignored",
    )


def test_people_tickets_and_labels_are_the_audit(read: Read, envelope: Envelope) -> None:
    envelope["metadata"] = {
        "labels": {"team": "ops"},
        "annotations": {"ticket": "INC-1", "requested_by": "alice"},
    }
    audit = read("job.json", envelope)[0].spec.audit
    assert (audit.requested_by, audit.ticket, audit.tags) == ("alice", "INC-1", {"team": "ops"})


def test_deadline_is_the_jobs(read: Read, envelope: Envelope) -> None:
    envelope["execution"] = {"deadline": "2026-01-30T14:00:00Z"}
    (document,) = read("job.json", envelope)
    assert document.spec.execution_policy.deadline == dt.datetime(2026, 1, 30, 14, tzinfo=dt.UTC)


def test_every_other_field_is_reported_by_path(read: Read, envelope: Envelope) -> None:
    envelope |= {
        "metadata": {"name": "scan"},
        "execution": {"cancellable": True},
        "constraints": {"require_privileged": True},
        "routing": {"affinity": {"disk_locality": "/vms"}},
        "observability": {"trace_id": "t", "span_id": None},
        "audit": {"submitted_from": "10.0.1.50"},
    }
    envelope["payload"]["data"] |= {"options": {"deep": True}, "output": {"destination": "/o/r.json"}}
    (document,) = read("job.json", envelope)
    assert document.spec.artifacts.output_path == "/o"
    assert {warning.split(":")[0] for warning in document.warnings} == {
        "$.metadata.name",
        "$.execution.cancellable",
        "$.constraints.require_privileged",
        "$.routing.affinity.disk_locality",
        "$.observability.trace_id",
        "$.audit.submitted_from",
        "$.payload.data.options.deep",
        "$.payload.data.output.destination",
    }


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({}, "$.payload.data.image"),
        ({"image": {"format": "vmdk"}}, "$.payload.data.image"),
        ({"image": {"path": 1}}, "$.payload.data.image.path"),
        ({"image": "disk"}, "$.payload.data.image"),
        ({"source": {"path": "/a", "format": "ova"}}, "$.payload.data.source.format"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_by_its_own_path(
    refuse: Refuse, envelope: Envelope, data: Any, path: str
) -> None:
    envelope["payload"]["data"] = data
    assert refuse("job.json", envelope).path == path
