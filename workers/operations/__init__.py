"""The operations themselves; each is one class that serves one attempt."""

import functools
import importlib

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.operations import OperationDeclaration
from workers.context import Operation


def load_runner(declaration: OperationDeclaration) -> type[Operation]:
    """Import the class that a declaration names as `package.module:Class`.

    Raises OperationFailed with CAPABILITY_MISSING if this worker does not have it.
    """
    return _runner(declaration.name, declaration.runner)


@functools.lru_cache(256)
def _runner(name: str, place: str) -> type[Operation]:
    module_name, _, class_name = place.partition(":")
    try:
        runner = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"operation {name} cannot be loaded from {place!r}: {error}"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message) from error
    if not isinstance(runner, type) or not callable(getattr(runner, "run", None)):
        message = f"{place!r} of operation {name} is no class with a run method"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message)
    return runner
