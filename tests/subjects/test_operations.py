"""An operation takes its own parameters and actions, and there is no operation that does nothing."""

from typing import Any

import msgspec
import pytest

from subjects.builtin import BUILT_IN, CONVERT, INSPECT, ConvertParameters
from subjects.catalog import OperationCatalog
from subjects.codec import convert
from subjects.codes import ErrorCode, InvalidMessage, InvalidSubject
from subjects.lanes import check_token
from subjects.operations import OperationDeclaration, Phase, parameters_of, plugin_token, selected_actions
from subjects.spec import JobSpec

CATALOG = OperationCatalog()


class ShredParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    passes: int = 1


def plugin(name: str = "shred_disk", needs: frozenset[str] = frozenset()) -> OperationDeclaration:
    return OperationDeclaration(
        name=name,
        summary="Overwrite an image.",
        parameters=ShredParameters,
        phases=(Phase("shred", 1),),
        runner="acme.shred:Shred",
        needs=needs,
    )


def spec(operation: str = "convert", **changes: Any) -> JobSpec:
    return convert(
        JobSpec,
        {
            "operation": operation,
            "image": {"path": "/a.raw"},
            "artifacts": {"output_path": "/out"},
            "audit": {"requested_by": "ann"},
            **changes,
        },
    )


def refusal_of(job: JobSpec, catalog: OperationCatalog = CATALOG) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as refusal:
        catalog.declaration_of(job)
    assert refusal.value.error_code is ErrorCode.INVALID_SPEC
    return refusal.value


@pytest.mark.parametrize("declaration", BUILT_IN, ids=lambda each: each.name)
def test_a_built_in_operation_is_found_and_fully_declared(declaration: OperationDeclaration) -> None:
    assert CATALOG.declaration_of(spec(declaration.name)) is declaration
    assert all(check_token(need) for need in declaration.needs)
    assert len({phase.name for phase in declaration.phases}) == len(declaration.phases) > 0
    assert all(phase.weight > 0 for phase in declaration.phases)
    assert declaration.required_actions <= set(declaration.actions)
    assert declaration.parameters.__struct_config__.forbid_unknown_fields


def test_an_operation_that_is_not_there_is_refused_and_the_known_ones_named() -> None:
    name = "no_such_thing"
    error = refusal_of(spec(name))
    assert error.path == "$.operation"
    assert repr(name) in error.reason
    assert "convert, fs_repair" in error.reason


@pytest.mark.parametrize("operation", ["convert", "inspect"])
def test_an_unknown_parameter_is_refused_by_name(operation: str) -> None:
    error = refusal_of(spec(operation, parameters={"compres": True}))
    assert error.path == "$.parameters"
    assert "`compres`" in error.reason


@pytest.mark.parametrize("name", ["a - at `$.b`", "a` - at `$.b", "a - at `key` in `$.b`", "`$[0]"])
def test_a_parameters_name_cannot_forge_the_path_of_its_refusal(name: str) -> None:
    assert refusal_of(spec(parameters={name: 1})).path == "$.parameters"


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"compress": "yes"}, "$.parameters.compress"),
        ({"output_format": "iso"}, "$.parameters.output_format"),
        ({"compression_type": "lz4"}, "$.parameters.compression_type"),
        ({"subformat": "twoGbMaxExtentSparse"}, "$.parameters.subformat"),
        ({"output_name": ""}, "$.parameters.output_name"),
        ({"output_name": "../disk.qcow2"}, "$.parameters.output_name"),
        ({"output_name": "a/b"}, "$.parameters.output_name"),
        ({"output_name": ".hidden"}, "$.parameters.output_name"),
        ({"output_name": "-o"}, "$.parameters.output_name"),
        ({"output_name": "a\n"}, "$.parameters.output_name"),
        ({"output_name": "a" * 252}, "$.parameters.output_name"),
    ],
)
def test_an_unfit_parameter_is_refused_with_its_path(parameters: dict[str, Any], path: str) -> None:
    assert refusal_of(spec(parameters=parameters)).path == path


