import contextlib
import io
import json
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from h2kbus.documents import Defaults, Kind, read_documents
from h2kbus.errors import InvalidMessage

NAMES = """
    version job_id kind operation payload data type image source target path format checksum
    execution priority max_attempts deadline constraints required_capabilities routing worker_pool
    metadata labels annotations audit tags artifacts output_path parameters manifest_version disks
    pipeline convert enabled output storage_mapping disk_mappings id batch_version vms manifest
    overrides shared_config state
"""
KEYS = st.sampled_from(NAMES.split())
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["1.0", "VMOperation", "guestkit.inspect", "guestkit.convert", "/a", "vmdk", "a..."])
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=6)
    ),
    max_leaves=20,
)
FORMS = st.sampled_from(
    [
        {},
        {"manifest_version": "1.0", "disks": [{"path": "/a"}]},
        {"batch_version": "1.0", "vms": [{"path": "/a"}]},
        {"kind": "VMOperation", "operation": "guestkit.convert"},
        {"operation": "convert", "image": {"path": "/a"}},
    ]
)
FORMED = st.builds(lambda form, more: form | more, FORMS, st.dictionaries(KEYS, VALUES, max_size=4))

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


def read_any(data: bytes, kind: Kind | None) -> None:
    with contextlib.suppress(InvalidMessage):
        for document in read_documents(io.BytesIO(data), Defaults("carol", "/out"), kind=kind):
            assert document.spec.audit.requested_by


@given(VALUES | FORMED, st.sampled_from(["json", "jsonl", None]))
@quick
def test_any_json_is_a_job_or_refused(value: Any, kind: Kind | None) -> None:
    read_any(json.dumps(value).encode(), kind)


@given(VALUES | FORMED)
@quick
def test_any_yaml_is_a_job_or_refused(value: Any) -> None:
    read_any(yaml.safe_dump(value, allow_unicode=True).encode(), "yaml")


@given(
    st.binary(max_size=64) | st.text("[]{}:,-&*!\"'\n a1%").map(str.encode), st.sampled_from(["yaml", None])
)
@quick
def test_any_bytes_are_a_job_or_refused(data: bytes, kind: Kind | None) -> None:
    read_any(data, kind)
