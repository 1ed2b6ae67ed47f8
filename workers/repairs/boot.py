"""The boot loader: its code on the disk, its configuration, and what it tells the kernel of its root."""

from typing import Final

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest import fstab, grub
from workers.guest.disks import EFI_TYPES, Volume
from workers.guest.grub import MenuEntry
from workers.repairs.case import Case

CONSOLES: Final = ("console=tty0", "console=ttyS0")
_CMDLINE: Final = "GRUB_CMDLINE_LINUX"
_ESP: Final = ("/boot/efi", "/efi", "/boot")
_FALLBACK: Final = "EFI/BOOT/BOOTX64.EFI"
_SHIMS: Final = ("shimx64.efi", "grubx64.efi")
_ARGUMENT_FILES: Final = (grub.DEFAULTS, "/etc/kernel/cmdline", *grub.CONFIGS)
_INSTALLERS: Final = ("grub-install", "grub2-install")
_EFI_MODULES: Final = ("/usr/lib/grub/x86_64-efi", "/usr/lib/grub2/x86_64-efi", "/usr/share/grub2/x86_64-efi")


async def root_argument(case: Case) -> None:
    """Have every kernel told its root by a name that exists and lasts."""
    files = [*_ARGUMENT_FILES, *await loader_files(case)]
    wrong: dict[str, set[str]] = {}
    for path in files:
        text = await case.rescue.read_text(path)
        names = {each for each in grub.root_arguments(text or "") if not is_right_root(case, each)}
        if names and text is not None:
            wrong[path] = names
            await case.rescue.write_text(path, grub.with_root(text, names, root_name(case)))
    if not wrong:
        return case.notes.add("root_argument", "not needed", "every root= names the root by a lasting name")
    words = "; ".join(f"{', '.join(sorted(names))} in {path}" for path, names in wrong.items())
    return case.notes.add("root_argument", "applied", f"now {root_name(case)}, was {words}")


def is_right_root(case: Case, name: str) -> bool:
    """Whether a `root=` means the guest's root and will still mean it on KVM; variables are GRUB's."""
    if name.startswith("$"):
        return True
    volume = fstab.resolve(name, case.disks.volumes)
    return volume == case.system.root.volume and not fstab.is_fragile(name)


def root_name(case: Case) -> str:
    """What the guest's root is called for good."""
    name = fstab.lasting_name(case.system.root.volume)
    if name is None:
        message = f"{case.system.root.volume.device} has no UUID that its kernel could find it by"
        raise OperationFailed(ErrorCode.REPAIR_FAILED, message)
    return name


async def loader_files(case: Case) -> list[str]:
    """The entries of the Boot Loader Specification."""
    names = await case.rescue.names(grub.ENTRIES)
    return [f"{grub.ENTRIES}/{each}" for each in names if each.endswith(".conf")]


async def menu(case: Case) -> tuple[str | None, list[MenuEntry]]:
    """Where GRUB's configuration is, and the kernels that it offers."""
    for path in grub.CONFIGS:
        text = await case.rescue.read_text(path)
        if text is not None:
            found = grub.entries(text)
            texts = [await case.rescue.read_text(each) or "" for each in await loader_files(case)]
            return path, found + [each for each in map(grub.loader_entry, texts) if each]
    return None, []


async def config_faults(case: Case) -> list[str]:
    """What keeps the configuration from booting the guest, in words."""
    path, found = await menu(case)
    if path is None:
        return ["there is no grub.cfg"]
    text = await case.rescue.read_text(path) or ""
    kernels = set(await case.rescue.names("/boot"))
    uuids = {each.uuid for each in case.disks.volumes}
    faults = [] if found else [f"{path} boots no kernel"]
    faults += [f"it boots {each.image}, which is gone" for each in found if each.kernel not in kernels]
    faults += [
        f"it looks for the filesystem {each}" for each in sorted(grub.searched(text)) if each not in uuids
    ]
    roots = {each.root for each in found if each.root and not is_right_root(case, each.root)}
    return faults + [f"it says root={each}" for each in sorted(roots)]


