"""Which network card an option of the command line means."""

from __future__ import annotations

import re

from runtime.errors import UserError
from runtime.virtio.net import Backend, NetDevice
from runtime.virtio.net_stream import StreamBackend
from runtime.virtio.net_tap import TapBackend

_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")


def open_net(wish: str) -> NetDevice:
    """The card for one option; raises UserError.

    `IP[:MAC]` and `bridge:NAME[:MAC]` are lguest's --tunnet (a TAP device);
    `unix:PATH[,mac=MAC]` connects to a UNIX socket, `listen:PATH[,mac=MAC]` makes it.
    """
    way, _, rest = wish.partition(":")
    on_socket = way in ("unix", "listen")
    if on_socket:
        target, _, mac_text = rest.partition(",mac=")
    elif way == "bridge":
        target, _, mac_text = rest.partition(":")
    else:
        target, _, mac_text = wish.partition(":")
    mac = parse_mac(mac_text) if mac_text else None  # before anything is opened
    if not target:
        raise UserError(f"network {wish!r} names no {'socket' if on_socket else 'address'}")
    backend: Backend
    if on_socket:
        backend = StreamBackend(target, listen=way == "listen")
    elif way == "bridge":
        backend = TapBackend(bridge=target)
    else:
        backend = TapBackend(address=target)
    return NetDevice(backend, mac)


def parse_mac(text: str) -> bytes:
    """`52:54:0:12:34:56` as 6 bytes; raises UserError."""
    if not _MAC.fullmatch(text):
        raise UserError(f"{text!r} is not a MAC address")
    mac = bytes(int(part, 16) for part in text.split(":"))
    if mac[0] & 1:
        raise UserError(f"{text!r} is a multicast address, which no card can have")
    return mac
