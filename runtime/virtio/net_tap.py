"""A network cable that is a TAP device of the host: lguest's --tunnet (Linux, tuntap.rst)."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import select
import socket
import struct

from runtime import nursery
from runtime.errors import UserError
from runtime.virtio import net
from runtime.virtio.device import feature_bits
from runtime.virtio.service import QueueService

TUN = "/dev/net/tun"

# <linux/if_tun.h>, <linux/sockios.h>, <linux/if.h>
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR = 0x8913, 0x8914, 0x8916
SIOCGIFINDEX, SIOCBRADDIF = 0x8933, 0x89A2
IFF_UP = 1
NAME_MAX = 15

AILING_SECONDS = 1.0
"""How often we look at a device that reports errors (somebody deleted it, say)."""

_IFREQ = "16s{}"  # a name, then a union of 24 bytes

TO_GUEST = (
    (net.F_GUEST_CSUM, TUN_F_CSUM),
    (net.F_GUEST_TSO4, TUN_F_TSO4),
    (net.F_GUEST_TSO6, TUN_F_TSO6),
    (net.F_GUEST_ECN, TUN_F_TSO_ECN),
)
FROM_GUEST = (net.F_CSUM, net.F_HOST_TSO4, net.F_HOST_TSO6, net.F_HOST_ECN)
"""The driver says in each header what it left to us, and the TAP device does it."""


class TapBackend:
    """One TAP device, with an IPv4 `address` of the host's own or in a `bridge`.

    Raises UserError when it cannot be had.  It goes when we close it.
    """

    def __init__(self, *, address: str = "", bridge: str = "") -> None:
        if len(bridge.encode()) > NAME_MAX:
            raise UserError(f"{bridge!r} is too long for the name of a bridge")
        ip = b"" if bridge else _parse_ip(address)
        self._fd = _open()
        try:
            self.name = self._attach()
            self.features = feature_bits(*FROM_GUEST)
            if self._offload(feature_bits(*(bit for bit, _ in TO_GUEST))):
                self.features |= feature_bits(*(bit for bit, _ in TO_GUEST))
            self._offload(0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                if bridge:
                    _join(control.fileno(), self.name, bridge)
                else:
                    _set_address(control.fileno(), self.name, ip)
                _set_up(control.fileno(), self.name)
        except OSError as error:
            self.close()
            where = f"put a TAP device into bridge {bridge}" if bridge else "set up a TAP device"
            raise UserError(f"cannot {where}: {error.strerror}{_advice(error)}") from error

    def start(self, features: int) -> None:
        """From now on packets for the Guest may be unfinished in the ways that it knows."""
        self._offload(features)

    def close(self) -> None:
        """The device goes with its last descriptor."""
        if self._fd >= 0:
            nursery.close_fd(self._fd)
            self._fd = -1

    def receive(self, queue: QueueService) -> bytes:
        """The next packet that the host sends to the Guest."""
        while True:
            queue.check()
            try:
                return os.read(self._fd, net.HEADER_SIZE + net.FRAME_MAX)
            except BlockingIOError:
                queue.sleep(self._fd, select.POLLIN)
            except OSError:
                queue.sleep(timeout=AILING_SECONDS)

    def send(self, queue: QueueService, packet: bytes) -> None:
        """A packet that the host refuses (a header that makes no sense, say) is lost."""
        while True:
            try:
                os.write(self._fd, packet)
            except BlockingIOError:
                queue.sleep(self._fd, select.POLLOUT)
                continue
            except OSError:
                return
            return

    def _attach(self) -> str:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        answer = fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH22x", b"tap%d", flags))
        fcntl.ioctl(self._fd, TUNSETVNETHDRSZ, struct.pack("i", net.HEADER_SIZE))
        return answer[:16].rstrip(b"\0").decode()

    def _offload(self, features: int) -> bool:
        """What may be left to the Guest; False when this host does not know that."""
        flags = sum(flag for bit, flag in TO_GUEST if features >> bit & 1)
        if not flags & TUN_F_CSUM:
            flags = 0  # the others need it
        try:
            fcntl.ioctl(self._fd, TUNSETOFFLOAD, flags)
        except OSError:
            return False
        return True


def _advice(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return " (it needs CAP_NET_ADMIN; unix:PATH and listen:PATH need no rights)"
    return ""


def _open() -> int:
    try:
        with nursery.no_births():
            return nursery.adopt(os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise UserError(f"cannot open {TUN}: {error.strerror}{_advice(error)}") from error


def _parse_ip(text: str) -> bytes:
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError as error:
        raise UserError(
            f"network {text!r} is neither an IPv4 address nor bridge:, unix: or listen:"
        ) from error


def _set_address(control: int, name: str, ip: bytes) -> None:
    family = socket.AF_INET
    request = struct.pack(_IFREQ.format("HH4s16x"), name.encode(), family, 0, ip)
    fcntl.ioctl(control, SIOCSIFADDR, request)


def _set_up(control: int, name: str) -> None:
    layout = _IFREQ.format("H22x")
    now = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack(layout, name.encode(), 0))
    flags = struct.unpack(layout, now)[1] | IFF_UP
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack(layout, name.encode(), flags))


def _join(control: int, name: str, bridge: str) -> None:
    layout = _IFREQ.format("i20x")
    answer = fcntl.ioctl(control, SIOCGIFINDEX, struct.pack(layout, name.encode(), 0))
    index = struct.unpack(layout, answer)[1]
    fcntl.ioctl(control, SIOCBRADDIF, struct.pack(layout, bridge.encode(), index))
