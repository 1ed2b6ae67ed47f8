"""The VM-operation envelope of guestkit: `kind: VMOperation` with a typed payload.

What the envelope says about labels, tracing, affinity and the like has no counterpart here and is
reported field by field.
"""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from msgspec import Meta

from h2kbus.documents.document import Defaults, Document, Place
from h2kbus.documents.draft import Draft
from h2kbus.documents.fields import Field, Fields
from h2kbus.errors import InvalidMessage
from subjects.spec import JobId

ENVELOPE_KIND: Final = "VMOperation"
MAX_RETRIES: Final = 5
"""The highest `execution_policy.retry_count` of the protocol."""

_OWN_NAMES = (
    "inspect",
    "convert",
    "offline_fix",
    "boot_repair",
    "selinux_prep",
    "lvm_repair",
    "fs_repair",
    "initramfs_regenerate",
)
_OPERATIONS: Mapping[str, str] = {
    "guestkit.fix": "offline_fix",
    **{f"guestkit.{name}": name for name in _OWN_NAMES},
    **{f"hyper2kvm.{name}": name for name in _OWN_NAMES},
}
"""Operations of the envelope and ours. Profiles and comparisons of guests have none here."""

_CAPABILITIES: Mapping[str, str] = {
    "nbd": "needs_nbd",
    "lvm": "needs_lvm",
    "mount": "needs_mount",
    "selinux": "needs_selinux_tools",
    "selinux_tools": "needs_selinux_tools",
}
"""Flags by the last part of a capability's name: `fs.lvm` and `lvm` are the same to a worker."""

_Attempts = Annotated[int, Meta(ge=1)]
_Urgency = Annotated[int, Meta(ge=1, le=10)]


def envelope_jobs(value: dict[str, Any], place: Place, defaults: Defaults) -> Iterator[Document]:
    """The one job of an envelope. Raises InvalidMessage for an operation that this bus does not have."""
    envelope = Fields(value)
    draft = Draft(place, defaults, warnings=envelope.warnings)
    envelope.take("kind")
    envelope.take("$schema")
    draft.put("version", envelope.take("version"))
    draft.put("created_at", envelope.take("created_at"))
    operation = _put_operation(draft, envelope)
    execution = envelope.child("execution")
    _put_job_id(draft, envelope, execution)
    _put_execution(draft, execution)
    _put_needs(draft, envelope.child("constraints"), operation)
    draft.put("pool", envelope.child("routing").take("worker_pool"))
    _put_audit(draft, envelope)
    _put_payload(draft, envelope.child("payload"), operation)
    envelope.report()
    yield draft.document()


def _put_operation(draft: Draft, envelope: Fields) -> str:
    field = envelope.take("operation") or Field("", f"{envelope.path}.operation")
    name: str = field.checked(str)
    if name not in _OPERATIONS:
        known = ", ".join(sorted(_OPERATIONS))
        raise InvalidMessage(f"no operation here does {name[:64]!r}; known: {known}", field.path)
    draft.put("operation", field, value=_OPERATIONS[name])
    return name


def _put_job_id(draft: Draft, envelope: Fields, execution: Fields) -> None:
    """The idempotency key is the id, since the same id is the same job; else the envelope's own id."""
    for field in (execution.take("idempotency_key"), envelope.take("job_id")):
        if field is None:
            continue
        if "job_id" in draft.job:
            execution.warn(field, "the idempotency key is the job's id instead")
        elif _is_job_id(field):
            draft.put("job_id", field)
        else:
            execution.warn(field, "cannot be a job_id (1-128 of A-Z a-z 0-9 _ -), ignored")


def _is_job_id(field: Field) -> bool:
    try:
        field.checked(JobId)
    except InvalidMessage:
        return False
    return True


