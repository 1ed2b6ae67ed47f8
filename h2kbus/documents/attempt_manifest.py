"""The manifest of an attempt, as the bus keeps it: its job, to be run once more."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from h2kbus.documents.document import Defaults, Document, Place
from h2kbus.documents.fields import path_to
from h2kbus.documents.worker_job import worker_jobs
from h2kbus.errors import InvalidMessage
from h2kbus.redaction import HIDDEN
from subjects.codec import convert
from subjects.manifest import Manifest

_OF_THE_FIRST: Final = ("job_id", "created_at", "signature")
"""What belongs to the job that was; the new one gets its own."""


def is_attempt_manifest(value: dict[str, Any]) -> bool:
    """Whether it is one of ours; hyper2kvm's manifests have a version too, and disks."""
    return "manifest_version" in value and "spec" in value and "disks" not in value


def attempt_jobs(value: dict[str, Any], place: Place, defaults: Defaults) -> Iterator[Document]:
    """The job of the attempt as a new one, with its results in the directory that is given, if one is.

    Raises InvalidMessage for what is no manifest, and for a job whose secrets were taken out.
    """
    manifest = convert(Manifest, value)
    for path, each in _texts(manifest.spec.parameters, "$.spec.parameters"):
        if HIDDEN in each:
            raise InvalidMessage("a secret was taken out here: submit the job from its own document", path)
    spec: dict[str, Any] = msgspec.to_builtins(manifest.spec)
    for name in _OF_THE_FIRST:
        spec.pop(name, None)
    if defaults.output_dir is not None:
        del spec["artifacts"]["output_path"]
    yield from worker_jobs(spec, place, defaults)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, path_to(path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts(each, f"{path}[{index}]")