async def boot_config(case: Case) -> None:
    """Write GRUB's configuration anew by the guest's own tool. Raises GUEST_UNSUPPORTED or REPAIR_FAILED."""
    faults = await config_faults(case)
    if not faults and not await _lacks_console(case):
        return case.notes.add("boot_config", "not needed", "it boots kernels that exist, from the right root")
    tool = await _regenerate(case)
    path, _ = await menu(case)
    text = await case.rescue.read_text(path or grub.CONFIGS[0]) or ""
    wrong = {each for each in grub.root_arguments(text) if not is_right_root(case, each)}
    if wrong and path:
        # Without udev's links grub-mkconfig falls back to the kernel's names.
        await case.rescue.write_text(path, grub.with_root(text, wrong, root_name(case)))
    left = await config_faults(case)
    if left:
        raise OperationFailed(ErrorCode.REPAIR_FAILED, f"the new boot configuration is no better: {left[0]}")
    return case.notes.add(
        "boot_config", "applied", f"{tool}; before: {faults[0] if faults else 'no console'}"
    )


async def _regenerate(case: Case) -> str:
    rescue = case.rescue
    if await rescue.has_program("update-grub"):
        await rescue.inside("update-grub")
        return "update-grub"
    for tool, config in (("grub2-mkconfig", grub.CONFIGS[1]), ("grub-mkconfig", grub.CONFIGS[0])):
        if await rescue.has_program(tool):
            await rescue.inside(tool, "-o", config)
            return tool
    raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, "the guest has no update-grub and no grub-mkconfig")


async def console(case: Case) -> None:
    """Have the kernel speak on the serial console too, where KVM's tools listen."""
    text = await case.rescue.read_text(grub.DEFAULTS)
    if text is None:
        raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, f"the guest has no {grub.DEFAULTS}")
    if "console=ttyS" in text:
        return case.notes.add("console", "not needed", "the kernel speaks on a serial console")
    await case.rescue.write_text(grub.DEFAULTS, with_arguments(text, CONSOLES))
    return case.notes.add("console", "applied", f"{' '.join(CONSOLES)} in {grub.DEFAULTS}")


async def _lacks_console(case: Case) -> bool:
    """Whether the defaults ask for a serial console and the configuration does not yet."""
    text = await case.rescue.read_text(grub.DEFAULTS) or ""
    _, found = await menu(case)
    asked = any("console=ttyS" in line for line in text.splitlines() if line.startswith(_CMDLINE))
    return asked and not any("console=ttyS" in each.arguments for each in found)


def with_arguments(text: str, arguments: tuple[str, ...]) -> str:
    """GRUB's defaults with arguments added to those of every kernel."""
    lines = text.splitlines()
    for position, line in enumerate(lines):
        key, equals, value = line.partition("=")
        if key.strip() == _CMDLINE and equals:
            words = [value.strip().strip("\"'"), *arguments]
            lines[position] = f'{_CMDLINE}="{" ".join(filter(None, words))}"'
            return "\n".join(lines) + "\n"
    return "\n".join([*lines, f'{_CMDLINE}="{" ".join(arguments)}"']) + "\n"


async def boot_loader(case: Case) -> None:
    """Install GRUB again for the guest's firmware. Raises GUEST_UNSUPPORTED or REPAIR_FAILED."""
    asked = getattr(case.parameters, "firmware", "auto")
    firmware = case.disks.boots_by if asked == "auto" else asked
    fault = await loader_fault(case, firmware)
    if fault is None:
        return case.notes.add("boot_loader", "not needed", f"GRUB is whole, for {firmware}")
    how = await (_install_efi(case) if firmware == "uefi" else _install_bios(case))
    left = await loader_fault(case, firmware)
    if left:
        raise OperationFailed(ErrorCode.REPAIR_FAILED, f"{how} ran, and still {left}")
    return case.notes.add("boot_loader", "applied", f"{how}; before: {fault}")


