"""The guest that proves KVM, and a profile as it travels."""

import os
import subprocess
import sys
from pathlib import Path

from subjects.codec import decode, encode
from subjects.fleet import WorkerCapabilities
from workers.capabilities import detect, kvm_guest

GUEST = Path(kvm_guest.__file__)


def run_guest() -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-I", "-S", GUEST], check=False, capture_output=True, text=True, timeout=20
    )


def test_guest_says_in_one_line_how_it_went() -> None:
    done = run_guest()
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


def test_guest_computes_its_sum_or_says_what_stopped_it() -> None:
    """Where the device cannot be opened there is no guest; a host that only emulates gives up on it."""
    done = run_guest()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert done.returncode > 64
        assert done.stdout.startswith("/dev/kvm: ")
    else:
        proven = "ran 64-bit code and halted" in done.stdout
        assert (done.returncode == 0) == proven
        assert proven or "KVM internal error" in done.stdout


async def test_profile_is_read_as_it_was_sent(tmp_path: Path) -> None:
    profile = await detect(worker_id="w1", pool="default", slots=2, work_dir=tmp_path)
    assert decode(WorkerCapabilities, encode(profile)) == profile
