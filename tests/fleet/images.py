"""Container images for test hosts, made without pulling anything: from Debian packages and the NATS wheel.

The base takes this machine's package sources and trusted authorities, so that what can be installed here can
be installed there. It is kept by Docker from one run to the next.
"""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.conftest import REPOSITORY
from tests.servers import wheel_server

SUITE: Final = "bookworm"
PACKAGES: Final = ("ca-certificates", "python3", "python3-venv", "wget", "faketime")
SECONDS: Final = 1800
TRUST: Final = (
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/apt/apt.conf.d",
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pip.conf",
)
"""What is taken from this machine, where it has it."""


def docker(*words: object, **more: object) -> str:
    """Run the docker client; what it says on stdout. Raises CalledProcessError."""
    argv = ["docker", *map(str, words)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=SECONDS, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stderr}"
    return str(done.stdout)


def base_image() -> str:
    """Debian with Python: the base of all the others."""
    digest = hashlib.sha256(repr((SUITE, PACKAGES, TRUST)).encode()).hexdigest()[:12]
    name = f"h2kbus-test-base:{digest}"
    if docker("images", "--quiet", name).strip():
        return name
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
        subprocess.run(words, check=True, capture_output=True, timeout=SECONDS)
        for each in TRUST:
            _take(Path("/") / each, root / each)
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        words = ["tar", "--create", "--directory", str(root), "."]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as tar:
            docker("import", "-", name, stdin=tar.stdout)
        assert tar.returncode == 0
    return name


def _take(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
    elif source.exists():
        shutil.copy(source, target)


def nats_image(base: str) -> str:
    """The wheel's server on the base, which brings what the health check asks with."""
    name = "h2kbus-test-nats:wheel"
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(wheel_server(), Path(place) / "nats-server")
        (Path(place) / "Dockerfile").write_text(
            f'FROM {base}\nCOPY nats-server /usr/local/bin/\nENTRYPOINT ["nats-server"]\n'
        )
        docker("build", "--quiet", "--tag", name, place)
    return name


def bus_image(base: str, target: str = "plain") -> str:
    """What the project's own Dockerfile makes on the base."""
    name = f"h2kbus:{target}"
    docker(
        "build", "--quiet", "--network", "host", "--build-arg", f"PYTHON_IMAGE={base}",
        "--target", target, "--tag", name, REPOSITORY,
    )  # fmt: skip
    return name
