import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from h2kbus.documents import Defaults, Document, read_documents
from h2kbus.documents.reading import MAX_FILE_BYTES
from h2kbus.errors import InvalidMessage
from subjects.spec import MAX_SPEC_BYTES
from tests.h2kbus.documents.conftest import DEFAULTS, Read, Refuse

Job = dict[str, Any]


def origins(documents: list[Document]) -> list[str]:
    return [Path(each.origin).name for each in documents]


class Stream(io.BytesIO):
    name = "<stdin>"


def test_a_json_file_holds_one_job(read: Read, job: Job) -> None:
    assert origins(read("job.json", job)) == ["job.json"]


def test_a_json_file_holds_a_list_of_jobs(read: Read, job: Job) -> None:
    assert origins(read("job.json", [job, job])) == ["job.json[0]", "job.json[1]"]


def test_json_lines_are_named_by_their_line_and_blank_ones_are_skipped(read: Read, job: Job) -> None:
    line = json.dumps(job)
    text = f"\ufeff{line}\n\n  \r\n{line}\r\n{line}"
    assert origins(read("jobs.jsonl", text)) == ["jobs.jsonl:1", "jobs.jsonl:4", "jobs.jsonl:5"]


def test_json_lines_are_read_as_they_come(job: Job) -> None:
    stream = Stream(json.dumps(job).encode() + b"\nbroken\n")
    documents = read_documents(stream, DEFAULTS, kind="jsonl")
    assert next(documents).origin == "stdin:1"
    with pytest.raises(InvalidMessage, match=r"not valid JSON.*\(in stdin:2\)"):
        next(documents)


def test_a_yaml_file_holds_several_documents(read: Read) -> None:
    text = "operation: inspect\nimage: {path: /a}\n---\n- {operation: inspect, image: {path: /b}}\n---\n"
    assert origins(read("jobs.yaml", text)) == ["jobs.yaml[0]", "jobs.yaml[1][0]"]


def test_yaml_times_and_numbers_are_taken_as_json_would_write_them(read: Read) -> None:
    text = "version: 1.0\ncreated_at: 2026-01-30 10:00:00\noperation: inspect\nimage: {path: /a}\n"
    spec = read("job.yml", text)[0].spec
    assert (spec.version, str(spec.created_at)) == ("1.0", "2026-01-30 10:00:00+00:00")


@pytest.mark.parametrize("blank", ["", "\n \n"])
@pytest.mark.parametrize("lines", [1, 3])
def test_json_lines_are_told_by_their_content(job: Job, blank: str, lines: int) -> None:
    stream = Stream(blank.encode() + (json.dumps(job) + "\n").encode() * lines)
    first = blank.count("\n") + 1
    expected = [f"stdin:{first + number}" for number in range(lines)]
    assert origins(list(read_documents(stream, DEFAULTS))) == expected


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_told_by_its_content(job: Job, indent: int | None) -> None:
    stream = Stream(json.dumps([job, job], indent=indent).encode())
    assert origins(list(read_documents(stream, DEFAULTS))) == ["stdin[0]", "stdin[1]"]


def test_an_indented_json_job_is_told_by_its_content(read: Read, job: Job) -> None:
    assert origins(read("job", json.dumps(job, indent=2))) == ["job"]


def test_yaml_is_told_by_its_content(read: Read) -> None:
    assert origins(read("job.txt", "# a job\noperation: inspect\nimage: {path: /a}\n")) == ["job.txt"]


@pytest.mark.parametrize("name", ["job.json", "jobs.jsonl", "job.yaml", "job"])
@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_is_refused(refuse: Refuse, name: str, content: str) -> None:
    assert refuse(name, content).reason.startswith("holds no job (in ")


@pytest.mark.parametrize(("name", "content"), [("j.json", "[]"), ("j.yaml", "---\n---\n# none\n")])
def test_a_file_of_nothing_is_refused(refuse: Refuse, name: str, content: str) -> None:
    assert refuse(name, content).reason.startswith("holds no job (in ")


@pytest.mark.parametrize("name", ["job.json", "jobs.jsonl", "job.yaml", "job"])
def test_invalid_utf8_is_refused_by_name(refuse: Refuse, name: str) -> None:
    error = refuse(name, b'{"operation": "\xff"}')
    assert error.reason.startswith("not valid UTF-8: byte 16 is 0xff")
    assert name in str(error)


