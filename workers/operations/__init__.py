"""The operations themselves; each is one class that serves one attempt."""

import importlib

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.operations import OperationDeclaration
from workers.context import Operation


def load_runner(declaration: OperationDeclaration) -> type[Operation]:
    """Import the class that a declaration names as `package.module:Class`.

    Raises OperationFailed with CAPABILITY_MISSING if this worker does not have it.
    """
    module_name, _, class_name = declaration.runner.partition(":")
    try:
        runner = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"operation {declaration.name} cannot be loaded from {declaration.runner!r}: {error}"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message) from error
    if not isinstance(runner, type) or not callable(getattr(runner, "run", None)):
        message = f"{declaration.runner!r} of operation {declaration.name} is no class with a run method"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message)
    return runner
