"""What a guest's serial console says about how far it came; the text is the guest's, so it is hostile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.boot.console import MAX_LINE_CHARS, TAIL_LINES, Console, plain

SAID = {
    "login": "Debian GNU/Linux 12 guest ttyS0\r\n\r\nguest login: ",
    "multi-user": "[  OK  ] Reached target \x1b[0;1;39mMulti-User System\x1b[0m.\r\n",
    "windows": "\r\nComputer is booting, SAC started and initialized.\r\n",
    "kernel-panic": "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on (0,0)\r\n",
    "initramfs-shell": "ALERT!  UUID=9c70 does not exist.  Dropping to a shell!\r\n(initramfs) ",
    "dracut-shell": "Entering emergency mode. Exit the shell to continue.\r\ndracut:/# ",
    "emergency-mode": "You are in emergency mode. After logging in, type journalctl\r\n",
    "grub-rescue": "error: unknown filesystem.\r\nEntering rescue mode...\r\ngrub rescue> ",
    "grub-shell": "\x1b[H\x1b[J GNU GRUB version 2.06\r\n\x1b[4;1Hgrub> ",
    "no-bootable-device": "Boot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n",
    "no-boot-loader": "Booting from Hard Disk...\r\nMissing operating system\r\n",
    "uefi-shell": "UEFI Interactive Shell v2.2\r\nShell> ",
}


def console(text: str) -> Console:
    made = Console()
    made.feed(text.encode())
    return made


@pytest.mark.parametrize("stage", SAID)
def test_console_tells_how_the_boot_ended(stage: str) -> None:
    verdict = console(SAID[stage]).verdict
    assert verdict is not None
    assert verdict.stage.name == stage
    assert verdict.stage.boots == (stage in {"login", "multi-user", "windows"})


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("SeaBIOS (version 1.16.2)\r\nBooting from Hard Disk...\r\n", "firmware"),
        ("GRUB loading.\r\nWelcome to GRUB!\r\n", "boot-loader"),
        ("[    0.000000] Linux version 6.1.0-13-amd64\r\n", "kernel"),
        ("Loading, please wait...\r\n", "initramfs"),
        ("[  OK  ] Started systemd-journald.service\r\n", "systemd"),
    ],
)
def test_stages_on_the_way_decide_nothing(text: str, stage: str) -> None:
    made = console(text)
    assert made.verdict is None
    assert made.latest is not None
    assert made.latest.stage.name == stage


@pytest.mark.parametrize(
    "text",
    [
        "Last login: Mon Nov 23 on ttyS0\r\n",
        "systemd-logind: New session, login: none of it\r\n",
        "no message about a Kernel that panics\r\n",
    ],
)
def test_words_that_only_look_like_a_sign_decide_nothing(text: str) -> None:
    assert console(text).verdict is None


def test_login_prompt_replaces_the_sign_that_led_to_it() -> None:
    made = console(SAID["multi-user"] + SAID["login"])
    assert made.verdict is not None
    assert made.verdict.stage.name == "login"


def test_first_final_sign_decides_otherwise() -> None:
    made = console(SAID["kernel-panic"] + SAID["login"])
    assert made.verdict is not None
    assert made.verdict.stage.name == "kernel-panic"


def test_restarted_guest_is_judged_anew_and_keeps_its_tail() -> None:
    made = console("[  OK  ] Started relabelling\r\n")
    made.forget_stage()
    assert made.latest is None
    assert any("relabelling" in each for each in made.tail)


TEXT = "".join(SAID.values())


@given(st.lists(st.integers(0, len(TEXT.encode())), max_size=12), st.sampled_from(sorted(SAID)))
def test_verdict_does_not_depend_on_how_the_text_is_cut(cuts: list[int], stage: str) -> None:
    data = SAID[stage].encode()
    ends = sorted({min(each, len(data)) for each in cuts} | {len(data)})
    made, start = Console(), 0
    for end in ends:
        made.feed(data[start:end])
        start = end
    whole = console(SAID[stage])
    assert (made.verdict, made.tail) == (whole.verdict, whole.tail)


@given(st.binary(max_size=2000))
def test_any_bytes_are_heard_and_shown_safely(data: bytes) -> None:
    made = Console()
    made.feed(data)
    assert len(made.tail) <= TAIL_LINES
    assert all(each.isprintable() for line in made.tail for each in line)


def test_line_without_end_takes_bounded_memory() -> None:
    made = Console()
    for _ in range(200):
        made.feed(b"x" * 10_000)
    made.feed(b"\x1b[" + b"1;" * 100_000)
    assert all(len(each) <= MAX_LINE_CHARS for each in made.tail)


@given(st.text(max_size=300))
def test_nothing_that_drives_a_terminal_is_left(text: str) -> None:
    assert not any(each < " " and each != "\n" for each in plain(text))
