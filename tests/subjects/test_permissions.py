"""Roles as data: what each is granted, and how patterns of subjects lie within each other."""

import pytest

from subjects.codes import InvalidSubject
from subjects.grammar import Grammar
from subjects.permissions import (
    Role,
    answers_many,
    grants,
    inbox_prefix,
    narrower,
    user_of,
)
from subjects.topology import Topology

TOPOLOGY = Topology(Grammar())
WALLED = [role for role in Role if role is not Role.ADMIN]


@pytest.mark.parametrize("role", WALLED)
def test_no_role_but_the_admin_makes_changes_empties_or_deletes_a_stream(role: Role) -> None:
    verbs = ("CREATE", "UPDATE", "PURGE", "DELETE", "MSG", "RESTORE", "SNAPSHOT")
    for subject in grants(TOPOLOGY, role, "u").publish:
        assert not subject.startswith(tuple(f"$JS.API.STREAM.{verb}" for verb in verbs))


@pytest.mark.parametrize("role", WALLED)
def test_no_grant_covers_a_whole_family_of_the_api(role: Role) -> None:
    given = grants(TOPOLOGY, role, "u").publish
    assert [each for each in given if narrower(each, "$JS.API.>") == "$JS.API.>"] == []
    assert [each for each in given if each.startswith("$JS.API.") and each.split(".")[3] in "*>"] == []


@pytest.mark.parametrize("role", Role)
def test_first_that_a_role_hears_is_its_own_inbox(role: Role) -> None:
    assert grants(TOPOLOGY, role, "u").subscribe[0] == "_INBOX_u.>"


def test_worker_speaks_for_one_id_unless_it_may_choose() -> None:
    alone, shared = grants(TOPOLOGY, Role.WORKER, "w1"), grants(TOPOLOGY, Role.WORKER, "w1", "*")
    assert "$KV.h2k_workers.w1" in alone.publish
    assert "$KV.h2k_workers.*" not in alone.publish
    assert "$KV.h2k_workers.*" in shared.publish


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "é", "x" * 65, "-a", "a\n"])
def test_name_that_cannot_stand_in_a_subject_is_refused(name: str) -> None:
    with pytest.raises(InvalidSubject):
        grants(TOPOLOGY, Role.OBSERVER, name)


@pytest.mark.parametrize(
    ("prefix", "user"),
    [
        ("_INBOX_alice", "alice"),
        ("_INBOX", None),
        ("_INBOX_", None),
        ("_INBOX_a.b", None),
        (None, None),
        ("alice", None),
    ],
)
def test_private_inbox_tells_its_user(prefix: str | None, user: str | None) -> None:
    assert user_of(prefix) == user
    assert user is None or inbox_prefix(user) == prefix


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("a.b", "a.b", "a.b"),
        ("a.*", "a.b", "a.b"),
        ("a.b", "a.*", "a.b"),
        ("a.>", "a.b.c", "a.b.c"),
        ("a.>", "a.*", "a.*"),
        ("a.*.c", "a.b.>", None),
        ("a.>", "a", None),
        ("a.*", "a.b.c", None),
        ("a.b", "a.c", None),
        (">", "a.>", "a.>"),
        ("a.*", "a.>", "a.*"),
    ],
)
def test_narrower_of_two_patterns(first: str, second: str, found: str | None) -> None:
    assert narrower(first, second) == found


@pytest.mark.parametrize(
    ("subject", "many"),
    [
        ("$JS.API.DIRECT.GET.KV_h2k_jobs", True),
        ("$JS.API.DIRECT.GET.KV_h2k_jobs.$KV.h2k_jobs.*", False),
        ("$JS.API.CONSUMER.MSG.NEXT.H2K_JOBS.*", True),
        ("$JS.API.STREAM.INFO.H2K_JOBS", False),
        ("$JS.ACK.H2K_JOBS.>", False),
        ("$KV.h2k_jobs.*", False),
    ],
)
def test_only_batches_and_pulls_bring_several_answers(subject: str, many: bool) -> None:
    assert answers_many(subject) is many
