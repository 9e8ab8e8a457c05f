"""The lguest machine's part of the command line: order, units, words, mistakes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from launcher import build_parser
from runtime.errors import UserError
from runtime.lguest.options import (
    BlockWish,
    RngWish,
    SocketWish,
    TapWish,
    parse_arguments,
    settle,
)
from tests.helpers.images import code_kernel, write_file
from tests.helpers.launch import launch
from tests.helpers.lguest_images import bzimage, elf


def parse(*arguments: str) -> Namespace:
    return parse_arguments(build_parser(), ["run", *arguments])


# Devices --------------------------------------------------------------------------------------


def test_devices_come_in_the_order_of_the_command_line() -> None:
    options = parse(
        *("--rng", "--block", "a,ro", "--tunnet=192.168.19.1", "k", "--net", "listen:/s"),
        *("--disk", "b", "--tunnet", "bridge:br0:02:00:00:00:00:01", "--rng"),
    )
    assert options.devices == (
        RngWish(),
        BlockWish("a", readonly=True),
        TapWish("192.168.19.1"),
        SocketWish("/s", listen=True),
        BlockWish("b"),
        TapWish("bridge:br0:02:00:00:00:00:01"),
        RngWish(),
    )
    assert parse("k").devices == ()


@pytest.mark.parametrize(
    ("text", "path", "readonly"),
    [("f", "f", False), ("f,ro", "f", True), ("a,b", "a,b", False), ("f,ro,ro", "f,ro", True)],
)
def test_block(text: str, path: str, readonly: bool) -> None:
    assert parse("--block", text, "k").devices == (BlockWish(path, readonly),)


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "10.0.0.1:2:0:0:0:0:ff", "bridge:br0", "bridge:fifteen-letters"]
)
def test_tunnet_is_as_lguest_had_it(text: str) -> None:
    assert parse("--tunnet", text, "k").devices == (TapWish(text),)


def test_sockets_keep_their_text() -> None:
    for text in ("unix:/run/a b", "listen:x", "unix:x,mac=02:0:0:0:0:1"):
        (wish,) = parse("--net", text, "k").devices
        assert wish.text == text


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--block", "", "names no file"),
        ("--disk", ",ro", "names no file"),
        ("--tunnet", "", "'' is not an IPv4 address"),
        ("--tunnet", "10.0.0", "neither ip[:mac] nor bridge:name[:mac]"),
        ("--tunnet", "10.0.0.256", "'10.0.0.256' is not an IPv4 address"),
        ("--tunnet", "bridge", "not an IPv4 address"),
        ("--tunnet", "bridge:", "not the name of a bridge"),
        ("--tunnet", "bridge:sixteen--letters", "not the name of a bridge"),
        ("--tunnet", "bridge:a/b", "not the name of a bridge"),
        ("--tunnet", "bridge:a b", "not the name of a bridge"),
        ("--tunnet", "bridge:br0:1:2:3", "'1:2:3' is not a MAC address"),
        ("--tunnet", "10.0.0.1:", "'' is not a MAC address"),
        ("--tunnet", "10.0.0.1:01:0:0:0:0:1", "multicast"),
        ("--net", "x", "neither unix:PATH nor listen:PATH"),
        ("--net", "unix", "neither unix:PATH nor listen:PATH"),
        ("--net", "tcp:1", "neither unix:PATH nor listen:PATH"),
        ("--net", "unix:", "names no socket"),
        ("--net", "listen:,mac=2:0:0:0:0:1", "names no socket"),
        ("--net", "unix:" + "x" * 108, "longer than a socket's path"),
        ("--net", "unix:" + "ü" * 54, "longer than a socket's path"),
        ("--net", "unix:x,mac=", "'' is not a MAC address"),
    ],
)
def test_mistakes(option: str, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(option, text, "k")
    sentence = capsys.readouterr().err
    assert caught.value.code == 2
    assert sentence.startswith(
        f"smpguest: argument --{'block/--disk' if 'k' in option else option[2:]}"
    )
    assert words in sentence
    assert sentence.count("\n") == 1


# Words for the kernel -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "append"),
    [
        ("k", ""),
        ("--append a k", "a"),
        ("k root=/dev/vda quiet", "root=/dev/vda quiet"),
        ("--append a k b c", "a b c"),
        ("k b --append a c", "a b c"),
        ("k --vcpus 2 b c", "b c"),
        ("k b --vcpus 2 c", "b c"),
        ("k -- -s --vcpus 2", "-s --vcpus 2"),
        ("k b -- -s", "b -s"),
        ("k b --vcpus 2 c -- -s -- d", "b c -s -- d"),
        ("-- k -s", "-s"),
    ],
)
def test_words_after_the_kernel(arguments: str, append: str) -> None:
    options = parse(*arguments.split())
    assert (options.kernel, options.append) == ("k", append)


@pytest.mark.parametrize(
    "arguments", ["--fly k", "k --fly", "k a --fly=3 b", "k -s", "k --fly -- a"]
)
def test_unknown_options_are_no_words(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments.split())
    assert caught.value.code == 2
    assert "unrecognized option -" in capsys.readouterr().err


# The machine ----------------------------------------------------------------------------------


def settled(directory: Path, data: bytes, *arguments: str) -> tuple[Namespace, dict[str, object]]:
    options = parse(*arguments, str(write_file(directory, data)))
    return options, settle(options)


def test_the_image_says_which_machine_it_is_for(tmp_path: Path) -> None:
    _, wishes = settled(tmp_path, elf(b"x"), "--rng")
    assert wishes == {"machine": None, "devices": (RngWish(),)}
    assert settled(tmp_path, code_kernel(b"x"))[1] == {}
    assert settled(tmp_path, bzimage(b"x"))[1] == {}  # for the pc to refuse


def test_a_kernel_that_cannot_be_read_is_for_no_machine(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert settle(parse(missing)) == {}
    with pytest.raises(UserError, match="does not exist"):
        settle(parse("--rng", missing))


def test_the_user_knows_better(tmp_path: Path) -> None:
    for data in (elf(b"x"), bzimage(b"x"), code_kernel(b"x")):
        assert settled(tmp_path, data, "--machine", "lguest")[1]["machine"] == "lguest"
        assert settled(tmp_path, data, "--machine", "pc")[1] == {}
    with pytest.raises(UserError, match="'vax' is not known; choose pc or lguest"):
        settled(tmp_path, elf(b"x"), "--machine", "vax")


@pytest.mark.parametrize(
    ("text", "lguest", "pc"),
    [("64", "64M", "64"), ("512M", "512M", "512M"), ("1G", "1G", "1G"), ("x", "x", "x")],
)
def test_a_bare_number_of_memory_is_in_mb_as_lguest_takes_it(
    tmp_path: Path, text: str, lguest: str, pc: str
) -> None:
    assert settled(tmp_path, elf(b"x"), "--memory", text)[0].memory == lguest
    assert settled(tmp_path, code_kernel(b"x"), "--memory", text)[0].memory == pc


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("--block=f", "disks"),
        ("--disk=f", "disks"),
        ("--tunnet=10.0.0.1", "network"),
        ("--net=unix:x", "network"),
        ("--rng", "random-number device"),
    ],
)
def test_a_pc_has_no_devices_yet(tmp_path: Path, option: str, what: str) -> None:
    end = launch("run", option, write_file(tmp_path, code_kernel(b"\xf4")))
    assert end.returncode == 2
    assert end.stderr.decode() == (
        f"smpguest: the pc machine has no {what} yet; the lguest machine has\n"
    )