def test_convert_defaults_to_a_compressed_qcow2() -> None:
    assert parameters_of(CONVERT, {}) == ConvertParameters(output_format="qcow2", compress=True)


def test_no_named_action_means_all_of_them() -> None:
    assert selected_actions(INSPECT, ()) == INSPECT.actions
    assert selected_actions(INSPECT, ("check", "info")) == ("check", "info")


def test_an_action_that_the_operation_does_not_have_is_refused_with_its_place() -> None:
    error = refusal_of(spec(requested_actions=["convert", "fsck"]))
    assert error.path == "$.requested_actions[1]"
    assert "'fsck'" in error.reason
    assert "convert, check, compare" in error.reason


def test_an_action_that_cannot_be_left_out_is_missed_by_name() -> None:
    error = refusal_of(spec(requested_actions=["check"]))
    assert (error.path, error.reason) == ("$.requested_actions", "convert cannot leave out: convert")


def test_a_v1_inspection_may_ask_for_nbd_attach() -> None:
    assert CATALOG.declaration_of(spec("inspect", requested_actions=["nbd_attach"])) is INSPECT


def test_a_plug_in_is_found_checked_and_listed() -> None:
    declaration = plugin()
    catalog = OperationCatalog([declaration])
    assert catalog.declaration_of(spec("shred_disk", parameters={"passes": 3})) is declaration
    assert refusal_of(spec("shred_disk", parameters={"pases": 3}), catalog).path == "$.parameters"
    assert set(catalog) == {*(each.name for each in BUILT_IN), "shred_disk"}
    assert len(catalog) == len(BUILT_IN) + 1


def test_a_plug_ins_jobs_go_only_to_workers_that_have_it() -> None:
    declaration = plugin(needs=frozenset({"qemu-img"}))
    catalog = OperationCatalog([declaration])
    assert catalog.plugin_tokens == {"op-shred-disk"}
    assert catalog.needs_of(declaration, spec("shred_disk")) == {"qemu-img", "op-shred-disk"}


def test_a_built_in_operation_needs_no_token_of_its_own() -> None:
    assert OperationCatalog([plugin()]).needs_of(CONVERT, spec()) == {"qemu-img"}
    assert CATALOG.plugin_tokens == frozenset()


@pytest.mark.parametrize("name", ["a", "a" * 64, "convert_with_a_very_long_name_of_its_own"])
def test_a_plug_ins_token_is_a_capability(name: str) -> None:
    assert check_token(plugin_token(name)).startswith("op-a" if name.startswith("a") else "op-convert")


@pytest.mark.parametrize(
    ("name", "token"), [("noop", "op-noop"), ("shred_disk", "op-shred-disk"), ("a" * 29, "op-" + "a" * 29)]
)
def test_a_plug_ins_token_is_its_name_where_that_fits(name: str, token: str) -> None:
    assert plugin_token(name) == token


@pytest.mark.parametrize("name", ["", "Shred", "shred-disk", "1st", "shred.disk", "shred\n", "a" * 65])
def test_a_declaration_refuses_a_name_that_no_job_could_ask_for(name: str) -> None:
    with pytest.raises(InvalidMessage, match="is no name for an operation"):
        plugin(name)


@pytest.mark.parametrize("name", ["convert", "inspect"])
def test_a_plug_in_cannot_take_the_place_of_a_built_in_operation(name: str) -> None:
    with pytest.raises(InvalidMessage, match=f"{name} is built in"):
        OperationCatalog([plugin(name)])


def test_a_declaration_refuses_a_need_that_is_no_capability() -> None:
    with pytest.raises(InvalidSubject, match="'QEMU'"):
        plugin(needs=frozenset({"QEMU"}))


def test_plug_ins_with_different_names_have_different_tokens() -> None:
    assert plugin_token("convert_with_vendor_tool_for_esx") != plugin_token(
        "convert_with_vendor_tool_for_hyperv"
    )
