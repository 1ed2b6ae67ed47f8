"""Operations of third parties: found by entry point, or named as `module:attribute`."""

import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from h2kbus.errors import SettingsError
from subjects.catalog import OperationCatalog
from subjects.operations import ENTRY_POINT_GROUP, OperationDeclaration


def load_catalog(named: Iterable[str] = ()) -> OperationCatalog:
    """The built-in operations, those that installed packages register, and those in `named`.

    Raises SettingsError for one that cannot be imported or is no OperationDeclaration.
    """
    registered = [f"{each.module}:{each.attr}" for each in entry_points(group=ENTRY_POINT_GROUP)]
    return OperationCatalog(_load(each) for each in dict.fromkeys([*registered, *named]))


def _load(name: str) -> OperationDeclaration:
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # noqa: BLE001 - a plug-in's module may fail in any way
        raise SettingsError(f"operation {name!r} cannot be loaded: {error}") from None
    if not isinstance(found, OperationDeclaration):
        raise SettingsError(f"operation {name!r} is no OperationDeclaration")
    return found
