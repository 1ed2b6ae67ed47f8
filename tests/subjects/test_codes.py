"""The list of error codes is closed, complete and says what to do."""

import re
from collections.abc import Iterator

import pytest

import h2kbus.errors
from subjects.codes import CODES, ErrorCode, H2KBusError, InvalidMessage

PROTOCOL = """
    IMAGE_NOT_FOUND IMAGE_UNSAFE CHECKSUM_MISMATCH OUTPUT_EXISTS NO_SPACE TIMEOUT CANCELLED WORKER_LOST
    TOOL_FAILED FS_CORRUPTION_UNRECOVERABLE CAPABILITY_MISSING DEADLINE_EXCEEDED INVALID_SPEC
"""


def descendants(root: type[H2KBusError]) -> Iterator[type[H2KBusError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ in {"subjects.codes", "h2kbus.errors"}:
            yield from descendants(child)


ERRORS = tuple(descendants(H2KBusError))


def test_the_table_has_every_code_and_no_other() -> None:
    assert list(CODES) == list(ErrorCode)


def test_a_code_is_spelled_like_its_name() -> None:
    assert all(code.value == code.name for code in ErrorCode)


@pytest.mark.parametrize("code", PROTOCOL.split())
def test_the_protocols_codes_are_there(code: str) -> None:
    assert ErrorCode(code) in CODES


@pytest.mark.parametrize("code", ErrorCode)
def test_the_advice_is_one_sentence(code: ErrorCode) -> None:
    advice = CODES[code].advice
    assert re.fullmatch(r"[A-Z](?:[^.!?\n]|\.(?=\S))*\.", advice), advice


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_carries_a_code_of_the_table(error: type[H2KBusError]) -> None:
    assert error.code in CODES


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_public_and_described_in_the_tree(error: type[H2KBusError]) -> None:
    assert error.__name__ in h2kbus.errors.__all__
    assert re.search(rf"\b{error.__name__}\b", h2kbus.errors.__doc__ or "")


def test_an_error_says_what_happened_and_what_to_do() -> None:
    error = H2KBusError("the disk is full", code=ErrorCode.NO_SPACE, path="/out")
    assert (str(error), error.error_code, error.retryable) == ("the disk is full", ErrorCode.NO_SPACE, True)
    assert error.advice == CODES[ErrorCode.NO_SPACE].advice
    assert error.details == {"path": "/out"}


def test_a_refusal_keeps_reason_and_path_apart() -> None:
    error = InvalidMessage.under("$.parameters", "Expected `bool`, got `int` - at `$.compress`")
    assert (error.path, error.reason) == ("$.parameters.compress", "Expected `bool`, got `int`")
    assert str(error) == "$.parameters.compress: Expected `bool`, got `int`"


@pytest.mark.parametrize(
    "code", ["IMAGE_NOT_FOUND", "CHECKSUM_MISMATCH", "OUTPUT_EXISTS", "INVALID_SPEC", "CANCELLED"]
)
def test_what_cannot_change_by_itself_is_not_tried_again(code: str) -> None:
    assert not CODES[ErrorCode(code)].retryable


@pytest.mark.parametrize(
    "code", ["WORKER_LOST", "LEASE_LOST", "DRAINED", "NO_SPACE", "TOOL_FAILED", "BUS_UNREACHABLE"]
)
def test_what_another_attempt_may_mend_is_tried_again(code: str) -> None:
    assert CODES[ErrorCode(code)].retryable
