"""A secret that stands where secrets stand never comes out, and ordinary lines stay as they are."""

import json
import shlex
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2kbus.redaction import HIDDEN, Redactor, redacted

WORDS = st.text(
    string.ascii_letters + string.digits + "!#$%*+-_~.,;?^|&()<>[]{}", min_size=8, max_size=40
).map(lambda each: f"q7{each}z9")
"""Secrets without blanks, slashes, quotes and backslashes."""
ANY = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=8, max_size=40
).map(lambda each: f"q7{each}z9")

PLACES = {
    "address": "fetched https://root:{}@esx-07/folder/disk.vmdk",
    "option": "run: tool --password {} /images/a.vmdk",
    "option with =": "run: tool --key-secret={} /images/a.vmdk",
    "single dash": "run: virt-v2v -ip --vpx-token {}",
    "variable": "export VC_PASSWORD={}",
    "setting": "api_key = {}",
    "header": "> Authorization: Bearer {}",
    "basic": "authorization: basic {}",
    "token header": "X-Auth-Token: {}",
    "cookie": "Set-Cookie: vmware_soap_session={}; Path=/",
    "passphrase": "luks.passphrase: {}",
}


@pytest.mark.parametrize("place", PLACES)
@given(secret=WORDS)
def test_secret_is_hidden_where_secrets_stand(place: str, secret: str) -> None:
    if place == "address":
        secret = secret.replace(",", "_").replace("/", "_")
    said = redacted(PLACES[place].format(secret))
    assert secret not in said
    assert HIDDEN in said


@given(secret=ANY)
def test_secret_is_hidden_as_a_word_of_a_command_line(secret: str) -> None:
    said = redacted(f"run: {shlex.join(['tool', '--password', secret, 'disk.img'])}")
    assert shlex.quote(secret) not in said


@given(secret=ANY)
def test_secret_is_hidden_in_json_and_its_neighbours_stay(secret: str) -> None:
    said = redacted(json.dumps({"password": secret, "size": 7}))
    assert json.dumps(secret) not in said
    assert '"size": 7' in said


@pytest.mark.parametrize(
    "secret",
    [
        "SUAM5YCSB3PIFJ5XFPY3EU3CS5TPKKPQ4A5Y2DLLY36KN6KZQ4KM6FBZ3A",
        "eyJ0eXAiOiJKV1QifQ.eyJzdWIiOiJVQSJ9.c2lnbmF0dXJl",
    ],
)
def test_seeds_and_tokens_are_known_by_their_looks(secret: str) -> None:
    assert redacted(f"found {secret} in it") == f"found {HIDDEN} in it"


def test_secret_of_qemu_is_hidden() -> None:
    said = redacted("run: qemu-img info --object secret,id=sec0,data=letmein,format=raw x")
    assert said == f"run: qemu-img info --object secret,id=sec0,data={HIDDEN},format=raw x"


@given(secret=ANY, before=st.text(max_size=20), after=st.text(max_size=20))
def test_value_of_a_secret_parameter_is_hidden_wherever_it_stands(
    secret: str, before: str, after: str
) -> None:
    redactor = Redactor.of({"source": {"vc_password": secret}, "size": 3})
    assert secret not in redactor.text(f"{before}{secret}{after}")
    assert redactor.value({"argv": [f"x{secret}"]}) == {"argv": [f"x{HIDDEN}"]}


def test_parameters_keep_what_is_no_secret() -> None:
    given_ = {"luks": {"passphrase": "open sesame", "slot": 2}, "tokens": ["a-token"], "use_token": True}
    hidden = {"luks": {"passphrase": HIDDEN, "slot": 2}, "tokens": HIDDEN, "use_token": True}
    assert Redactor.of(given_).value(given_) == hidden


ORDINARY = (
    "2026-11-25T18:30:00.000Z attempt 1 of convert on worker-1",
    "run: qemu-img convert -p -t none -f vmdk -O qcow2 -W -c -o compression_type=zlib fd:7 output",
    "qemu-img ended with status 0",
    "compare: applied (the content is equal)",
    "/etc/passwd: relabelled to system_u:object_r:passwd_file_t:s0",
    "no password was asked for, and no token given",
    "nats://127.0.0.1:4222 and https://example.com/a@b",
    "  warning: the secret of the trade is practice",
    "fs_repair: failed (xfs_repair found 3 errors: see @ block 7)",
    '"size": 7, "format": "qcow2"',
)


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_line_stays_as_it_is(line: str) -> None:
    assert redacted(line) == line


@given(st.lists(st.from_regex(r"[a-z0-9_/.:()=-]{1,12}", fullmatch=True), max_size=12).map(" ".join))
def test_line_without_a_secret_name_stays_as_it_is(line: str) -> None:
    names = ("pass", "secret", "token", "api", "private", "credential", "authorization", "cookie", "://")
    if not any(each in line for each in names):
        assert redacted(line) == line


@given(ANY)
def test_redacting_twice_changes_nothing(text: str) -> None:
    assert redacted(redacted(f"password={text} more")) == redacted(f"password={text} more")
