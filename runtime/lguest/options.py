"""The command line of the lguest machine: its devices in their order, its units, its words.

lguest gave irqs and queue pages in the order of the options, so the devices are
collected into one list, whatever their kind.  The option names are lguest's
(drivers/lguest's Launcher, Linux 3.x) where it had one; `--disk` and `--net` are
the general names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from runtime.errors import UserError

PC, LGUEST = "pc", "lguest"
MACHINES = (PC, LGUEST)

BRIDGE = "bridge:"
INTERFACE_NAME_MAX = 15
"""Bytes in a network interface's name (IFNAMSIZ less the NUL)."""
SOCKET_PATH_MAX = 107
"""Bytes in a UNIX socket's path (sun_path less the NUL)."""

EPILOG = """\
the lguest machine, for 32-bit Linux kernels with CONFIG_LGUEST_GUEST:
  launcher.py run --machine lguest --memory 64 --block disk.img bzImage root=/dev/vda
  launcher.py run --tunnet 192.168.19.1 --rng --initrd initrd.img vmlinux console=hvc0
  launcher.py run --machine lguest --disk root.img,ro --net listen:/tmp/lan bzImage -- -s
    --memory 64 means 64M, words after KERNEL go to the kernel (behind -- also those
    with a dash), devices come in the order given.  The keyboard is the guest's, Ctrl-C
    too; three Ctrl-C within a second end it.
"""


@dataclass(frozen=True)
class BlockWish:
    """A disk: a file or block device of the host."""

    path: str
    readonly: bool = False
    what: ClassVar[str] = "disks"


@dataclass(frozen=True)
class TapWish:
    """A network card on a TAP device of the host; `text` as lguest takes it."""

    text: str
    what: ClassVar[str] = "network"


@dataclass(frozen=True)
class SocketWish:
    """A network card on a UNIX stream socket that we connect to, or (`listen`) make."""

    path: str
    listen: bool = False
    mac: str = ""
    what: ClassVar[str] = "network"

    @property
    def text(self) -> str:
        """As on the command line."""
        return f"{'listen' if self.listen else 'unix'}:{self.path}" + (
            f",mac={self.mac}" if self.mac else ""
        )


@dataclass(frozen=True)
class RngWish:
    """A source of random numbers."""

    what: ClassVar[str] = "random-number device"


DeviceWish = BlockWish | TapWish | SocketWish | RngWish


def parse_block(text: str) -> BlockWish:
    """`F` or `F,ro`; raises UserError."""
    path = text.removesuffix(",ro")
    if not path:
        raise UserError(f"'{text}' names no file; write F or F,ro")
    return BlockWish(path, readonly=path != text)


def parse_tunnet(text: str) -> TapWish:
    """`ip[:mac]` or `bridge:name[:mac]`; raises UserError."""
    import ipaddress  # only for those who give it: it takes its time

    name, _, mac = text.removeprefix(BRIDGE).partition(":")
    if text.startswith(BRIDGE):
        if not 0 < len(name.encode()) <= INTERFACE_NAME_MAX or "/" in name or " " in name:
            raise UserError(f"'{name}' is not the name of a bridge")
    else:
        try:
            ipaddress.IPv4Address(name)
        except ValueError as error:
            raise UserError(
                f"'{text}' is neither ip[:mac] nor bridge:name[:mac]: "
                f"'{name}' is not an IPv4 address"
            ) from error
    _check_mac(text, mac)
    return TapWish(text)


def parse_net(text: str) -> SocketWish:
    """`unix:PATH` or `listen:PATH`, and perhaps `,mac=MAC`; raises UserError."""
    way, colon, rest = text.partition(":")
    path, mac_wish, mac = rest.partition(",mac=")
    if way not in ("unix", "listen") or not colon:
        raise UserError(f"'{text}' is neither unix:PATH nor listen:PATH")
    if not path:
        raise UserError(f"'{text}' names no socket")
    if len(path.encode("utf-8", "surrogateescape")) > SOCKET_PATH_MAX:
        raise UserError(f"'{path}' is longer than a socket's path may be ({SOCKET_PATH_MAX} bytes)")
    if mac_wish:
        _check_mac(text, mac, wanted=True)
    return SocketWish(path, way == "listen", mac)