def _put_execution(draft: Draft, execution: Fields) -> None:
    draft.put("execution_policy.timeout_seconds", execution.take("timeout_seconds"))
    attempts = execution.take("max_attempts")
    if attempts:
        retries = attempts.checked(_Attempts) - 1
        draft.put("execution_policy.retry_count", attempts, value=min(retries, MAX_RETRIES))
        if retries > MAX_RETRIES:
            execution.warn(attempts, f"is more than {MAX_RETRIES} retries allow, cut to {MAX_RETRIES + 1}")
    priority = execution.take("priority")
    if priority:
        # There 10 is the most urgent, here 1 is.
        draft.put("execution_policy.priority", priority, value=11 - priority.checked(_Urgency))
    draft.put("execution_policy.deadline", execution.take("deadline"))


def _put_needs(draft: Draft, constraints: Fields, operation: str) -> None:
    for name in ("required_capabilities", "required_features"):
        field = constraints.take(name)
        for index, capability in enumerate(field.checked(list[str]) if field else ()):
            each = Field(capability, f"{constraints.path}.{name}[{index}]")
            flag = _CAPABILITIES.get(capability.rsplit(".", 1)[-1].lower().replace("-", "_"))
            if flag:
                draft.put(f"capability_requirements.{flag}", each, value=True)
            elif capability != operation:
                constraints.warn(each, f"{capability[:64]!r} is no capability here, ignored")


def _put_audit(draft: Draft, envelope: Fields) -> None:
    metadata, audit = envelope.child("metadata"), envelope.child("audit")
    annotations = metadata.child("annotations")
    draft.put("audit.ticket", annotations.take("ticket"))
    person = annotations.take("requested_by")
    draft.put("audit.requested_by", person or audit.take("submitted_by"))
    draft.put("audit.tags", metadata.take("labels"))


def _put_payload(draft: Draft, payload: Fields, operation: str) -> None:
    _check_type(payload.take("type"), operation)
    data = payload.child("data")
    draft.stands_for("image", f"{data.path}.image")
    draft.stands_for("image.path", f"{data.path}.image.path")
    draft.stands_for("artifacts.output_path", f"{data.path}.output")
    _put_image(draft, data)
    _put_actions(draft, data)
    _put_output(draft, data.child("output"))
    if _OPERATIONS[operation] == "convert":
        _put_target(draft, data.child("target"))


def _check_type(field: Field | None, operation: str) -> None:
    expected = f"{operation}.v1"
    if field and field.checked(str) != expected:
        raise InvalidMessage(f"a payload of {operation} is known as {expected!r} only", field.path)


def _put_image(draft: Draft, data: Fields) -> None:
    image = data.child("source" if "source" in data else "image")
    draft.stands_for("image", image.path)
    draft.stands_for("image.path", f"{image.path}.path")
    for name in ("path", "checksum", "size_bytes"):
        draft.put(f"image.{name}", image.take(name))
    draft.put_format("image.format", image.take("format"))


def _put_actions(draft: Draft, data: Fields) -> None:
    """The repairs of a fix payload are actions; their options have no counterpart."""
    if "operations" not in data:
        return
    actions = []
    for each in data.objects("operations"):
        action = each.take("type") or Field(None, f"{each.path}.type")
        actions.append(action.checked(str))
        each.report()
        data.warnings += each.warnings
    draft.put("requested_actions", Field(actions, f"{data.path}.operations"))


def _put_output(draft: Draft, output: Fields) -> None:
    """A result file's directory is the output directory; the files in it have names of their own."""
    field = output.take("destination", "fixed_image")
    if field:
        directory = posixpath.dirname(field.checked(str)) or "."
        draft.put("artifacts.output_path", field, value=directory)
        output.warn(field, "only its directory is used; the report there tells the files' names")


def _put_target(draft: Draft, target: Fields) -> None:
    path = target.take("path")
    if path:
        directory, name = posixpath.split(path.checked(str))
        draft.put("artifacts.output_path", path, value=directory or ".")
        draft.put("parameters.output_name", path if name else None, value=name)
    draft.put_format("parameters.output_format", target.take("format"))
    draft.put("parameters.compress", target.take("compression"))
    draft.put("parameters.compression_type", target.take("compression_type"))