async def loader_fault(case: Case, firmware: str) -> str | None:
    """What keeps the firmware from reaching GRUB, in words; None if nothing does."""
    return await (_efi_fault(case) if firmware == "uefi" else _bios_fault(case))


async def _bios_fault(case: Case) -> str | None:
    disk = case.rescue.device
    sector = grub.read_sector(await case.rescue.read_device(disk, 0, grub.SECTOR))
    if sector.loader is None:
        return "the disk has no boot code"
    if sector.loader != "grub":
        return None
    on_disk = await case.rescue.read_device(disk, sector.core_at, grub.CORE_BYTES)
    if not any(on_disk):
        return "GRUB's core image is missing"
    for path in grub.CORES:
        core = await case.rescue.read(path, grub.CORE_BYTES)
        if core is not None and not grub.same_core(on_disk, core):
            return f"GRUB's core image is not the one of {path}"
    return None


async def _install_bios(case: Case) -> str:
    for tool in _INSTALLERS:
        if await case.rescue.has_program(tool):
            await case.rescue.inside(tool, "--target=i386-pc", "--recheck", case.rescue.device)
            return tool
    raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, "the guest has no grub-install")


def _esp(case: Case) -> tuple[str, Volume] | None:
    """Where the guest mounts its EFI system partition."""
    for place in _ESP:
        volume = case.system.mounted.get(place)
        if volume is not None and volume.part_type in EFI_TYPES:
            return place, volume
    return None


async def _efi_fault(case: Case) -> str | None:
    found = _esp(case)
    if found is None:
        return "the guest mounts no EFI system partition"
    start = await case.rescue.read(f"{found[0]}/{_FALLBACK}", 2)
    # The firmware's own list of systems does not move with the disk: only the fallback path does.
    return None if start == b"MZ" else f"{_FALLBACK} is missing from the EFI system partition"


async def _install_efi(case: Case) -> str:
    found = _esp(case)
    if found is None:
        message = "the guest mounts no EFI system partition; its fstab has to name one for /boot/efi"
        raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, message)
    place = found[0]
    vendor = await _vendor_loader(case, place)
    if vendor:
        return await _copy_fallback(case, place, vendor)
    for tool in _INSTALLERS:
        if await case.rescue.has_program(tool) and await _has_efi_modules(case):
            options = ("--target=x86_64-efi", f"--efi-directory={place}", "--removable", "--no-nvram")
            await case.rescue.inside(tool, *options)
            return f"{tool} --removable"
    raise OperationFailed(
        ErrorCode.GUEST_UNSUPPORTED, "the guest has no GRUB for UEFI that could be installed"
    )


async def _has_efi_modules(case: Case) -> bool:
    return any([await case.rescue.exists(each) for each in _EFI_MODULES])


async def _vendor_loader(case: Case, place: str) -> str | None:
    """The distribution's own signed loader, if it is still there: it also starts under Secure Boot."""
    for vendor in await case.rescue.names(f"{place}/EFI"):
        names = await case.rescue.names(f"{place}/EFI/{vendor}") if vendor.upper() != "BOOT" else []
        for shim in _SHIMS:
            if shim in (each.lower() for each in names):
                return f"{place}/EFI/{vendor}"
    return None


async def _copy_fallback(case: Case, place: str, vendor: str) -> str:
    root = case.rescue.sysroot
    names = {each.lower(): each for each in await case.rescue.names(vendor)}
    first = next(names[each] for each in _SHIMS if each in names)
    await case.rescue.run("mkdir", "-p", f"{root}{place}/EFI/BOOT")
    await case.rescue.run("cp", f"{root}{vendor}/{first}", f"{root}{place}/{_FALLBACK}")
    if "grubx64.efi" in names:
        await case.rescue.run(
            "cp", f"{root}{vendor}/{names['grubx64.efi']}", f"{root}{place}/EFI/BOOT/grubx64.efi"
        )
    return f"{vendor}/{first} copied to the fallback path"
