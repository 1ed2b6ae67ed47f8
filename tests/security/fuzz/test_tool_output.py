"""Whatever a tool says, or a guest's file holds: it is read, or the attempt fails by a code of the list."""

import contextlib
import datetime as dt
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ArtifactPolicy, Audit, ImageSpec, JobSpec
from tests.security.fuzz.guest import hostile_rescue
from tests.security.fuzz.strategies import changed, spoiled, thorough
from workers.boot.console import Console
from workers.boot.qmp import MAX_EVENTS, Qmp
from workers.capabilities.host import execution_mode
from workers.capabilities.probe import first_line
from workers.conversation import Conversation
from workers.formats.ovf import read_manifest
from workers.guest import fstab, grub, release
from workers.guest.initramfs import modules_in
from workers.guest.kernels import version_key
from workers.joblog import JobLog, encodable, printable
from workers.lines import MAX_LINE_BYTES, LineSplitter
from workers.process import ToolOutput, ToolRunner
from workers.qemu import ImageInfo, _Measure, _progress
from workers.repairs import selinux, system
from workers.report import ActionLine, ActionNotes, Report, write_report
from workers.survey.look import look
from workers.survey.verdict import judge
from workers.tool_json import tool_json

pytestmark = pytest.mark.anyio

INFO = [
    (
        b'{"virtual-size":1048576,"filename":"/a","format":"qcow2","actual-size":200704,"dirty-flag":false,'
        b'"snapshots":[{"id":"1"}],"format-specific":{"type":"qcow2","data":{"compat":"1.1"}}}'
    )
]
MEASURE = [b'{"required":327680,"fully-allocated":1376256}']


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolRunner]:
    place = tmp_path_factory.mktemp("tools")
    with JobLog(place / "log") as log:
        yield ToolRunner(log, place)


@pytest.mark.parametrize(
    ("kind", "samples"), [(ImageInfo, INFO), (_Measure, MEASURE)], ids=["info", "measure"]
)
@given(data=st.data())
@thorough
def test_any_words_of_qemu_img_are_read_or_refused(
    kind: type[Any], samples: list[bytes], data: st.DataObject
) -> None:
    said = data.draw(spoiled(samples) | changed(samples) | st.just(b"[" * 100_000))
    with contextlib.suppress(OperationFailed):
        tool_json(kind, said, "qemu-img")


@given(
    st.text()
    | st.sampled_from(["(1e9/100%)", "(.../100%)", "(9" * 2000 + "/100%)", "(nan/100%)", "(1.2.3/100%)"])
)
@thorough
def test_any_line_is_progress_or_none(line: str) -> None:
    fractions: list[float] = []
    _progress(fractions.append)(line)
    assert all(0 <= each <= 1 for each in fractions)


@given(
    st.lists(
        st.binary(max_size=50) | st.just(b"x" * 9000) | st.sampled_from([b"\r\n", b"\n", b"\xff\x1b"]),
        max_size=8,
    )
)
@thorough
def test_any_output_is_cut_into_bounded_lines(chunks: list[bytes]) -> None:
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    for chunk in chunks:
        splitter.feed(chunk)
    splitter.close()
    assert all(len(line) <= MAX_LINE_BYTES for line in lines)


class Said:
    """A conversation whose lines are known before."""

    name = "qemu"

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines

    async def send(self, line: bytes) -> None:
        """Whatever is asked, the same is said."""

    async def receive(self) -> bytes:
        if not self._lines:
            raise OperationFailed(ErrorCode.TOOL_FAILED, "qemu ended")
        return self._lines.pop(0)


def qmp_saying(*lines: bytes) -> Qmp:
    return Qmp(cast("Conversation", Said(list(lines))))


QMP = [
    b'{"QMP":{"version":{"qemu":{"micro":11,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}',
    b'{"return":{},"id":1}',
    b'{"timestamp":{"seconds":1,"microseconds":2},"event":"SHUTDOWN","data":{"guest":true}}',
    b'{"id":1,"error":{"class":"GenericError","desc":"no"}}',
]


@given(st.lists(st.sampled_from(QMP) | spoiled(QMP) | changed(QMP), max_size=6))
@thorough
async def test_any_words_of_the_emulator_are_read_or_refused(lines: list[bytes]) -> None:
    with contextlib.suppress(OperationFailed):
        assert await qmp_saying(*lines).greet()
    with contextlib.suppress(OperationFailed):
        await qmp_saying(*lines).next_event()


async def test_emulator_that_floods_with_events_is_refused() -> None:
    with pytest.raises(OperationFailed, match="events at once"):
        await qmp_saying(*[QMP[2]] * (MAX_EVENTS + 2)).execute("query-status")


@pytest.mark.slow
@given(data=st.data())
@thorough
def test_any_guest_is_described_or_refused(data: st.DataObject, tools: ToolRunner) -> None:
    # A loop of its own: hypothesis ends long drawings by an exception that ends the runner of all tests.
    notes = ActionNotes(tools.log)
    with contextlib.suppress(OperationFailed):
        facts = anyio.run(look, hostile_rescue(data, tools.log, tools.scratch), tools, notes)
        described = encodable([msgspec.to_builtins(facts), judge(facts).sentence])
        assert msgspec.json.encode(described)


