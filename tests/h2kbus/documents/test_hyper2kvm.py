from pathlib import Path
from typing import Any

import pytest

from h2kbus.documents import Defaults, read_documents
from h2kbus.errors import InvalidMessage
from tests.h2kbus.documents.conftest import Read, Refuse, Write

Manifest = dict[str, Any]


@pytest.fixture
def manifest() -> Manifest:
    return {
        "manifest_version": "1.0",
        "disks": [
            {
                "id": "boot",
                "source_format": "vmdk",
                "bytes": 1024,
                "local_path": "/srv/boot.vmdk",
                "checksum": "sha256:" + "b" * 64,
            },
            {"id": "data", "format": "QCOW2", "path": "data.qcow2"},
        ],
    }


def test_each_disk_of_a_manifest_is_a_conversion(read: Read, manifest: Manifest, tmp_path: Path) -> None:
    boot, data = read("manifest.json", manifest)
    assert (boot.origin, data.origin) == (
        f"{tmp_path}/manifest.json:disks[0]",
        f"{tmp_path}/manifest.json:disks[1]",
    )
    image = boot.spec.image
    assert (boot.spec.operation, image.path, image.format) == ("convert", "/srv/boot.vmdk", "vmdk")
    assert (image.size_bytes, image.checksum) == (1024, "sha256:" + "b" * 64)
    assert (data.spec.image.path, data.spec.image.format) == (str(tmp_path / "data.qcow2"), "qcow2")
    assert (data.spec.audit.tags, data.spec.artifacts.output_path) == ({"disk": "data"}, "/default/out")
    assert boot.warnings == data.warnings == ()


def test_what_a_manifest_says_counts_for_all_disks(read: Read, manifest: Manifest) -> None:
    manifest |= {
        "source": {"vm_name": "web"},
        "metadata": {"tags": {"cost.center": "7"}},
        "output": {"directory": "/converted", "format": "raw"},
        "pipeline": {"convert": {"enabled": True, "target_format": "qcow2", "compression": False}},
    }
    for document, disk in zip(read("manifest.yaml", manifest), ("boot", "data"), strict=True):
        assert document.spec.artifacts.output_path == "/converted"
        assert document.spec.parameters == {"output_format": "qcow2", "compress": False}
        assert document.spec.audit.tags == {"vm": "web", "cost.center": "7", "disk": disk}


def test_a_disk_may_have_a_directory_of_its_own(read: Read, manifest: Manifest) -> None:
    manifest["storage_mapping"] = {"disk_mappings": {"data": "/ssd"}, "format_override": "raw"}
    boot, data = read("manifest.json", manifest)
    assert (boot.spec.artifacts.output_path, data.spec.artifacts.output_path) == ("/default/out", "/ssd")
    assert boot.spec.parameters == {"output_format": "raw"}


def test_fields_without_counterpart_are_reported_once(read: Read, manifest: Manifest) -> None:
    manifest |= {"vm": {"cpu": 4}, "nics": [{"mac": "a"}], "pipeline": {"fix": {"enabled": True}}}
    manifest["disks"][1]["disk_type"] = "data"
    boot, data = read("manifest.json", manifest)
    assert boot.warnings == (
        "$.vm.cpu: has no counterpart here, ignored",
        "$.nics[0].mac: has no counterpart here, ignored",
        "$.pipeline.fix.enabled: has no counterpart here, ignored",
    )
    assert data.warnings == ("$.disks[1].disk_type: has no counterpart here, ignored",)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"manifest_version": "2.0"}, "$.manifest_version"),
        ({"manifest_version": None}, "$.manifest_version"),
        ({"disks": []}, "$.disks"),
        ({"disks": None}, "$.disks"),
        ({"disks": [{"id": "a"}]}, "$.disks[0]"),
        ({"disks": [{"path": "/a", "format": "ova"}]}, "$.disks[0].format"),
        ({"disks": [{"path": "/a", "bytes": -1}]}, "$.disks[0].bytes"),
        ({"disks": [{"path": "/a", "sha256": "zz"}]}, "$.disks[0].sha256"),
        ({"pipeline": {"convert": {"enabled": False}}}, "$.pipeline.convert.enabled"),
        ({"pipeline": []}, "$.pipeline"),
        ({"output": {"directory": 7}}, "$.output.directory"),
    ],
)
def test_a_manifest_is_refused_by_its_own_paths(
    refuse: Refuse, manifest: Manifest, change: Manifest, path: str
) -> None:
    assert refuse("manifest.json", manifest | change).path == path