def _check_mac(text: str, mac: str, *, wanted: bool = False) -> None:
    from runtime.virtio.net_options import parse_mac

    if mac or wanted or text.endswith(":"):
        parse_mac(mac)


# In the Launcher's parser --------------------------------------------------------------


class _AddDevice(argparse.Action):
    """One more wish at the end of `devices`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        wish = RngWish() if self.nargs == 0 else values
        namespace.devices = (*namespace.devices, wish)


def _argument(parse: Callable[[str], DeviceWish]) -> Callable[[str], DeviceWish]:
    """`parse` with its sentence in argparse's own kind of error."""

    def parsed(text: str) -> DeviceWish:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def add_options(run: argparse.ArgumentParser) -> None:
    """Devices, and the words for the kernel; KERNEL must have been added before."""
    run.add_argument(
        "words", metavar="WORD", nargs="*", help="for the kernel's command line, after --append"
    )
    group = run.add_argument_group("devices (of the lguest machine only, yet)")
    group.add_argument(
        *("--block", "--disk"),
        dest="devices",
        metavar="F[,ro]",
        action=_AddDevice,
        type=_argument(parse_block),
        help="a disk; may be given several times, as all of these",
    )
    group.add_argument(
        "--tunnet",
        dest="devices",
        metavar="NET",
        action=_AddDevice,
        type=_argument(parse_tunnet),
        help="a network card on a TAP device: ip[:mac] (the host's address) or bridge:name[:mac]",
    )
    group.add_argument(
        "--net",
        dest="devices",
        metavar="NET",
        action=_AddDevice,
        type=_argument(parse_net),
        help="a network card on a UNIX socket: unix:PATH (of passt, QEMU or another guest) "
        "or listen:PATH, each with ,mac=MAC if wished",
    )
    group.add_argument(
        "--rng", dest="devices", nargs=0, action=_AddDevice, help="a source of random numbers"
    )
    run.set_defaults(devices=())
    run.epilog = f"{run.epilog or ''}\n{EPILOG}"


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options, with the words after KERNEL behind `append`.

    argparse takes only words that follow KERNEL at once; later ones (`KERNEL
    --timeout 5 root=/dev/vda`) it hands back as unknown, like misspelt options.
    """
    options, rest = parser.parse_known_args(arguments)
    behind = rest.index("--") if "--" in rest else len(rest)
    strange = [word for word in rest[:behind] if word.startswith("-")]
    if strange:
        _unknown(parser, strange[0])
    words = [*options.words, *rest[:behind], *rest[behind + 1 :]]
    options.append = " ".join([*filter(None, [options.append]), *words])
    return options


def _unknown(parser: argparse.ArgumentParser, word: str) -> NoReturn:
    parser.error(f"unrecognized option {word}; words for the kernel that begin with - go behind --")


# What the Machine is given -------------------------------------------------------------


def settle(options: argparse.Namespace) -> dict[str, Any]:
    """What `Machine()` is to be given beside the common options: empty for a pc.

    Guesses the machine from the image when `--machine` was not given (the
    Machine will do so too, and say it), and puts `options.memory` in lguest's
    unit.  Raises UserError.
    """
    if _choose(options) == PC:
        if options.devices:
            wish = options.devices[0]
            raise UserError(f"the pc machine has no {wish.what} yet; the lguest machine has")
        return {}
    if options.memory.isascii() and options.memory.isdigit():
        options.memory += "M"
    return {"machine": options.machine, "devices": options.devices}


def _choose(options: argparse.Namespace) -> str:
    from runtime.lguest.loader import is_for_lguest

    machine: str | None = options.machine
    if machine is None:
        try:
            return LGUEST if is_for_lguest(options.kernel) else PC
        except UserError:
            if options.devices:
                raise
            return PC  # the Machine will say why, after what is wrong with the other options
    if machine not in MACHINES:
        raise UserError(f"the machine '{machine}' is not known; choose {' or '.join(MACHINES)}")
    return machine
