import pytest

from h2kbus.errors import ErrorCode
from tests.workers.packages import descriptor
from workers.formats.header import Refused
from workers.formats.ovf import MAX_DESCRIPTOR_BYTES, Digest, read_disks, read_manifest


def refusal(document: bytes) -> ErrorCode:
    with pytest.raises(Refused) as caught:
        read_disks(document)
    assert "\n" not in str(caught.value)
    return caught.value.finding.code


def test_disks_are_the_files_that_a_disk_refers_to() -> None:
    extra = descriptor("a.vmdk", "b.vmdk").replace(
        b"<References>", b'<References><File ovf:id="iso" ovf:href="cd.iso"/>'
    )
    assert [each.name for each in read_disks(extra)] == ["a.vmdk", "b.vmdk"]


@pytest.mark.parametrize("version", [b"envelope/2", b"envelope/1/other"])
def test_other_versions_of_the_standard_are_read(version: bytes) -> None:
    document = descriptor("a.vmdk").replace(b"envelope/1", version)
    assert [each.name for each in read_disks(document)] == ["a.vmdk"]


def test_empty_disk_has_no_file() -> None:
    document = descriptor("a.vmdk").replace(b"</DiskSection>", b'<Disk ovf:diskId="new"/></DiskSection>')
    assert len(read_disks(document)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "/etc/shadow",
        "../disk",
        "a/b",
        r"a\b",
        "file:x",
        "nbd:x:1",
        "..",
        "",
        "%2e%2e%2fx",
        "a&#10;b",
        "x" * 256,
    ],
)
def test_names_outside_the_package_are_unsafe(name: str) -> None:
    assert refusal(descriptor(name)) is ErrorCode.IMAGE_UNSAFE


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE Envelope [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        "<!doctype Envelope>",
        '<!DOCTYPE Envelope [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>',
    ],
)
def test_declarations_are_refused_before_parsing(declaration: str) -> None:
    assert (
        refusal(descriptor("a.vmdk").replace(b"?>", b"?>" + declaration.encode())) is ErrorCode.IMAGE_UNSAFE
    )


def test_declaration_cannot_hide_in_another_encoding() -> None:
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE Envelope><Envelope/>'
    assert refusal(text.encode("utf-16")) is ErrorCode.IMAGE_CORRUPT
    assert refusal(text.replace("16", "7").replace("<!", "+ADwAIQ-").encode()) is ErrorCode.IMAGE_CORRUPT


def test_descriptor_beyond_reason() -> None:
    assert refusal(descriptor("a.vmdk") + b" " * MAX_DESCRIPTOR_BYTES) is ErrorCode.IMAGE_UNSAFE


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\0" * 512,
        b"<Envelope>",
        b"<Other/>",
        b"<a>" * 100_000,
        descriptor("a.vmdk").replace(b'fileRef="f0"', b'fileRef="f9"'),
        descriptor("a.vmdk", "b.vmdk").replace(b'ovf:id="f1"', b'ovf:id="f0"'),
    ],
)
def test_what_is_no_descriptor_is_corrupt(document: bytes) -> None:
    assert refusal(document) is ErrorCode.IMAGE_CORRUPT


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"file": 'ovf:compression="gzip"'}, ErrorCode.FORMAT_MISMATCH),
        ({"file": 'ovf:chunkSize="7516192768"'}, ErrorCode.FORMAT_MISMATCH),
        ({"disk": 'ovf:parentRef="d9"'}, ErrorCode.IMAGE_UNSAFE),
    ],
)
def test_files_that_are_no_whole_image_cannot_be_read(more: dict[str, str], code: ErrorCode) -> None:
    (disk,) = read_disks(descriptor("a.vmdk", **more))
    with pytest.raises(Refused) as caught:
        disk.require_readable()
    assert caught.value.finding.code is code


def test_identity_is_no_compression() -> None:
    (disk,) = read_disks(descriptor("a.vmdk", file='ovf:compression="identity" ovf:size="12"'))
    disk.require_readable()
    assert disk.size == 12


def test_manifest_lines_of_several_kinds() -> None:
    text = b"SHA256(a b.vmdk)= AB12\r\nSHA1 (c.ovf) = cd\nsha512(c.ovf)=ef\nMD5(c.ovf)= 00\nnonsense\n"
    assert read_manifest(text) == {
        "a b.vmdk": (Digest("sha256", "ab12"),),
        "c.ovf": (Digest("sha1", "cd"), Digest("sha512", "ef")),
    }
