import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from h2kbus.documents import Defaults, Document, read_documents
from h2kbus.errors import InvalidMessage

DEFAULTS = Defaults(requested_by="carol", output_dir="/default/out")

Write = Callable[[str, Any], Path]
Read = Callable[[str, Any], list[Document]]
Refuse = Callable[[str, Any], InvalidMessage]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a document: text and bytes as they are, anything else as JSON."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


@pytest.fixture
def read(write: Write) -> Read:
    return lambda name, content: list(read_documents(write(name, content), DEFAULTS))


@pytest.fixture
def refuse(read: Read) -> Refuse:
    def refused(name: str, content: Any) -> InvalidMessage:
        with pytest.raises(InvalidMessage) as caught:
            read(name, content)
        assert "\n" not in str(caught.value)
        return caught.value

    return refused


@pytest.fixture
def job() -> dict[str, Any]:
    """A complete v1 document."""
    return {
        "version": "1.0",
        "job_id": "job-1",
        "created_at": "2026-01-30T10:00:00Z",
        "operation": "convert",
        "image": {"path": "/vms/web.vmdk", "format": "vmdk", "checksum": "sha256:" + "a" * 64},
        "requested_actions": ["convert"],
        "capability_requirements": {"needs_nbd": False},
        "execution_policy": {"retry_count": 2, "priority": 5},
        "artifacts": {"output_path": "/out"},
        "audit": {"requested_by": "alice", "tags": {"team": "ops"}},
        "parameters": {"output_format": "qcow2"},
    }