def test_a_missing_file_is_refused_in_the_words_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(InvalidMessage) as caught:
        list(read_documents(path, DEFAULTS))
    assert caught.value.reason == f"cannot be read: No such file or directory (in {path})"


def test_a_directory_is_refused_in_the_words_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(InvalidMessage, match="cannot be read: Is a directory"):
        list(read_documents(tmp_path, DEFAULTS))


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="cannot be read"):
        list(read_documents(Path("a\0b"), DEFAULTS))


@pytest.mark.parametrize("name", ["job.json", "jobs.jsonl", "job.yaml", "job"])
def test_a_job_of_two_megabytes_is_refused_with_its_size(refuse: Refuse, job: Job, name: str) -> None:
    text = json.dumps(job | {"parameters": {"note": "x" * 2_000_000}}, separators=(",", ":"))
    content = text.replace('":', '": ') if name == "job.yaml" else text
    assert f"the job has {len(text):,} bytes; 262,144 are allowed" in str(refuse(name, content))


def test_a_job_in_a_list_has_the_same_limit(refuse: Refuse, job: Job) -> None:
    error = refuse("jobs.json", [job, job | {"note": "x" * MAX_SPEC_BYTES}])
    assert "jobs.json[1]" in str(error)
    assert "262,144 are allowed" in str(error)


def test_many_small_jobs_may_be_larger_than_one_job(read: Read, job: Job) -> None:
    assert len(read("jobs.json", [job] * 1000)) == 1000


def test_a_line_may_be_as_long_as_a_job(read: Read, job: Job) -> None:
    room = MAX_SPEC_BYTES - len(json.dumps(job | {"requested_actions": [""]}))
    line = json.dumps(job | {"requested_actions": ["x" * room]})
    assert len(read("jobs.jsonl", f"{line}\r\n{line}\r\n")) == 2


def test_an_endless_line_is_refused_without_being_read_whole() -> None:
    with Path("/dev/zero").open("rb") as endless, pytest.raises(InvalidMessage, match="are allowed"):
        list(read_documents(endless, DEFAULTS, kind="jsonl"))


def test_an_endless_file_is_refused_without_being_read_whole() -> None:
    with (
        Path("/dev/zero").open("rb") as endless,
        pytest.raises(InvalidMessage, match=f"more than {MAX_FILE_BYTES:,} bytes"),
    ):
        list(read_documents(endless, DEFAULTS, kind="json"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x]\nb: *a\n", "line 2: YAML aliases are not accepted"),
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2: a mapping with a duplicate key"),
        ("[" * 5000 + "]" * 5000, "line 1: nested more than 100 levels"),
        ("a: !!python/object/apply:os.getpid []", "line 1: could not determine a constructor"),
        ("a: [", "not valid YAML: line 2"),
        ("a: 2026-99-99", "YAML that JSON cannot express: month must be in 1..12"),
        ("yes: 1", "YAML that JSON cannot express"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_yaml_that_could_harm_or_mislead_is_refused(refuse: Refuse, text: str, words: str) -> None:
    assert words in str(refuse("job.yaml", text))


@pytest.mark.parametrize("name", ["job.json", "jobs.jsonl", "job"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '{"a": 1' + "0" * 9000 + "}"]
)
def test_extreme_json_is_refused(refuse: Refuse, name: str, text: str) -> None:
    refuse(name, text)


@pytest.mark.parametrize("value", [1, "job", None, True, [["job"]], [None]])
def test_a_job_is_an_object(refuse: Refuse, value: Any) -> None:
    assert "a job is an object, not " in str(refuse("job.json", json.dumps(value)))


def test_yaml_support_is_loaded_for_yaml_only(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    code = (
        "import sys, pathlib, h2kbus.documents as d\n"
        f"list(d.read_documents(pathlib.Path({str(path)!r}), d.Defaults('me')))\n"
        "sys.exit('yaml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_output_directory_of_the_submitter_is_made_absolute(write_job: Path) -> None:
    document = next(read_documents(write_job, Defaults("me", "out")))
    assert document.spec.artifacts.output_path == str(Path.cwd() / "out")


@pytest.fixture
def write_job(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text('{"operation": "inspect", "image": {"path": "/a"}}')
    return path
