"""Names of devices in a guest's fstab: which of them last, and what they mean on its disk."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.guest import fstab
from workers.guest.disks import Volume

BOOT = Volume(
    device="/dev/vda1", kind="part", size=1, filesystem="ext4", uuid="aaaa-1", label="boot", number=1,
    part_uuid="P1", part_label="EFI",
)  # fmt: skip
ROOT = Volume(device="/dev/vda2", kind="part", size=1, filesystem="xfs", uuid="BBBB-2", number=2)
DATA = Volume(device="/dev/mapper/my--vg-data", kind="lvm", size=1, filesystem="ext4", uuid="cccc-3")
VOLUMES = (BOOT, ROOT, DATA)

MEANINGS = [
    ("UUID=aaaa-1", BOOT),
    ("UUID=AAAA-1", BOOT),
    ('UUID="aaaa-1"', BOOT),
    ("LABEL=boot", BOOT),
    ("LABEL=BOOT", None),
    ("PARTUUID=p1", BOOT),
    ("PARTLABEL=EFI", BOOT),
    ("/dev/disk/by-uuid/BBBB-2", ROOT),
    ("/dev/sda2", ROOT),
    ("/dev/hda1", BOOT),
    ("/dev/xvda2", ROOT),
    ("/dev/nvme0n1p2", ROOT),
    ("/dev/mmcblk0p1", BOOT),
    ("/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part2", ROOT),
    ("/dev/disk/by-id/wwn-0x6000c29-part1", BOOT),
    ("/dev/my-vg/data", DATA),
    ("/dev/mapper/my--vg-data", DATA),
    ("/dev/sdb2", None),
    ("/dev/sda", None),
    ("/dev/sda9", None),
    ("UUID=dddd-4", None),
    ("/dev/other/data", None),
]


@pytest.mark.parametrize(("spec", "volume"), MEANINGS, ids=[each[0] for each in MEANINGS])
def test_name_means_a_volume_of_the_disk_or_nothing(spec: str, volume: Volume | None) -> None:
    assert fstab.resolve(spec, VOLUMES) == volume


@pytest.mark.parametrize(
    "spec",
    ["/dev/sda2", "/dev/hdc", "/dev/vda1", "/dev/xvdb1", "/dev/nvme0n1p1", "/dev/disk/by-path/pci-0-part1"],
)
def test_name_from_the_place_of_the_disk_does_not_last(spec: str) -> None:
    assert fstab.is_fragile(spec)


@pytest.mark.parametrize(
    "spec", ["UUID=1", "LABEL=x", "/dev/vg/root", "/dev/mapper/vg-root", "/dev/disk/by-uuid/1"]
)
def test_name_of_the_content_lasts(spec: str) -> None:
    assert not fstab.is_fragile(spec)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("UUID=1 / ext4 defaults 0 1", True),
        ("/dev/sda1 /boot ext4", True),
        ("tmpfs /tmp tmpfs defaults 0 0", False),
        ("server:/export /mnt nfs defaults 0 0", False),
        ("//server/share /mnt cifs defaults 0 0", False),
    ],
)
def test_only_devices_of_the_guest_are_looked_for(line: str, named: bool) -> None:
    [entry] = fstab.parse(line)
    assert entry.names_device is named


def test_lines_that_are_no_entries_are_left_out() -> None:
    assert fstab.parse("# a comment\n\n   \nUUID=1 /\nnonsense\n") == []


def test_only_the_changed_field_of_a_line_changes() -> None:
    text = "# static\n/dev/sda1\t/boot  ext4 \tdefaults 0 2  # old\nUUID=1 / xfs defaults 0 1"
    after = fstab.rewritten(
        text, lambda each: msgspec.structs.replace(each, spec="UUID=9") if each.spec == "/dev/sda1" else each
    )
    assert after == "# static\nUUID=9\t/boot  ext4 \tdefaults 0 2  # old\nUUID=1 / xfs defaults 0 1"


def test_options_are_added_where_there_were_none() -> None:
    after = fstab.rewritten(
        "/dev/sdb1 /srv ext4\n", lambda each: msgspec.structs.replace(each, options=("defaults", "nofail"))
    )
    assert fstab.parse(after)[0].options == ("defaults", "nofail")


@given(st.text(max_size=400))
def test_any_text_is_read_and_left_as_it_is(text: str) -> None:
    assert fstab.rewritten(text, lambda each: each) == text
    fstab.parse(text)


def test_lasting_name_is_the_uuid_or_the_volume_group() -> None:
    assert fstab.lasting_name(ROOT) == "UUID=BBBB-2"
    assert fstab.lasting_name(DATA) == DATA.device
    assert fstab.lasting_name(msgspec.structs.replace(ROOT, uuid=None)) is None
