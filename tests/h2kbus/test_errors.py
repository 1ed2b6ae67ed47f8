"""The tree of errors is the one that its documentation shows, and each error has a code with advice."""

import inspect

import pytest

from h2kbus import errors
from h2kbus.errors import CODES, ErrorCode, H2KBusError

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, H2KBusError) and kind is not H2KBusError
]


def documented() -> dict[str, str]:
    """Each error's parent as the module's docstring draws it."""
    parents: dict[str, str] = {}
    parent = "H2KBusError"
    for line in (errors.__doc__ or "").splitlines():
        branch, _, words = line.partition("── ")
        if not words:
            continue
        name = words.split()[0]
        nested = "│" in branch
        parents[name] = parent if nested else "H2KBusError"
        parent = parent if nested else name
    return parents


def test_documented_tree_is_the_real_one() -> None:
    real = {kind.__name__: kind.__mro__[1].__name__ for kind in KINDS}
    assert documented() == real


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_public(kind: type[H2KBusError]) -> None:
    assert kind.__name__ in errors.__all__


@pytest.mark.parametrize("kind", KINDS)
def test_error_has_a_code_with_advice(kind: type[H2KBusError]) -> None:
    assert CODES[kind.code].advice


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_advice(code: ErrorCode) -> None:
    assert CODES[code].advice.endswith(".")


def test_error_tells_its_own_code_over_that_of_its_kind() -> None:
    error = errors.ServerUnfit("no JetStream", code=ErrorCode.JETSTREAM_MISSING)
    assert (error.error_code, error.advice) == (
        ErrorCode.JETSTREAM_MISSING,
        CODES[ErrorCode.JETSTREAM_MISSING].advice,
    )


def test_operation_says_with_which_code_it_failed() -> None:
    error = errors.OperationFailed(ErrorCode.NO_SPACE, "full", needed=7)
    assert (error.error_code, error.retryable, error.details) == (ErrorCode.NO_SPACE, True, {"needed": 7})
