"""A hostile tool: each attack tries one way out for real, and says "through" if there is one.

Run as a program by the system's Python inside the sandbox, so it stands alone. Everything is bounded: an
attack that gets through does no harm.
"""

import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FORKS = 150
MIB = 1 << 20


def read_file(known: dict[str, Any]) -> bool:
    """Read a file of the worker's user that no job has to do with."""
    return bool(Path(known["canary"]).read_text() == known["secret"])


def write_elsewhere(known: dict[str, Any]) -> bool:
    """Leave something in a directory that the worker's user may write to."""
    Path(known["elsewhere"], "was-here").write_text("x")
    return Path(known["elsewhere"], "was-here").exists()


def write_source(known: dict[str, Any]) -> bool:
    """Open the source again, to write to it: it belongs to the worker's user."""
    with Path(f"/proc/self/fd/{known['descriptor']}").open("r+b") as source:
        source.write(b"changed")
    return True


def read_source(known: dict[str, Any]) -> bool:
    """What a tool may do: read the source by the name that it is given."""
    return Path(f"/proc/self/fd/{known['descriptor']}").read_text() == "the source"


def connect(known: dict[str, Any]) -> bool:
    """Reach a server that listens on the loopback of the host, as the bus itself may."""
    with socket.create_connection(("127.0.0.1", known["port"]), timeout=5):
        return True


def connect_abstract(known: dict[str, Any]) -> bool:
    """Reach a Unix socket that has no place in any directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
        tried.connect("\0" + known["abstract"])
        return True


def read_environment(known: dict[str, Any]) -> bool:
    """Look for a secret in the environments of the other processes of the same user."""
    for each in Path("/proc").glob("[0-9]*/environ"):
        try:
            if known["secret"].encode() in each.read_bytes():
                return True
        except OSError:
            continue
    return False


def kill_others(known: dict[str, Any]) -> bool:
    """End a process of the same user that has nothing to do with the job."""
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        if each.read_bytes().split(b"\0")[:2] == [b"sleep", known["victim"].encode()]:
            os.kill(int(each.parent.name), signal.SIGKILL)
            return True
    return False


def see_others(known: dict[str, Any]) -> bool:
    """Read the command line of a process that has nothing to do with the job."""
    seen = [each.read_bytes().split(b"\0")[:2] for each in Path("/proc").glob("[0-9]*/cmdline")]
    return [b"sleep", known["victim"].encode()] in seen


def fork_bomb(_: dict[str, Any]) -> bool:
    """Start many processes; they end with this one."""
    for _n in range(FORKS):
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            time.sleep(20)
            os._exit(0)
    return True


def take_memory(_: dict[str, Any]) -> bool:
    """Reserve far more memory than an honest tool needs, without touching it."""
    with mmap.mmap(-1, 2048 * MIB):
        return True


def grow_file(_: dict[str, Any]) -> bool:
    """Write a file that is larger than any honest result; it has a hole, so that it takes no room."""
    with Path("large").open("wb") as file:
        file.seek(64 * MIB)
        file.write(b"x")
    return True


def open_many(_: dict[str, Any]) -> bool:
    """Hold many files open."""
    held = [os.open("/dev/null", os.O_RDONLY) for _n in range(FORKS)]
    return len(held) == FORKS


def burn(_: dict[str, Any]) -> bool:
    """Use three seconds of processor time."""
    while time.process_time() < 3:
        pass
    return True


def stay(known: dict[str, Any]) -> bool:
    """Leave a process that no group and no session ties to this one."""
    subprocess.Popen(
        ["sleep", known["marked"]],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return True


def gain(known: dict[str, Any]) -> bool:
    """Become somebody else by a program that may; failing such a program, be one who still could."""
    if known["setuid"]:
        return (
            subprocess.run([known["setuid"], "-u"], capture_output=True, text=True, check=True).stdout
            == "0\n"
        )
    return "NoNewPrivs:\t0" in Path("/proc/self/status").read_text()


def main() -> None:
    """Try the named attack with what is known of the host."""
    name, known = sys.argv[1], json.loads(sys.argv[2])
    try:
        through = globals()[name](known)
    except (OSError, MemoryError, subprocess.SubprocessError) as error:
        sys.stdout.write(f"stopped: {error}\n")
        return
    sys.stdout.write("through\n" if through else "stopped: it found nothing\n")


if __name__ == "__main__":
    main()
