"""A job under construction, which knows where in the document each of its fields came from."""

import re
from pathlib import Path
from typing import Any

import msgspec

from h2kbus.documents.document import Defaults, Document, Place
from h2kbus.documents.fields import Field
from h2kbus.documents.reading import too_large
from h2kbus.errors import InvalidMessage
from subjects.codec import decode
from subjects.spec import MAX_SPEC_BYTES, JobSpec

_ELIDED = re.compile(r"(sha256:)?[0-9a-fA-F]*(\.{3}|\u2026)[0-9a-fA-F]*")


class Draft:
    """A v1 job as plain values. `put` fills it in; `document` completes and checks it.

    An error names the field of the document that it was put from, not ours.
    """

    def __init__(
        self, place: Place, defaults: Defaults, *, warnings: list[str], job: dict[str, Any] | None = None
    ) -> None:
        self.job: dict[str, Any] = {} if job is None else job
        self._place = place
        self._defaults = defaults
        self._warnings = warnings
        self._sources: dict[str, str] = {}

    def put(self, target: str, field: Field | None, **changed: Any) -> None:
        """Set `target` from a field, if it is there; `value=` gives another value than its own.

        A target is a path of ours, such as `image.path`; all that follows `audit.tags.` is one name.
        """
        if field is None:
            return
        *parents, name = target.split(".", 2)
        inside = self.job
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[name] = changed.get("value", field.value)
        self.stands_for(target, field.path)

    def put_format(self, target: str, field: Field | None) -> None:
        """Set an image format, which other tools write in any case and by qemu's names too."""
        if field:
            name = field.checked(str).lower()
            self.put(target, field, value={"vpc": "vhd"}.get(name, name))

    def stands_for(self, target: str, path: str) -> None:
        """Say that errors about `target` are about `path` of the document."""
        self._sources[f"$.{target}"] = path

    def document(self) -> Document:
        """The finished document. Raises InvalidMessage with a path of the original document."""
        try:
            self._complete()
            return Document(_decoded(self.job), self._place.origin, tuple(self._warnings))
        except InvalidMessage as error:
            raise InvalidMessage(error.reason, self._source(error.path)) from None

    def _complete(self) -> None:
        self._complete_version()
        image = self.job.setdefault("image", {})
        artifacts = _object(self.job, "artifacts")
        audit = _object(self.job, "audit")
        if isinstance(image, dict):
            self._complete_image(image)
        if isinstance(artifacts, dict):
            self._complete_output(artifacts)
        if isinstance(audit, dict) and audit.get("requested_by") is None:
            audit["requested_by"] = self._defaults.requested_by

    def _complete_version(self) -> None:
        version = self.job.get("version")
        if isinstance(version, float) or version == 1:
            # YAML reads an unquoted 1.0 as a number.
            self.job["version"] = str(version)

    def _complete_image(self, image: dict[str, Any]) -> None:
        if "path" in image:
            image["path"] = self._place.absolute(image["path"])
        checksum = image.get("checksum")
        if isinstance(checksum, str) and _ELIDED.fullmatch(checksum):
            del image["checksum"]
            path = self._source("$.image.checksum")
            self._warnings.append(f"{path}: the checksum is elided, so nothing is verified by it")

    def _complete_output(self, artifacts: dict[str, Any]) -> None:
        if artifacts.get("output_path") is not None:
            artifacts["output_path"] = self._place.absolute(artifacts["output_path"])
        elif self._defaults.output_dir is None:
            raise InvalidMessage("no output directory is given", "$.artifacts.output_path")
        else:
            artifacts["output_path"] = str(Path(self._defaults.output_dir).absolute())

    def _source(self, path: str) -> str:
        """The document's path of one of ours: that of the nearest enclosing field that was put."""
        ours = path
        while ours not in self._sources and ours != "$":
            ours = ours[: max(ours.rfind("."), ours.rfind("["))]
        return self._sources.get(ours, ours) + path[len(ours) :]


def _object(job: dict[str, Any], name: str) -> Any:
    """A nested object that may be left out or null."""
    if job.get(name) is None:
        job[name] = {}
    return job[name]


def _decoded(job: dict[str, Any]) -> JobSpec:
    try:
        data = msgspec.json.encode(job)
    except (ValueError, RecursionError) as error:
        # A directory whose name is not UTF-8, or values nested without end.
        raise InvalidMessage(f"cannot be written as JSON: {error}") from None
    if len(data) > MAX_SPEC_BYTES:
        raise too_large(len(data))
    return decode(JobSpec, data)
