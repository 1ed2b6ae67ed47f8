"""SELinux labels: written now by the guest's own policy, or by the guest itself at its next boot."""

import re
from typing import Final

from h2kbus.errors import ErrorCode, OperationFailed
from workers.repairs.case import Case

CONFIG: Final = "/etc/selinux/config"
AUTORELABEL: Final = "/.autorelabel"
SETTING: Final = re.compile(r"^[ \t]*(?P<key>SELINUX|SELINUXTYPE)[ \t]*=[ \t]*(?P<value>\S+)", re.MULTILINE)
_WOULD: Final = re.compile(r"^Would relabel ", re.MULTILINE)
_MEMORY: Final = ("/proc", "/sys", "/dev", "/run")


async def selinux_relabel(case: Case) -> None:
    """Give every file its label. Raises REPAIR_FAILED if they are not there afterwards."""
    text = await case.rescue.read_text(CONFIG) or ""
    settings = {each["key"]: each["value"] for each in SETTING.finditer(text)}
    if settings.get("SELINUX", "disabled") == "disabled":
        return case.notes.add("selinux_relabel", "not needed", "the guest does not use SELinux")
    contexts = f"/etc/selinux/{settings.get('SELINUXTYPE', 'targeted')}/contexts/files/file_contexts"
    if not await case.rescue.exists(contexts):
        raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, f"the guest's policy has no {contexts}")
    method = getattr(case.parameters, "method", "auto")
    able = await case.rescue.has_program("setfiles") is not None
    if method == "relabel" and not able:
        raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, "the guest has no setfiles to write labels with")
    if method == "autorelabel" or not able:
        return await _autorelabel(case)
    return await _relabel(case, contexts)


async def _autorelabel(case: Case) -> None:
    if await case.rescue.exists(AUTORELABEL):
        return case.notes.add(
            "selinux_relabel", "not needed", f"{AUTORELABEL} is there: it happens at the next boot"
        )
    await case.rescue.write_text(AUTORELABEL, "")
    return case.notes.add(
        "selinux_relabel", "applied", f"{AUTORELABEL}: the guest relabels itself at its next boot"
    )


async def _relabel(case: Case, contexts: str) -> None:
    wrong = await _wrongly_labelled(case, contexts)
    if not wrong:
        return case.notes.add("selinux_relabel", "not needed", f"every file has the label of {contexts}")
    await case.rescue.inside("setfiles", "-F", *_excluded(), contexts, "/", accept={0, 1})
    left = await _wrongly_labelled(case, contexts)
    if left:
        raise OperationFailed(ErrorCode.REPAIR_FAILED, f"{left} files still have wrong labels after setfiles")
    return case.notes.add(
        "selinux_relabel", "applied", f"setfiles; {wrong} files or more had wrong labels, none has now"
    )


async def _wrongly_labelled(case: Case, contexts: str) -> int:
    """How many files setfiles would give another label; counted up to what its output may hold."""
    said = await case.rescue.inside("setfiles", "-F", "-n", "-v", *_excluded(), contexts, "/", accept={0, 1})
    return len(_WOULD.findall(said.out))


def _excluded() -> list[str]:
    return [word for each in _MEMORY for word in ("-e", each)]
