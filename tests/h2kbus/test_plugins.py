"""Operations of third parties: loaded by name or by entry point, or refused with the reason."""

from pathlib import Path

import pytest

from h2kbus.errors import SettingsError
from h2kbus.plugins import load_catalog
from subjects.builtin import BUILT_IN
from tests.conftest import REHEARSE

DECLARATION = """
import msgspec
from subjects.operations import OperationDeclaration, Phase

class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass

{attribute} = OperationDeclaration(
    name="{name}", summary="Polish.", parameters=Parameters, phases=(Phase("polish", 1),), runner="x:Y"
)
"""


def write_module(place: Path, module: str, text: str) -> None:
    (place / f"{module}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the interpreter's search path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_nothing_named_gives_the_built_in_operations() -> None:
    assert set(load_catalog()) == {each.name for each in BUILT_IN}


def test_named_operation_is_known_besides_the_built_in_ones() -> None:
    assert set(load_catalog([REHEARSE])) == {"rehearse", *(each.name for each in BUILT_IN)}


def test_operation_named_twice_is_there_once() -> None:
    assert load_catalog([REHEARSE, REHEARSE]).plugin_tokens == {"op-rehearse"}


def test_installed_operation_is_found_by_its_entry_point(site: Path) -> None:
    write_module(site, "polish_plugin", DECLARATION.format(attribute="POLISH", name="polish"))
    info = site / "polish-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polish\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[h2kbus.operations]\npolish = polish_plugin:POLISH\n")
    catalog = load_catalog()
    assert "polish" in catalog
    assert catalog.plugin_tokens == {"op-polish"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("tests.rehearse:MISSING", "has no attribute 'MISSING'"),
        ("tests.rehearse", "cannot be loaded"),
        (":X", "cannot be loaded"),
        ("", "cannot be loaded"),
        ("tests.rehearse:Rehearse", "is no OperationDeclaration"),
        ("tests.rehearse:STEPS", "is no OperationDeclaration"),
    ],
)
def test_name_that_leads_to_no_operation_is_refused(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_catalog([name])
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("module", "text"),
    [("plugin_with_typo", "def"), ("plugin_that_fails", "1 / 0"), ("plugin_with_bad_name", "UNKNOWN")],
)
def test_plug_in_that_cannot_be_imported_is_refused(site: Path, module: str, text: str) -> None:
    write_module(site, module, text)
    with pytest.raises(SettingsError, match=module):
        load_catalog([f"{module}:X"])


def test_plug_in_whose_own_import_is_missing_names_it(site: Path) -> None:
    write_module(site, "plugin_with_needs", "import not_installed_here")
    with pytest.raises(SettingsError, match="No module named 'not_installed_here'"):
        load_catalog(["plugin_with_needs:X"])
