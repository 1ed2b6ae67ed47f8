"""The program that holds a libguestfs appliance and does in it what it is told, line by line, in JSON.

It stands alone, because it runs under the system's Python: that is where the libguestfs binding is. It
speaks the protocol of `workers.guest.rescue`. The first argument is the disk with its settings as JSON.
Whatever is done happens inside the appliance, a virtual machine of its own without a network.
"""

import base64
import json
import shlex
import signal
import stat
import sys
from typing import Any

import guestfs

SYSROOT = "/sysroot"
_FILE_LIMIT = 3 << 20
_CHUNK = 3 << 20
_LABEL = "guest"


class Refused(Exception):
    """What was asked cannot be done; the sentence is for people."""


def run(handle: Any, argv: list[str], limit: int) -> dict[str, Any]:
    """Run a tool of the appliance. Its status and both its outputs come back in one answer.

    The appliance's own call takes one string for its shell, so that every word is quoted here.
    """
    words = shlex.join(argv)
    collected = f"{words} >/tmp/h2k.out 2>/tmp/h2k.err </dev/null; echo $?"
    shown = f"head -c {limit} /tmp/h2k.out | base64 -w0; echo; tail -c 16384 /tmp/h2k.err | base64 -w0"
    answer = handle.debug("sh", [f"{collected}; {shown}"])
    status, _, rest = answer.partition("\n")
    out, _, err = rest.partition("\n")
    return {"status": int(status), "out": out.strip(), "err": err.strip()}


def read(handle: Any, path: str, limit: int) -> dict[str, Any]:
    """The beginning of a guest's file; nothing if there is no such file."""
    if not handle.is_file(path, followsymlinks=True):
        return {"data": None}
    return {"data": base64.b64encode(handle.pread(path, min(limit, _FILE_LIMIT), 0)).decode()}


def write(handle: Any, path: str, data: str, mode: int | None) -> dict[str, Any]:
    """Replace a guest's file as a whole, by a new one that is renamed over it.

    A symbolic link is followed first. Owner, mode and label stay those of the file that was there.
    """
    target = handle.realpath(path) if handle.exists(path) else path
    fresh = f"{target}.h2kbus-new"
    try:
        handle.write(fresh, base64.b64decode(data))
    except RuntimeError:
        handle.rm_f(fresh)
        raise
    if handle.exists(target):
        handle.copy_attributes(target, fresh, all=True)
    elif mode is not None:
        handle.chmod(mode, fresh)
    handle.mv(fresh, target)
    return {}


def kind_of(handle: Any, path: str) -> dict[str, Any]:
    """What is at a guest's path, symbolic links followed: file, directory, other, or nothing."""
    if not handle.exists(path):
        return {"kind": None, "size": 0}
    found = handle.statns(path)
    mode = found["st_mode"]
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory"}
    return {
        "kind": kinds.get(stat.S_IFMT(mode), "other"),
        "size": found["st_size"],
        "mode": stat.S_IMODE(mode),
    }


def listing(handle: Any, path: str) -> dict[str, Any]:
    """The names in a guest's directory; none if there is no such directory."""
    return {"names": list(handle.ls(path)) if handle.is_dir(path, followsymlinks=True) else []}


def remove(handle: Any, path: str) -> dict[str, Any]:
    """Remove a guest's file, if it is there."""
    handle.rm_f(path)
    return {}


def rename(handle: Any, path: str, to: str) -> dict[str, Any]:
    """Give a guest's file another name."""
    handle.mv(path, to)
    return {}


def download(handle: Any, path: str, to: str) -> dict[str, Any]:
    """Copy a guest's file to the worker's scratch directory."""
    handle.download(path, to)
    return {}


def read_device(handle: Any, device: str, offset: int, length: int) -> dict[str, Any]:
    """A range of a block device."""
    data = b""
    while len(data) < length:
        chunk = handle.pread_device(device, min(_CHUNK, length - len(data)), offset + len(data))
        if not chunk:
            break
        data += chunk
    return {"data": base64.b64encode(data).decode()}


