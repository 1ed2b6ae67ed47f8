"""What every field of the contract means, with an example: the words of the schemas and of the reference.

They stand here, and not at the fields, so that the structs can be read at a glance. A test holds the table
complete, and every example against its field.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from subjects.commands import CancelCommand, RetryCommand
from subjects.events import ProgressEvent
from subjects.fleet import LaneAnnouncement, WorkerCapabilities, WorkerOrder, WorkerSecurity
from subjects.lease import Lease
from subjects.limits import Ceiling, Place
from subjects.locks import ImageLock
from subjects.manifest import DiskFacts, KeptObject, Manifest
from subjects.parameter_meanings import OF_PARAMETERS, Meaning
from subjects.quota import Quota, Refusal
from subjects.record import DeadLetter, JobRecord, LaneMessage, ProgressSummary, Transition
from subjects.result import JobError, JobResult, Metrics, Outputs
from subjects.signature import Signature
from subjects.spec import ArtifactPolicy, Audit, CapabilityRequirements, ExecutionPolicy, ImageSpec, JobSpec

_JOB: Final = "01m86d6v5j898fccsxnf"
_KEY: Final = "UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK"
_SIGNED: Final = "iOf02EoiaH98IPBgXQYefAkZoiyI7QQxDYrSyikV0zjKEXOY7JO8iEfdwFkepTlwzV6hcnaJj/Y8F2w1Z+YLBw=="
_SUM: Final = "5f" * 32
_NOW: Final = "2026-11-25T18:30:00Z"
_LATER: Final = "2026-11-25T18:31:30Z"

_OF_JOBS: Final[Mapping[type[msgspec.Struct], Mapping[str, Meaning]]] = {
    ImageSpec: {
        "path": ("Where the image lies on the worker's host.", "/images/mail2.vmdk"),
        "format": ("Its format, which it then must have. Without it, what its content says.", "vmdk"),
        "checksum": ("SHA-256 of the file, held against it before anything is done.", "sha256:" + "5f" * 32),
        "size_bytes": ("Size of the file, held against it before anything is done.", 2147483648),
    },
    CapabilityRequirements: {
        "needs_nbd": ("Ask for a worker with the capability `nbd`.", False),
        "needs_lvm": ("Ask for a worker with the capability `lvm`.", False),
        "needs_mount": ("Ask for a worker with the capability `mount`.", False),
        "needs_selinux_tools": ("Ask for a worker with the capability `selinux-tools`.", False),
        "min_memory_gb": ("Memory of the worker's host, in 10^9 bytes.", 8),
        "min_disk_space_gb": ("Free space where `output_path` points, in 10^9 bytes.", 100),
    },
    ExecutionPolicy: {
        "retry_count": ("Further attempts after one that failed with a retryable code.", 2),
        "timeout_seconds": ("The longest that one attempt may take.", 7200),
        "idempotent": ("Whether it may start a second time at all, as `retry_count` allows.", True),
        "priority": ("1 is the most urgent; within a worker it is strict.", 5),
        "deadline": ("A job that has not ended by then FAILED; by the server's clock.", _LATER),
        "not_before": ("A job does not start before. By the server's clock.", _NOW),
    },
    ArtifactPolicy: {
        "output_path": ("Directory on the worker's host for all that the job writes.", "/images/out"),
        "log_upload": ("Whether the log is also put on the bus, where `h2kbus logs` finds it.", True),
        "store_fixed_image": ("Whether the resulting image is kept, or only its report.", True),
        "keep_intermediates": ("Whether files of the steps between are kept beside the result.", False),
    },
    Audit: {
        "requested_by": ("Who wants the job, as people write it.", "ann"),
        "ticket": ("What the job belongs to in another system.", "MIG-1207"),
        "tags": ("Names and values of the submitter's own.", {"wave": "3"}),
    },
    Signature: {
        "key": ("Public key of the signer.", _KEY),
        "value": ("64 bytes of ed25519, as base64; the reference's README says over what.", _SIGNED),
    },
    JobSpec: {
        "operation": ("What to do: one of the built-in operations, or a plug-in's.", "convert"),
        "image": ("The image to work on; it is only read.",),
        "artifacts": ("Where results go.",),
        "audit": ("Who asked for it and why.",),
        "version": ("Version of the protocol; another major version is refused.", "1.0"),
        "job_id": ("Name of the job. The subject has it too; `h2kbus submit` chooses one.", _JOB),
        "created_at": ("When the submitter wrote it.", _NOW),
        "pool": ("Which workers may have it: those started with `--pool`.", "default"),
        "limit": ("For each label how many jobs that bear it may run at once.", {"source-host/esx-07": 4}),
        "requested_actions": ("Actions of the operation to carry out; none: all of them.", ["convert"]),
        "capability_requirements": ("What its worker needs beyond what the operation needs.",),
        "execution_policy": ("How often, how long and how urgently.",),
        "parameters": ("The operation's own parameters; unknown ones are refused.", {"compress": False}),
        "signature": ("Vouches for all the other fields; `job_id` and `created_at` are there then.",),
    },
    CancelCommand: {"reason": ("Why, for the audit trail.", "no longer needed")},
    RetryCommand: {
        "parent": ("The finished job to run again; the new job's id stands in the subject.", _JOB),
        "created_at": ("`created_at` of the new job, where it is signed.", _NOW),
        "signature": ("Over the parent's job under its new id.",),
    },
    Outputs: {
        "fixed_image": ("Path of the resulting image.", "/images/out/mail2.qcow2"),
        "report": ("Path of the report (JSON).", f"/images/out/{_JOB}.report.json"),
        "logs": ("Path of the log, or its object in the artifact store.", f"/images/out/{_JOB}.log"),
        "intermediates": ("Paths of further files that were kept.", []),
    },
    Metrics: {
        "execution_seconds": ("Wall time of the attempt.", 41.7),
        "phase_seconds": ("Wall time of each phase.", {"convert": 30.2, "compare": 9.8}),
        "disk_read_bytes": ("What the operation's tools have read.", 2149580800),
        "disk_write_bytes": ("What the operation's tools have written.", 811073536),
    },
    JobError: {
        "code": ("One of the codes in error-codes.md.", "NO_SPACE"),
        "message": ("What happened, in one sentence.", "/images/out has no room for 3 GiB"),
        "phase": ("The operation's phase that it happened in.", "convert"),
        "details": ("Facts for programs; which, depends on the code.", {"needed_bytes": 3221225472}),
        "stack_trace": ("For defects only.", None),
    },
    JobResult: {
        "job_id": ("The job.", _JOB),
        "status": ("The state that the job ended in.", "COMPLETED"),
        "completed_at": ("When it ended.", _LATER),
        "worker_id": ("Who ended it; null if no worker did.", "host-7"),
        "retry_attempt": ("Number of the last attempt, counted from 0.", 0),
        "outputs": ("The files that it left.",),
        "metrics": ("What it took.",),
        "error": ("Why it ended without success; null for COMPLETED.",),
        "warnings": ("What was left undone or allowed, in sentences.", []),
        "summary": ("The operation's own facts, those of its report in short.", {"compare": "equal"}),
        "manifest_sha256": ("SHA-256 of the attempt's manifest in the object store, in hex.", _SUM),
    },
    DiskFacts: {
        "path": ("Where it lies on the worker's host.", "/images/mail2.qcow2"),
        "format": ("Its format.", "qcow2"),
        "file_bytes": ("Size of the file.", 1380974592),
        "virtual_size": ("Size of the disk that it holds.", 2147483648),
        "sha256": ("SHA-256 of the file, in hex, if the job gave or asked for it.", _SUM),
    },
    KeptObject: {
        "name": ("Its name in the object store.", f"{_JOB}/1/log"),
        "size": ("Its size in bytes.", 4096),
        "sha256": ("Its SHA-256, in hex.", _SUM),
    },
    Manifest: {
        "job_id": ("The job.", _JOB),
        "attempt": ("Number of the attempt; the first one is 1.", 1),
        "token": ("Fencing token of the attempt's lease.", 4711),
        "operation": ("What was done.", "convert"),
        "spec": ("The job as it was submitted, with `***` for its secrets.",),
        "submitted_by": ("Who submitted it.", "ana"),
        "worker_id": ("Who carried it out.", "host-7"),
        "host": ("Name of the worker's host.", "host-7.example"),
        "h2kbus_version": ("Version of the worker.", "0.1.0"),
        "submitted_at": ("When the job was submitted.", _NOW),
        "started_at": ("When the attempt began.", _NOW),
        "ended_at": ("When it ended.", _LATER),
        "state": ("What the job came to by it.", "COMPLETED"),
        "manifest_version": ("Version of this document.", "1.0"),
        "error_code": ("Why the attempt ended without success.", "TOOL_FAILED"),
        "tools": ("Versions of its tools, by name.", {"qemu-img": "qemu-img version 7.2.22"}),
        "commands": ("Its command lines in their order, with `***` for secrets.", ["qemu-img info ..."]),
        "inputs": ("The disks that it read.",),
        "outputs": ("The disks that it made.",),
        "artifacts": ("Its log and its report in the object store.",),
        "signature": ("The worker's signature over all other fields.",),
    },
}

_OF_STATE: Final[Mapping[type[msgspec.Struct], Mapping[str, Meaning]]] = {
    Lease: {
        "worker_id": ("Who has the job.", "host-7"),
        "token": ("Revision of the record that the claim replaced; grows with every claim.", 4711),
        "seconds": ("Its length; renewed after 1/3, given up after 0.7, lost after 0.9 of it.", 60.0),
    },
    Transition: {
        "from": ("The state before; null for the job's creation.", "QUEUED"),
        "to": ("The state after.", "ASSIGNED"),
        "at": ("When it was written.", _NOW),
        "by": ("The scheduler or worker that wrote it.", "host-7"),
        "reason": ("Why, where that is not clear from the states.", None),
    },
    ProgressSummary: {
        "phase": ("The operation's phase.", "convert"),
        "progress_percent": ("Of the whole job.", 42.5),
        "message": ("What is being done, for people.", "0.85 of 2.00 GiB"),
    },
    JobRecord: {
        "job_id": ("The job; also the record's key.", _JOB),
        "state": ("Where it is on its way.", "RUNNING"),
        "submitted_by": ("Who sent the command, by the subject that the server vouches for.", "alice"),
        "created_at": ("When the record was made.", _NOW),
        "updated_at": ("When it was written last.", _LATER),
        "spec": ("The job as it was submitted; null if it could not be read as one.",),
        "pool": ("The pool that it goes to.", "default"),
        "lane": ("Capabilities that it needs, sorted and joined with `+`.", "qemu-img"),
        "priority": ("1 is the most urgent.", 5),
        "attempt": ("Attempts that were begun.", 1),
        "worker_id": ("Who has or had it last.", "host-7"),
        "lease": ("Who may work on it now; null unless a worker has it.",),
        "transitions": ("The audit trail, oldest first.",),
        "progress": ("The last progress written, at most some seconds behind the events.",),
        "result": ("How it ended; exactly in the terminal states.",),
        "errors": ("The failure of every attempt, oldest first.",),
        "next_attempt_at": ("When it goes to its lane again, in RETRYING.", None),
        "pending_reason": ("Why it waits, where that is known.", None),
        "cancel_requested": ("Asks its holder to stop.", False),
        "deadline_exceeded": ("Asks its holder to stop, since its deadline is past.", False),
        "publishing": ("An attempt may have begun to give its outputs their names.", False),
        "parent": ("The job that it is a retry of.", None),
        "spec_bytes": ("Size of the submission, which counts against a quota.", 412),
        "traceparent": ("W3C trace context, if somebody traces the job.", None),
    },
    LaneMessage: {
        "revision": ("Revision of the record, so that the first claim needs no read.", 4711),
        "record": ("The record as it was then.",),
        "lease_seconds": ("How long a claim of it lasts.", 60.0),
    },
    DeadLetter: {
        "subject": ("Where the message came from.", f"h2k.v1.commands.alice.submit.{_JOB}"),
        "reason": ("Why nobody could handle it, as one token.", "invalid-spec"),
        "message": ("The same in a sentence.", "$.image.path: must be absolute"),
        "at": ("When.", _NOW),
        "by": ("The scheduler or worker that kept it.", "scheduler-1"),
        "data": ("The original as base64, cut at 512 KiB.", "eyJ2ZXJzaW9uIjoiMS4wIn0="),
    },
    ProgressEvent: {
        "job_id": ("The job.", _JOB),
        "seq": ("Grows strictly along a job's history, with gaps. Ignore one that does not.", 47110003),
        "timestamp": ("When it happened, by the sender's clock.", _NOW),
        "state": ("The job's state; a terminal one stands in its last event.", "PROGRESSING"),
        "phase": ("The operation's phase, or the state in lower case.", "convert"),
        "progress_percent": ("Of the whole job.", 42.5),
        "message": ("What is being done, for people.", ""),
        "attempt": ("Number of the attempt; 0 before the first.", 1),
        "worker_id": ("The worker that has the job.", "host-7"),
        "bytes_done": ("Bytes of the phase that are done, where it counts bytes.", 912680550),
        "bytes_total": ("Bytes that the phase has in all.", 2147483648),
        "phase_percent": ("Of the phase alone, where it is known.", 42.5),
        "eta_seconds": ("Estimate of how long the job still takes.", 31.0),
        "details": ("Facts for programs; `code` with an error.", {}),
    },
}

_OF_FLEETS: Final[Mapping[type[msgspec.Struct], Mapping[str, Meaning]]] = {
    WorkerSecurity: {
        "confined": ("Its tools run in sandboxes.", True),
        "unprivileged": ("It is not root and has no capability of the kernel.", True),
        "verifies_signatures": ("It executes signed jobs only.", False),
    },
    WorkerCapabilities: {
        "worker_id": ("The worker; also the key of its entry.", "host-7"),
        "hostname": ("The host that it runs on.", "host-7.example.com"),
        "last_heartbeat": ("When it wrote this, by its own clock.", _NOW),
        "capabilities": ("Which of the capabilities it knows it has.", {"qemu-img": True, "kvm": False}),
        "evidence": ("For each capability, what proved or disproved it.", {"qemu-img": "qemu-img 8.2.2"}),
        "advice": ("For each that is missing, what mends that.", {"kvm": "let its user open /dev/kvm"}),
        "pool": ("The pool that it serves.", "default"),
        "version": ("Version of h2kbus.", "0.1.0"),
        "execution_mode": ("What it runs in.", "host"),
        "capability_level": ("For people: 1 userspace only, 2 reads over NBD, 3 mounts and changes.", 1),
        "max_disk_size_tb": ("The largest disk that it takes, in 10^12 bytes; 0 for any.", 0.0),
        "max_concurrent_jobs": ("Jobs that it takes at once.", 4),
        "free_slots": ("How many more it would take now.", 3),
        "running_jobs": ("The jobs that it has.", [_JOB]),
        "draining": ("It ends when its jobs have.", False),
        "cordoned": ("It takes no new jobs until it is told to.", False),
        "memory_gb": ("Memory of its host, in 10^9 bytes.", 33.6),
        "disk_space_gb": ("Free space on the disk of its working directory, in 10^9 bytes.", 412.0),
        "os_info": ("Its host's system.", "Debian GNU/Linux 12 (bookworm)"),
        "kernel_version": ("Its host's kernel.", "6.1.0-28-amd64"),
        "security": ("How it is guarded; missing from older workers.",),
        "image_roots": ("Directories below which jobs may read images; none: any.", ["/images"]),
        "output_roots": ("Directories below which jobs may write; none: any.", ["/images"]),
    },
    WorkerOrder: {
        "order": ("`cordon`: take no new jobs. `drain`: also end when the jobs have ended.", "cordon"),
        "by": ("Who ordered it.", "olga"),
        "at": ("When.", _NOW),
        "reason": ("Why, for people.", "kernel update"),
    },
    LaneAnnouncement: {
        "pool": ("The pool.", "default"),
        "lane": ("Capabilities that its jobs need, sorted and joined with `+`; `any` for none.", "qemu-img"),
        "priority": ("1 is the most urgent.", 5),
        "consumer": ("Name of the durable consumer to pull from.", "default_qemu-img_5"),
    },
    ImageLock: {
        "path": ("The image that is going to be written.", "/images/out/mail2.qcow2"),
        "pool": ("The pool whose hosts know it by that path.", "default"),
        "job_id": ("The job that may write it.", _JOB),
    },
    Place: {
        "label": ("The limit's label.", "source-host/esx-07"),
        "number": ("Which place; 0 is the first.", 0),
        "job_id": ("The job that has it.", _JOB),
    },
    Ceiling: {
        "at_most": ("Places under the label, whatever the jobs ask for.", 4),
        "by": ("Who set it.", "olga"),
        "at": ("When.", _NOW),
    },
    Quota: {
        "queued": ("Jobs that have not ended; null for any number.", 10000),
        "bytes": ("Size of their submissions in all; null for any.", 100000000),
        "rate": ("Submissions and retries per second, over a minute; null for any.", 50.0),
        "by": ("Who set it.", "olga"),
        "at": ("When.", _NOW),
    },
    Refusal: {
        "reason": ("Which bound was met, for people.", "alice: 10000 jobs that have not ended are allowed"),
        "refused": ("Commands refused without a minute's rest.", 12),
        "by": ("The scheduler that refused.", "scheduler-1"),
        "at": ("When it refused last.", _NOW),
    },
}

_MEANINGS: Final = {**_OF_JOBS, **_OF_STATE, **_OF_FLEETS, **OF_PARAMETERS}


def meanings(kind: type[msgspec.Struct]) -> dict[str, Meaning]:
    """The meaning of each field of a struct, those that it inherits included."""
    return {
        field: meaning
        for base in reversed(kind.__mro__)
        for field, meaning in _MEANINGS.get(base, {}).items()
    }


def explained() -> tuple[type[msgspec.Struct], ...]:
    """The structs of the contract that the table has."""
    return tuple(_MEANINGS)
