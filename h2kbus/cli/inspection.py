"""The command that inspects one disk on this machine and shows what it found."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from h2kbus.cli.jobs import ending, outcome
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, printable
from h2kbus.cli.submit import verdict_exit, with_audit
from subjects.record import JobRecord

Facts = Mapping[str, Any]

_KIB: Final = 1024
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STYLES: Final = {"fatal": "red", "unread": "yellow", "remark": ""}
_BOOTS: Final = {"yes": "green", "no": "bold red", "unknown": "yellow"}


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(inspect)


def inspect(
    context: typer.Context,
    disk: Annotated[Path, typer.Argument(metavar="DISK", help="The disk image, an OVA or an OVF.")],
    member: Annotated[str | None, typer.Option("--disk", help="One of the disks inside an OVA.")] = None,
) -> None:
    """Say what a disk image holds, and what would keep it from booting on KVM.

    Runs one job here, without a server, and changes nothing. With --json, the whole report.
    """
    from h2kbus.cli.processes import run_once

    with tempfile.TemporaryDirectory(prefix="h2kbus-") as place:
        spec = with_audit(
            {
                "operation": "inspect",
                "image": {"path": str(disk.absolute())},
                "artifacts": {"output_path": place, "log_upload": False},
                "parameters": {"disk": member} if member else {},
            },
            None,
            [],
        )
        record = run_async(run_once, spec, [])
        report = _report(record)
    if report is None:
        print_line(outcome(record))
    elif context.obj.json:
        print_json(report)
    else:
        show(report)
    raise typer.Exit(verdict_exit(record) or ending(record.state))


def _report(record: JobRecord) -> dict[str, Any] | None:
    path = record.result.outputs.report if record.result else None
    return msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Any]) if path else None


def show(report: Facts, console: Console | None = None) -> None:
    """Tables for people, the verdict last: it is what stays on the screen."""
    screen = console or Console(highlight=False)
    image = report["image"]
    screen.print(_pairs("Image", _image(image)))
    guest = image.get("guest", {})
    for system in guest.get("systems", ()):
        screen.print(_pairs(system["name"], _system(system)))
    for system in guest.get("windows", ()):
        screen.print(_pairs(system["name"], [("version", system["version"]), ("on", system["root"])]))
    if guest.get("volumes"):
        screen.print(_volumes(guest["volumes"]))
    else:
        _show_partitions(screen, image)
    for warning in report["warnings"]:
        screen.print(Text(f"warning: {printable(warning)}", "yellow"))
    if "verdict" in image:
        _show_verdict(screen, image["verdict"])


def _image(image: Facts) -> Iterable[tuple[str, str]]:
    variant = image.get("variant")
    yield "path", image["path"]
    yield "format", f"{image['format']} ({variant})" if variant else image["format"]
    yield "disk", size(image.get("virtual_size"))
    yield "file", size(image.get("file_bytes"))
    if image.get("check"):
        yield "check", image["check"]["verdict"]
    for each in image.get("findings", ()):
        yield each["code"], each["reason"]


def _system(system: Facts) -> Iterable[tuple[str, str]]:
    loader = system["loader"]
    yield "root", system["root"]
    yield "host name", system.get("hostname", "")
    yield "architecture", system.get("architecture", "")
    yield "boots by", f"{loader['firmware']}, {loader.get('config', 'no GRUB configuration')}"
    for kernel in system.get("kernels", ()):
        yield "kernel", _kernel(kernel)
    for mount in system.get("mounts", ()):
        meaning = mount.get("device", "not on this disk")
        yield "fstab", f"{mount['mount_point']} is {mount['spec']} ({meaning})"
    network = system.get("network", {})
    yield "network", ", ".join([*network.get("configured_by", ()), *network.get("interfaces", ())])
    if system.get("selinux"):
        selinux = system["selinux"]
        labels = {True: "labelled", False: "not labelled"}.get(selinux.get("labelled"), "labels unread")
        yield "SELinux", f"{selinux['mode']}, {labels}"
    yield "agents", ", ".join(system.get("agents", ()))


def _kernel(kernel: Facts) -> str:
    drivers = kernel.get("drivers")
    if drivers is None:
        return f"{kernel['version']}: initramfs not readable"
    there = [name for name, found in drivers.items() if found]
    missing = [name for name, found in drivers.items() if not found]
    words = [f"has {', '.join(there)}"] if there else []
    words += [f"lacks {', '.join(missing)}"] if missing else []
    return f"{kernel['version']}: {'; '.join(words)}"


def _volumes(volumes: Sequence[Facts]) -> Table:
    table = _table("Volumes", "device", "size", "content", "label or UUID", "mounted", "used")
    for each in volumes:
        used = size(each["used"]) if "used" in each else ""
        name = each.get("label") or each.get("uuid") or ""
        cells = (each.get("filesystem", ""), name, each.get("mounted_on", ""), used)
        table.add_row(*_texts([each["device"], size(each["size"]), *cells]))
    return table


def _show_partitions(screen: Console, image: Facts) -> None:
    found = image.get("partition_table") or {}
    if not found.get("partitions"):
        return
    table = _table(f"Partitions ({found['scheme']})", "number", "size", "type", "content")
    for each in found["partitions"]:
        cells = [str(each["number"]), size(each["size_bytes"]), each["type"], each.get("filesystem") or ""]
        table.add_row(*_texts(cells))
    screen.print(table)


def _show_verdict(screen: Console, verdict: Facts) -> None:
    if verdict["reasons"]:
        table = _table("Findings", "", "finding", "mended by")
        for each in verdict["reasons"]:
            style = _STYLES[each["weight"]]
            table.add_row(Text(each["weight"], style), *_texts([each["words"], each.get("mended_by", "")]))
        screen.print(table)
    screen.print(Text(printable(verdict["sentence"]), _BOOTS[verdict["boots"]]))


def _pairs(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = _table(title, "", "", header=False)
    for name, value in rows:
        if value:
            table.add_row(*_texts([name, value]))
    return table


def _table(title: str, *columns: str, header: bool = True) -> Table:
    table = Table(
        title=Text(printable(title), "bold"),
        title_justify="left",
        show_header=header,
        box=None,
        pad_edge=False,
    )
    for each in columns:
        table.add_column(each, overflow="fold")
    return table


def _texts(cells: Iterable[str]) -> list[Text]:
    """Names and labels come from the image: nothing in them is markup or drives the terminal."""
    return [Text(printable(each)) for each in cells]


def size(count: int | None) -> str:
    """Bytes in the largest unit that leaves a number above one."""
    if count is None:
        return ""
    value, unit = float(count), 0
    while value >= _KIB and unit < len(_UNITS) - 1:
        value, unit = value / _KIB, unit + 1
    return f"{value:.{1 if unit else 0}f} {_UNITS[unit]}"
