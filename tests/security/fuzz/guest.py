"""A rescue environment that answers anything: plausible things, damaged ones, and nonsense."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from hypothesis import strategies as st

from h2kbus.errors import ErrorCode, OperationFailed
from tests.security.fuzz.strategies import JSON, changed, spoiled
from workers.conversation import Conversation
from workers.guest.rescue import Greeting, Rescue
from workers.joblog import JobLog

_LSBLK = (
    b'{"blockdevices":[{"name":"/dev/vda","type":"disk","size":4096,"children":'
    b'[{"name":"/dev/vda1","type":"part","size":"2048"},{"name":"/dev/mapper/g-r","type":"lvm","size":8}]}]}'
)
_BLKID = (
    b"TYPE=ext4\nUUID=9c70\nLABEL=root\nPART_ENTRY_NUMBER=1\nPART_ENTRY_TYPE=0x83\nPTTYPE=gpt\n",
    b"TYPE=btrfs\nUUID=1\n",
    b"TYPE=ntfs\n",
    b"TYPE=LVM2_member\n",
    b"TYPE=crypto_LUKS\n",
)
_LVM = (
    b'{"report":[{"vg":[{"vg_name":"g","vg_size":"4B","vg_free":"1B","vg_missing_pv_count":"0"}]}]}',
    b'{"report":[{"lv":[{"vg_name":"g","lv_name":"r"}]}]}',
)
_SAID: Final[Mapping[str, tuple[bytes, ...]]] = {
    "lsblk": (_LSBLK,),
    "blkid": _BLKID,
    "lvm": _LVM,
    "stat": (b"4096 100 50\n", b"system_u:object_r:etc_t:s0\n"),
    "btrfs": (b"ID 256 gen 9 top level 5 path @\n",),
    "cat": (b"",),
}
_FILES: Final[Mapping[str, bytes]] = {
    "/etc/os-release": b'ID=debian\nPRETTY_NAME="Debian"\nVERSION_ID="12"\n',
    "/etc/fstab": b"UUID=9c70 / ext4 defaults 0 1\n/dev/sda2 /home xfs nofail 0 0\n",
    "/etc/hostname": b"guest\n",
    "/etc/selinux/config": b"SELINUX=enforcing\nSELINUXTYPE=targeted\n",
    "/boot/grub/grub.cfg": b"search --fs-uuid --set=root 9c70-1234\nlinux /vmlinuz-1 root=/dev/sda1 ro\n",
    "/etc/network/interfaces": b"auto eth0\niface eth0 inet dhcp\n",
}
_NAMES: Final = (
    "vmlinuz-6.1",
    "initrd.img-6.1",
    "vmlinuz-6\u00b2",
    "ifcfg-eth0",
    "a.conf",
    "..",
    "x/y",
    "\x1b[2J",
)


class HostileConversation:
    """Stands where a rescue environment's talk is: each answer is drawn when it is asked for."""

    name = "appliance"

    def __init__(self, data: st.DataObject, scratch: Path) -> None:
        self._data = data
        self._scratch = scratch
        self._asked: dict[str, Any] = {}
        self._left = 400

    async def send(self, line: bytes) -> None:
        self._asked = json.loads(line)
        self._left -= 1
        if self._left < 0:
            raise OperationFailed(ErrorCode.TOOL_FAILED, "it has said enough")

    async def receive(self) -> bytes:
        if self._data.draw(st.integers(0, 15)) == 0:
            return self._data.draw(
                st.binary(max_size=20) | st.builds(_encoded, JSON) | st.just(b'{"error":"no"}')
            )
        return _encoded(self._answer())

    def _answer(self) -> dict[str, Any]:
        match self._asked["do"]:
            case "run":
                return self._run(self._asked["argv"][0])
            case "read" | "read_device":
                return {
                    "data": self._content(_FILES.get(self._asked.get("path", ""), b"\x7fELF" + bytes(30)))
                }
            case "kind":
                kinds = st.sampled_from(["file", "directory", "directory", "other", None])
                return {"kind": self._data.draw(kinds), "size": 1, "mode": 0o644}
            case "list":
                return {
                    "names": self._data.draw(
                        st.lists(st.sampled_from(_NAMES) | st.text(max_size=5), max_size=4)
                    )
                }
            case "download":
                magic = st.sampled_from([b"070701", b"\x1f\x8b\x08", b"\xfd7zXZ", b"BZh9", b""])
                content = self._data.draw(magic) + self._data.draw(st.binary(max_size=200))
                (self._scratch / "initramfs").write_bytes(content)
        return {
            "found": self._data.draw(
                st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4)), max_size=1)
            )
        }

    def _run(self, program: str) -> dict[str, Any]:
        samples = _SAID.get(program, (b"",))
        json_too = spoiled(samples) | changed(samples) if program in {"lsblk", "lvm"} else spoiled(samples)
        out = self._data.draw(st.sampled_from(samples) | json_too)
        status = self._data.draw(st.sampled_from((0, 0, 0, 0, 1, 255)))
        return {"status": status, "out": _text(out), "err": _text(self._data.draw(st.binary(max_size=5)))}

    def _content(self, sample: bytes) -> str | None:
        drawn = self._data.draw(st.just(sample) | st.just(sample) | spoiled([sample]) | st.none())
        return None if drawn is None else _text(drawn)


def hostile_rescue(data: st.DataObject, log: JobLog, scratch: Path) -> Rescue:
    """A rescue environment over a conversation that is hostile from its greeting on."""
    talk = cast("Conversation", HostileConversation(data, scratch))
    return Rescue(talk, log, Greeting(device="/dev/vda", sysroot="/sysroot", tool="libguestfs 1"))


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()
