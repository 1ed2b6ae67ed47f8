"""Subjects are built and read back without loss, and nothing else passes for one."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects.codes import ErrorCode, InvalidSubject
from subjects.commands import Verb
from subjects.grammar import CommandSubject, Grammar, JobSubject, token
from subjects.lanes import ANY, lane_name

GRAMMAR = Grammar()
TOKENS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_characters=".*>").filter(str.isprintable),
    min_size=1,
    max_size=128,
)
CAPABILITIES = st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True).filter(lambda name: name != ANY)
LANES = st.sets(CAPABILITIES, max_size=5).map(lane_name)
ROOTS = st.lists(st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), min_size=1, max_size=3).map(
    lambda names: ".".join([*names, "v1"])
)
BAD_TOKENS = {
    "empty": "",
    "dot": "a.b",
    "star": "a*",
    "tail wildcard": ">",
    "space": "a b",
    "no-break space": "a\u00a0b",
    "tab": "a\tb",
    "newline": "a\n",
    "carriage return": "a\rb",
    "nul": "a\x00b",
    "escape": "\x1b[31m",
    "delete": "a\x7f",
    "C1 control": "a\x85",
    "line separator": "a\u2028b",
    "right-to-left override": "a\u202eb",
    "too long": "a" * 129,
}


def lane_of(length: int) -> str:
    """The lane of eight capabilities whose name has this length, 248 at least."""
    return lane_name([*(letter * 32 for letter in "abcdefg"), "h" * (length - 231)])


@given(root=ROOTS, submitter=TOKENS, verb=st.sampled_from(Verb), job_id=TOKENS)
def test_a_commands_subject_reads_back(root: str, submitter: str, verb: Verb, job_id: str) -> None:
    grammar = Grammar(root)
    subject = grammar.command(submitter, verb, job_id)
    assert grammar.parse_command(subject) == CommandSubject(submitter, verb, job_id)


@given(root=ROOTS, pool=TOKENS, lane=LANES, priority=st.integers(1, 10), job_id=TOKENS)
def test_a_jobs_subject_reads_back(root: str, pool: str, lane: str, priority: int, job_id: str) -> None:
    grammar = Grammar(root)
    subject = grammar.job(pool, lane, priority, job_id)
    assert grammar.parse_job(subject) == JobSubject(pool, lane, priority, job_id)


@given(root=ROOTS, job_id=TOKENS)
def test_a_progress_subject_reads_back(root: str, job_id: str) -> None:
    assert Grammar(root).parse_progress(Grammar(root).progress(job_id)) == job_id


def test_subjects_are_those_of_the_contract() -> None:
    assert GRAMMAR.command("ann", Verb.SUBMIT, "j1") == "h2k.v1.commands.ann.submit.j1"
    assert GRAMMAR.commands() == "h2k.v1.commands.*.*.*"
    assert GRAMMAR.job("default", "guestfs+kvm", 1, "j1") == "h2k.v1.jobs.default.guestfs+kvm.1.j1"
    assert GRAMMAR.progress("j1") == "h2k.v1.progress.j1"
    assert GRAMMAR.dead("invalid-spec", "j1") == "h2k.v1.dead.invalid-spec.j1"
    assert GRAMMAR.control("w1") == "h2k.v1.control.w1"


def test_a_token_of_128_characters_passes() -> None:
    assert token("a" * 128) == "a" * 128


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_token_that_nats_would_read_otherwise_is_refused(bad: str) -> None:
    with pytest.raises(InvalidSubject) as refusal:
        token(bad)
    assert refusal.value.error_code is ErrorCode.INVALID_SUBJECT


@given(before=TOKENS, bad=st.sampled_from(".*> \t\n\r\x00\x1f\x7f"), after=TOKENS)
def test_one_bad_character_anywhere_spoils_a_token(before: str, bad: str, after: str) -> None:
    with pytest.raises(InvalidSubject):
        token(before[:60] + bad + after[:60])


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_no_builder_takes_a_bad_token(bad: str) -> None:
    builders: tuple[Callable[[], str], ...] = (
        lambda: GRAMMAR.command(bad, Verb.SUBMIT, "j"),
        lambda: GRAMMAR.command("s", Verb.SUBMIT, bad),
        lambda: GRAMMAR.job(bad, ANY, 5, "j"),
        lambda: GRAMMAR.job("p", bad, 5, "j"),
        lambda: GRAMMAR.job("p", ANY, 5, bad),
        lambda: GRAMMAR.progress(bad),
        lambda: GRAMMAR.dead(bad, "j"),
        lambda: GRAMMAR.dead("r", bad),
        lambda: GRAMMAR.control(bad),
    )
    for build in builders:
        with pytest.raises(InvalidSubject):
            build()


@pytest.mark.parametrize("priority", [-1, 0, 11])
def test_a_priority_outside_1_to_10_has_no_subject(priority: int) -> None:
    with pytest.raises(InvalidSubject, match="within 1-10"):
        GRAMMAR.job("default", ANY, priority, "j")


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "h2k.v1.commands",
        "h2k.v1.commands.ann.submit",
        "h2k.v1.commands.ann.submit.j1.more",
        "h2k.v1.commands.ann.submit.",
        "h2k.v1.commands.ann.submit.*",
        "h2k.v1.commands..submit.j1",
        "h2k.v1.progress.j1",
        "h2k.v2.commands.ann.submit.j1",
        "other.v1.commands.ann.submit.j1",
        "x.h2k.v1.commands.ann.submit.j1",
        "$KV.h2k_jobs.j1",
    ],
)
def test_a_foreign_subject_is_no_command(subject: str) -> None:
    with pytest.raises(InvalidSubject):
        GRAMMAR.parse_command(subject)


def test_an_unknown_verb_is_refused_by_name() -> None:
    with pytest.raises(InvalidSubject, match=r"'destroy'.*submit, cancel, retry"):
        GRAMMAR.parse_command("h2k.v1.commands.ann.destroy.j1")


@pytest.mark.parametrize(
    "subject",
    [
        "h2k.v1.jobs.default.any.0.j1",
        "h2k.v1.jobs.default.any.11.j1",
        "h2k.v1.jobs.default.any.05.j1",
        "h2k.v1.jobs.default.any.+5.j1",
        "h2k.v1.jobs.default.kvm+guestfs.5.j1",
        "h2k.v1.jobs.default.kvm+kvm.5.j1",
        "h2k.v1.jobs.default.KVM.5.j1",
        "h2k.v1.jobs.default.any.5",
        "h2k.v1.dead.default.any.5.j1",
    ],
)
def test_a_foreign_subject_is_no_job(subject: str) -> None:
    with pytest.raises(InvalidSubject):
        GRAMMAR.parse_job(subject)


@pytest.mark.parametrize(
    "subject", ["h2k.v1.progress", "h2k.v1.progress.a.b", "h2k.v1.progress.>", "a.b.c.d"]
)
def test_a_foreign_subject_is_no_progress(subject: str) -> None:
    with pytest.raises(InvalidSubject):
        GRAMMAR.parse_progress(subject)


@pytest.mark.parametrize("root", ["h2k.v1", "site-a.v1", "acme.h2k.v1", "a-b.c-d.v1"])
def test_a_root_is_a_name_and_the_version(root: str) -> None:
    assert Grammar(root).progress("j") == f"{root}.progress.j"


@pytest.mark.parametrize(
    "root",
    [
        "",
        "v1",
        ".v1",
        "h2k",
        "H2K.v1",
        "h2_k.v1",
        "h2k.v2",
        "h2k.v1.",
        "h2k.v1\n",
        "h2k..v1",
        "h 2k.v1",
        "h2k.*.v1",
        "h2k.>.v1",
        "$KV.v1",
    ],
)
def test_anything_else_is_no_root(root: str) -> None:
    with pytest.raises(InvalidSubject, match="is not a root"):
        Grammar(root)


def test_roots_do_not_read_each_others_subjects() -> None:
    with pytest.raises(InvalidSubject):
        Grammar("other.v1").parse_progress(GRAMMAR.progress("j"))


def test_a_lane_that_can_be_built_can_be_read() -> None:
    lane = lane_of(256)
    assert GRAMMAR.parse_job(GRAMMAR.job("default", lane, 5, "j")).lane == lane


@pytest.mark.parametrize(
    "use",
    [
        lambda: GRAMMAR.job("default", lane_of(257), 5, "j"),
        lambda: GRAMMAR.parse_job(f"h2k.v1.jobs.default.{lane_of(257)}.5.j"),
    ],
    ids=["built", "read"],
)
def test_a_longer_lane_is_refused_with_its_length(use: Callable[[], object]) -> None:
    with pytest.raises(InvalidSubject, match="has 257 characters; at most 256"):
        use()


@pytest.mark.parametrize("tail", [f"{'p' * 129}.any.5.j", f"default.any.5.{'j' * 129}"])
def test_only_the_lane_may_be_longer_than_a_token(tail: str) -> None:
    with pytest.raises(InvalidSubject, match="at most 128"):
        GRAMMAR.parse_job(f"h2k.v1.jobs.{tail}")
