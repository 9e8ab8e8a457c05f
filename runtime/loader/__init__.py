"""From a file to guest RAM and a start state; every mistake in the file is one sentence."""

from __future__ import annotations

from pathlib import Path

from runtime.loader import flat, multiboot
from runtime.loader.elf import Elf
from runtime.loader.image import Boot, Image, Start, read_image

__all__ = ["Boot", "Image", "Start", "load"]

BZIMAGE_MAGIC_AT, BZIMAGE_MAGIC = 0x202, b"HdrS"


def load(path: Path, boot: Boot) -> Start:
    """Put the kernel at `path` into RAM and say how the boot CPU starts.

    Raises UserError with one sentence that names the file and the reason.
    """
    image = read_image(path)
    if image.data[BZIMAGE_MAGIC_AT : BZIMAGE_MAGIC_AT + 4] == BZIMAGE_MAGIC:
        raise image.error(
            "is a Linux bzImage, which the pc machine cannot boot yet; "
            "one for lguest wants --machine lguest"
        )
    header = multiboot.find_header(image)
    if header is not None:
        return multiboot.load(image, header, boot)
    if not image.data.startswith(b"\x7fELF"):
        raise image.error("is not a kernel: neither an ELF executable nor a multiboot image")
    return flat.load(Elf(image), boot)
