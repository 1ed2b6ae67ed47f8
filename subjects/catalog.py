"""The operations that one process knows, by name: the built-in ones and those of plug-ins."""

from collections.abc import Iterable, Iterator, Mapping

from subjects.builtin import BUILT_IN
from subjects.codes import InvalidMessage
from subjects.operations import OperationDeclaration, check_actions, parameters_of, plugin_token
from subjects.spec import JobSpec


class OperationCatalog(Mapping[str, OperationDeclaration]):
    """The operations that one process knows: the built-in ones and those of plug-ins."""

    def __init__(self, plugins: Iterable[OperationDeclaration] = ()) -> None:
        self._plugins = tuple(plugins)
        for taken in {each.name for each in BUILT_IN} & {each.name for each in self._plugins}:
            raise InvalidMessage(f"the operation {taken} is built in and cannot be replaced", "$.name")
        self._by_name = {each.name: each for each in (*BUILT_IN, *self._plugins)}

    @property
    def plugin_tokens(self) -> frozenset[str]:
        """A capability token for each plug-in: its jobs reach only workers that have it installed."""
        return frozenset(plugin_token(each.name) for each in self._plugins)

    def needs_of(self, declaration: OperationDeclaration, spec: JobSpec) -> frozenset[str]:
        """The capabilities that this job of the operation is routed by."""
        needs = declaration.needs_with(spec.parameters)
        return needs | {plugin_token(declaration.name)} if declaration in self._plugins else needs

    def __getitem__(self, name: str) -> OperationDeclaration:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def declaration_of(self, spec: JobSpec) -> OperationDeclaration:
        """Find and check the operation of a job.

        Raises InvalidMessage, with the field's path, for an unknown operation, an unknown or unfit
        parameter, and an action that the operation does not have.
        """
        declaration = self._by_name.get(spec.operation)
        if declaration is None:
            known = ", ".join(sorted(self._by_name))
            raise InvalidMessage(f"unknown operation {spec.operation!r}; known: {known}", "$.operation")
        parameters_of(declaration, spec.parameters)
        check_actions(declaration, spec.requested_actions)
        return declaration
