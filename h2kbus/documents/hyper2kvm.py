"""hyper2kvm's artifact manifest (one VM's disks) and batch (many manifests): one convert job per disk.

A field about the whole manifest or batch that has no counterpart is reported once, with the first job.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from h2kbus.documents.document import Defaults, Document, Place, located
from h2kbus.documents.draft import Draft
from h2kbus.documents.fields import Field, Fields
from h2kbus.documents.reading import read_value
from h2kbus.errors import InvalidMessage

LOWEST_PRIORITY: Final = 10

_Version = Annotated[float, Meta(ge=0, lt=1000)]
_Rank = Annotated[int, Meta(ge=0)]
_OUTPUT_NAMES = ("output_directory", "output_dir", "directory", "output_path")


class _Shared(msgspec.Struct, frozen=True):
    """What is said once for several disks; of two fields for the same target, the later one counts."""

    puts: tuple[tuple[str, Field], ...] = ()
    directories: tuple[tuple[str, Field], ...] = ()

    def and_(self, target: str, field: Field | None) -> "_Shared":
        return _Shared((*self.puts, (target, field)), self.directories) if field else self

    def for_disk(self, disk: str, field: Field) -> "_Shared":
        return _Shared(self.puts, (*self.directories, (disk, field)))


def manifest_jobs(value: dict[str, Any], place: Place, defaults: Defaults) -> Iterator[Document]:
    """The jobs of an artifact manifest.

    Raises InvalidMessage for one of another major version, without disks, or without conversion.
    """
    root = Fields(value)
    _check_version(root, "manifest_version")
    yield from _disk_jobs(root, place, defaults, _Shared())


def batch_jobs(value: dict[str, Any], place: Place, defaults: Defaults) -> Iterator[Document]:
    """The jobs of every enabled VM of a batch; manifests that it names are read from their files."""
    root = Fields(value)
    _check_version(root, "batch_version")
    shared = _Shared().and_("audit.tags.batch", root.child("batch_metadata").take("batch_id"))
    config = root.child("shared_config")
    shared = _with_output(shared, config, place)
    vms = [vm for vm in root.objects("vms") if _is_enabled(vm, root)]
    root.report()
    once = root.warnings
    for vm in vms:
        for document in _vm_jobs(vm, place, defaults, shared):
            yield _with_warnings(document, once)
            once = []


def _check_version(root: Fields, name: str) -> None:
    field = root.take(name)
    version = str(field.checked(str | _Version)) if field else ""
    if version.split(".")[0] != "1":
        raise InvalidMessage(f"version {version[:16]!r} is not known; 1.0 is", f"{root.path}.{name}")


def _is_enabled(vm: Fields, root: Fields) -> bool:
    field = vm.take("enabled")
    enabled = not field or bool(field.checked(bool))
    if field and not enabled:
        root.warn(field, "the VM is not enabled, skipped")
    return enabled


def _vm_jobs(vm: Fields, place: Place, defaults: Defaults, shared: _Shared) -> Iterator[Document]:
    shared = shared.and_("audit.tags.vm", vm.take("id", "name"))
    shared = shared.and_("execution_policy.priority", _priority(vm))
    manifest = vm.take("manifest")
    if manifest is None:
        yield from _inline_jobs(vm, place, defaults, shared)
        return
    overrides = vm.take("overrides")
    changes = overrides.checked(dict[str, Any]) if overrides else {}
    vm.report()
    once = vm.warnings
    for document in _file_jobs(manifest, changes, place, defaults, shared):
        yield _with_warnings(document, once)
        once = []


def _priority(vm: Fields) -> Field | None:
    """There 0 is the most urgent and there is no end; here 1 is, and 10 is the end."""
    field = vm.take("priority")
    if field is None:
        return None
    wanted = field.checked(_Rank) + 1
    if wanted > LOWEST_PRIORITY:
        vm.warn(field, f"is less urgent than {LOWEST_PRIORITY}, the lowest priority here")
    return Field(min(wanted, LOWEST_PRIORITY), field.path)


def _file_jobs(
    manifest: Field, changes: dict[str, Any], place: Place, defaults: Defaults, shared: _Shared
) -> Iterator[Document]:
    path = Path(place.absolute(manifest.checked(str)))
    inner = Place(str(path), str(path.parent))
    try:
        root = Fields(_merged(_manifest_in(path), changes))
        _check_version(root, "manifest_version")
        yield from _disk_jobs(root, inner, defaults, shared)
    except InvalidMessage as error:
        raise located(error, str(path)) from None


def _manifest_in(path: Path) -> dict[str, Any]:
    value = read_value(path)
    if isinstance(value, dict) and "manifest_version" in value:
        return value
    raise InvalidMessage("not an artifact manifest: it has no manifest_version")


def _inline_jobs(vm: Fields, place: Place, defaults: Defaults, shared: _Shared) -> Iterator[Document]:
    """A VM without a manifest file has its disks, or the path of its only disk, in the batch itself."""
    if "disks" in vm:
        yield from _disk_jobs(vm, place, defaults, shared)
        return
    shared = _with_output(shared, vm, place)
    yield _disk_job(vm, place.inner(f":{vm.path.removeprefix('$.')}"), defaults, shared)


def _disk_jobs(root: Fields, place: Place, defaults: Defaults, shared: _Shared) -> Iterator[Document]:
    shared = _manifest_settings(root, place, shared)
    disks = root.objects("disks")
    root.report()
    once = root.warnings
    for disk in disks:
        inner = place.inner(f":{disk.path.removeprefix('$.')}")
        yield _with_warnings(_disk_job(disk, inner, defaults, shared), once)
        once = []


def _manifest_settings(root: Fields, place: Place, shared: _Shared) -> _Shared:
    """What a manifest says about all of its disks."""
    convert = root.child("pipeline").child("convert")
    _check_conversion(convert.take("enabled"))
    output, storage = root.child("output"), root.child("storage_mapping")
    shared = shared.and_("audit.tags.vm", root.child("source").take("vm_name"))
    for name, tag in _tags(root.child("metadata").take("tags")):
        shared = shared.and_(f"audit.tags.{name}", tag)
    shared = shared.and_("parameters.compress", convert.take("compress", "compression"))
    shared = shared.and_("parameters.output_format", output.take("format", "output_format"))
    shared = shared.and_("parameters.output_format", convert.take("target_format", "output_format", "format"))
    shared = shared.and_("parameters.output_format", storage.take("format_override"))
    shared = _with_output(_with_output(shared, root, place), output, place)
    mappings = storage.take("disk_mappings")
    for disk, path in (mappings.checked(dict[str, str]) if mappings else {}).items():
        shared = shared.for_disk(disk, Field(place.absolute(path), f"{storage.path}.disk_mappings.{disk}"))
    return shared


def _check_conversion(enabled: Field | None) -> None:
    if enabled and not enabled.checked(bool):
        raise InvalidMessage("a manifest can only be converted, and this one asks not to be", enabled.path)


def _tags(field: Field | None) -> Iterator[tuple[str, Field]]:
    """Tags are an object, or a list of words that are tags without a value."""
    tags = field.checked(dict[str, str] | list[str]) if field else {}
    pairs = tags.items() if isinstance(tags, dict) else ((tag, "") for tag in tags)
    for name, value in pairs:
        yield name, Field(value, field.path if field else "$")


def _with_output(shared: _Shared, fields: Fields, place: Place) -> _Shared:
    """An output directory is relative to the document that names it."""
    field = fields.take(*_OUTPUT_NAMES)
    return shared.and_(
        "artifacts.output_path", Field(place.absolute(field.value), field.path) if field else None
    )


def _disk_job(disk: Fields, place: Place, defaults: Defaults, shared: _Shared) -> Document:
    draft = Draft(place, defaults, warnings=disk.warnings, job={"operation": "convert"})
    draft.stands_for("image", disk.path)
    draft.stands_for("artifacts.output_path", f"{disk.path.partition('.disks[')[0]}.output.directory")
    for target, field in shared.puts:
        _put_shared(draft, target, field)
    name = disk.take("id")
    draft.put("audit.tags.disk", name)
    for each, directory in shared.directories:
        draft.put("artifacts.output_path", directory if name and each == name.value else None)
    draft.put("image.path", disk.take("local_path", "path", "source_path", "image"))
    draft.put_format("image.format", disk.take("source_format", "format"))
    draft.put("image.checksum", disk.take("checksum", "sha256"))
    draft.put("image.size_bytes", disk.take("bytes", "size_bytes"))
    disk.report()
    return draft.document()


def _put_shared(draft: Draft, target: str, field: Field) -> None:
    if target == "parameters.output_format":
        draft.put_format(target, field)
    else:
        draft.put(target, field)


def _merged(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`value` with `changes` laid over it, object by object."""
    merged = dict(value)
    for name, change in changes.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(change, dict)
        merged[name] = _merged(old or {}, change) if both else change
    return merged


def _with_warnings(document: Document, first: list[str]) -> Document:
    if not first:
        return document
    return Document(document.spec, document.origin, (*first, *document.warnings))