def windows(handle: Any) -> dict[str, Any]:
    """What libguestfs recognises as Windows: its registry is read."""
    found = []
    for root in dict.fromkeys(handle.inspect_os()):
        if handle.inspect_get_type(root) == "windows":
            major, minor = handle.inspect_get_major_version(root), handle.inspect_get_minor_version(root)
            name = handle.inspect_get_product_name(root)
            arch = handle.inspect_get_arch(root)
            found.append(
                {
                    "root": _as_it_is_called(handle, root),
                    "name": name,
                    "version": f"{major}.{minor}",
                    "architecture": arch,
                }
            )
    return {"found": found}


def _as_it_is_called(handle: Any, device: str) -> str:
    """Libguestfs calls every first disk sda, whatever it is called in the appliance."""
    return (
        device_of_guest(handle) + device.removeprefix("/dev/sda") if device.startswith("/dev/sda") else device
    )


DEEDS = {
    "run": run,
    "read": read,
    "write": write,
    "kind": kind_of,
    "list": listing,
    "remove": remove,
    "rename": rename,
    "download": download,
    "read_device": read_device,
    "windows": windows,
}


def launched(settings: dict[str, Any]) -> Any:
    """Start the appliance with the disk, under KVM only where that was proven to work."""
    handle = guestfs.GuestFS(python_return_dict=True)
    handle.set_backend("direct")
    if not settings["accelerated"]:
        handle.set_backend_setting("force_tcg", "1")
    handle.set_memsize(settings["memory_mb"])
    handle.set_network(False)
    handle.set_autosync(True)
    # On a bus of its own: on the one that it shares with the appliance's own disk, which of the two is
    # sda is settled anew at each start, by which of them answers first.
    where = {"iface": "virtio", "label": _LABEL}
    handle.add_drive(settings["path"], format=settings["format"], readonly=settings["read_only"], **where)
    handle.launch()
    return handle


def device_of_guest(handle: Any) -> str:
    """What the guest's disk is called here, where the appliance has a disk too."""
    found = handle.debug("sh", [f"ls -d /dev/vda || readlink -e /dev/disk/guestfs/{_LABEL}"]).split()
    if not found:
        raise Refused("the appliance does not show the guest's disk")
    return str(found[0])


def answer(handle: Any, line: str) -> dict[str, Any]:
    """Do what one line asks for; a refusal is an answer too."""
    asked = json.loads(line)
    try:
        deed: Any = DEEDS[asked.pop("do")]
        done: dict[str, Any] = deed(handle, **asked)
    except (RuntimeError, Refused, ValueError) as error:
        # A ValueError: the binding takes and gives text only, and a guest's names may be none.
        return {"error": str(error)}
    return done


def say(message: dict[str, Any]) -> None:
    """One line of the protocol."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def stop(*_: object) -> None:
    """Being told to end is leaving in order: the appliance's processes and files go with the handle."""
    sys.exit(1)


def main() -> None:
    """Serve until stdin ends; then everything written is on the disk before the appliance goes."""
    signal.signal(signal.SIGTERM, stop)
    try:
        handle = launched(json.loads(sys.argv[1]))
        device = device_of_guest(handle)
    except (RuntimeError, Refused) as error:
        say({"error": f"the appliance does not start: {error}"})
        sys.exit(1)
    version = handle.version()
    tool = f"libguestfs {version['major']}.{version['minor']}.{version['release']}"
    say({"ready": True, "device": device, "sysroot": SYSROOT, "tool": tool})
    for line in sys.stdin:
        if line.strip() == "end":
            handle.umount_all()
            handle.shutdown()
            say({})
            break
        say(answer(handle, line))
    handle.close()


if __name__ == "__main__":
    main()