@given(st.text(max_size=20) | st.sampled_from(["6.1\u00b2", "\u0663", "1" * 5000, ""]))
@thorough
def test_any_version_is_sorted(version: str) -> None:
    assert version_key(version) <= version_key(version + "1")


@given(st.binary(max_size=30) | st.just(b"CapEff:"), st.binary(max_size=30) | st.just(b"0 0 4294967295"))
def test_any_facts_of_the_kernel_are_read(
    tmp_path_factory: pytest.TempPathFactory, status: bytes, ids: bytes
) -> None:
    root = tmp_path_factory.getbasetemp() / "root"
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / ".dockerenv").touch()
    (root / "proc/self/status").write_bytes(status)
    (root / "proc/self/uid_map").write_bytes(ids)
    assert execution_mode(root) in {"privileged_container", "safe_container"}


@given(st.binary(max_size=300))
def test_any_evidence_can_be_shown(said: bytes) -> None:
    assert first_line(ToolOutput(status=0, stdout=said)).isprintable()


def cpio(name: bytes, size: bytes = b"00000000") -> bytes:
    fields = [b"00000000"] * 13
    fields[6], fields[11] = size, b"%08x" % (len(name) + 1)
    header = b"070701" + b"".join(fields) + name + b"\0"
    return header + bytes(-len(header) % 4)


def matryoshka() -> bytes:
    """An archive in an archive in an archive."""
    packed = cpio(b"a.ko")
    for _ in range(40):
        packed = gzip.compress(packed)
    return packed


def broken_deflate() -> bytes:
    return gzip.compress(b"x" * 1000)[:10] + b"\xff" * 20


HOSTILE_INITRAMFS: dict[str, Callable[[], bytes]] = {
    "its entries lead backwards": lambda: cpio(b"a.ko", b"-0000078") * 2,
    "a number with a sign": lambda: cpio(b"a.ko", b"+0000001"),
    "archives without end": matryoshka,
    "a stream that does not unpack": broken_deflate,
    "a name without end": lambda: cpio(b"a" * 9000, b"ffffffff"),
}


@pytest.mark.parametrize("kind", HOSTILE_INITRAMFS)
@pytest.mark.timeout(20)
async def test_hostile_initramfs_is_read_to_an_end(kind: str, tools: ToolRunner) -> None:
    copy = tools.scratch / "initramfs"
    copy.write_bytes(HOSTILE_INITRAMFS[kind]())
    found = await modules_in(copy, tools)
    assert found is None or found <= {"a"}
    assert not copy.exists()


@given(
    spoiled(
        [cpio(b"lib/virtio_blk.ko") + cpio(b"TRAILER!!!"), gzip.compress(cpio(b"x.ko")), zlib.compress(b"a")]
    )
)
@thorough
async def test_any_initramfs_is_read_or_left(tools: ToolRunner, data: bytes) -> None:
    copy = tools.scratch / "initramfs"
    copy.write_bytes(data)
    await modules_in(copy, tools)


def console(text: str) -> None:
    made = Console()
    for at in range(0, len(text), 65536):
        made.feed(text[at : at + 65536].encode())


READERS: dict[str, Callable[[str], object]] = {
    "fstab": fstab.parse,
    "grub entries": grub.entries,
    "grub searches": grub.searched,
    "loader entry": grub.loader_entry,
    "root arguments": lambda text: list(grub.root_arguments(text)),
    "os-release": release.parse,
    "selinux": lambda text: list(selinux.SETTING.finditer(text)),
    "interfaces": lambda text: list(system._IFUPDOWN.finditer(text)),
    "netplan": lambda text: list(system._NETPLAN.finditer(text)),
    "keyfile": lambda text: list(system._KEYFILE.finditer(text)),
    "console": console,
    "manifest": lambda text: read_manifest(text.encode()),
}
PIECES = (
    "\n", " ", "\t", "a", "1", "=", '"', "\\", "#", "\x1b", "\x1b[", "search --fs-uuid ", "linux ", "linux\n",
    "root=", "SELINUX=", "SELINUX ", "iface ", "    e:", "SHA1(", "SHA1(a)= ", "login: ", "dracut", "ALERT! ",
    "/dev/sda1 / ext4\n", "ID='", "a='b' ",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.timeout(60)
def test_file_of_a_megabyte_is_read_in_bounded_time(reader: str) -> None:
    for piece in PIECES:
        READERS[reader]((piece * (1 << 20))[: 1 << 20])


@given(st.text(st.characters(codec=None, exclude_categories=())))
@thorough
def test_any_text_can_be_shown_and_encoded(text: str) -> None:
    assert printable(text).isprintable()
    assert msgspec.json.encode(encodable({text: [text, (text,)]}))


def test_report_of_what_is_no_text_is_written(tmp_path: Path) -> None:
    spec = JobSpec(
        operation="inspect",
        image=ImageSpec(path="/a"),
        artifacts=ArtifactPolicy(output_path="/out"),
        audit=Audit(requested_by="tester"),
    )
    now, name = dt.datetime.now(dt.UTC), b"caf\xe9".decode("utf-8", "surrogateescape")
    line = ActionLine(action="fstab", outcome="applied", detail=name)
    write_report(
        Report(
            job_id="a", operation="inspect", attempt=1, started_at=now, ended_at=now, spec=spec,
            actions=(line,), image={"name": name},
        ),
        tmp_path / "report.json",
    )  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_bytes())["image"] == {"name": "caf\\udce9"}