def test_a_manifest_without_output_directory_needs_one(write: Write, manifest: Manifest) -> None:
    with pytest.raises(InvalidMessage) as caught:
        list(read_documents(write("manifest.json", manifest), Defaults("carol")))
    assert caught.value.path == "$.output.directory"


def test_a_number_is_a_version_in_yaml(read: Read) -> None:
    assert len(read("m.yaml", "manifest_version: 1.0\ndisks: [{path: /a}]\n")) == 1


def test_a_batch_reads_the_manifests_that_it_names(write: Write, read: Read, manifest: Manifest) -> None:
    path = write("vm1.json", manifest)
    batch = {
        "batch_version": "1.0",
        "batch_metadata": {"batch_id": "move", "parallel_limit": 4},
        "shared_config": {"output_directory": "converted", "profile": "production"},
        "vms": [
            {"id": "vm0", "manifest": "none.json", "enabled": False},
            {"id": "vm1", "manifest": "vm1.json", "priority": 2, "overrides": {"output": {"format": "raw"}}},
        ],
    }
    boot, data = read("batch.json", batch)
    assert boot.origin == f"{path}:disks[0]"
    assert boot.spec.artifacts.output_path == str(path.parent / "converted")
    assert boot.spec.execution_policy.priority == 3
    assert boot.spec.parameters == {"output_format": "raw"}
    assert boot.spec.audit.tags == {"batch": "move", "vm": "vm1", "disk": "boot"}
    assert boot.warnings == (
        "$.vms[0].enabled: the VM is not enabled, skipped",
        "$.batch_metadata.parallel_limit: has no counterpart here, ignored",
        "$.shared_config.profile: has no counterpart here, ignored",
    )
    assert data.warnings == ()


def test_a_manifest_goes_before_its_batch(write: Write, read: Read, manifest: Manifest) -> None:
    write("vm.json", manifest | {"output": {"directory": "/own"}})
    batch = {
        "batch_version": "1.0",
        "shared_config": {"output_directory": "/all"},
        "vms": [{"manifest": "vm.json"}],
    }
    assert {each.spec.artifacts.output_path for each in read("batch.json", batch)} == {"/own"}


def test_a_batch_may_hold_the_disks_itself(read: Read) -> None:
    batch = {
        "batch_version": "1.0",
        "vms": [{"name": "a", "disks": [{"path": "/a"}]}, {"name": "b", "source_path": "/b", "cpu": 2}],
    }
    first, second = read("batch.json", batch)
    assert (first.spec.image.path, second.spec.image.path) == ("/a", "/b")
    assert first.origin.endswith(":vms[0].disks[0]")
    assert second.origin.endswith(":vms[1]")
    assert second.warnings == ("$.vms[1].cpu: has no counterpart here, ignored",)


def test_a_priority_beyond_the_lowest_is_cut_with_a_warning(read: Read) -> None:
    batch = {"batch_version": "1.0", "vms": [{"path": "/a", "priority": 99}]}
    (document,) = read("batch.json", batch)
    assert document.spec.execution_policy.priority == 10
    assert document.warnings[0].startswith("$.vms[0].priority: ")


@pytest.mark.parametrize(
    ("vms", "path"),
    [
        ([], "$.vms"),
        ([{"manifest": "missing.json"}], "$"),
        ([{"manifest": "batch.json"}], "$"),
        ([{"manifest": "a\0b"}], "$"),
        ([{"manifest": 1}], "$.vms[0].manifest"),
        ([{"manifest": "m.json", "enabled": "no"}], "$.vms[0].enabled"),
        ([{"path": "/a", "priority": -1}], "$.vms[0].priority"),
        ([{}], "$.vms[0]"),
    ],
)
def test_a_batch_is_refused_by_its_own_paths(refuse: Refuse, vms: list[Manifest], path: str) -> None:
    assert refuse("batch.json", {"batch_version": "1.0", "vms": vms}).path == path


def test_an_error_in_a_manifest_names_the_manifest(write: Write, refuse: Refuse) -> None:
    path = write("vm.json", {"manifest_version": "1.0", "disks": [{"path": "/a", "format": "ova"}]})
    error = refuse("batch.json", {"batch_version": "1.0", "vms": [{"manifest": "vm.json"}]})
    assert error.path == "$.disks[0].format"
    assert str(error).endswith(f"(in {path})")


def test_a_batch_whose_vms_are_all_skipped_holds_no_job(refuse: Refuse) -> None:
    batch = {"batch_version": "1.0", "vms": [{"path": "/a", "enabled": False}]}
    assert refuse("batch.json", batch).reason.startswith("holds no job")
