"""The engine of one vCPU: the only module that imports `unicorn`.

The official binding drives the patched library (switcher/binding.py points it
there).  `smp_engine_prepare` goes before the engine is opened, because the
CPU state is allocated in the control block; `smp_engine_attach` after RAM is
mapped.  User hooks come after both and before the first run.
"""

from __future__ import annotations

import importlib
from typing import Any

from runtime.errors import HostError

TRANSLATIONS = 256 << 20
"""Bytes for translated code per vCPU, used as it is needed; when full, all is forgotten.  Stock
Unicorn's 1 GiB would let a Guest that patches itself take that much of the host for each vCPU."""


def unicorn_module() -> Any:
    """The official binding; not before switcher.binding.load() has said which library it uses."""
    return importlib.import_module("unicorn")


class Engine:
    """An opened, attached engine whose vCPU is in its start state."""

    def __init__(self, switcher: Any, control: Any, ram: Any, ram_size: int, index: int) -> None:
        """Raises HostError when the engine refuses."""
        unicorn = unicorn_module()

        ffi, lib = switcher.ffi, switcher.lib
        lib.smp_engine_prepare(control, ram, index)
        try:
            self.uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
            self.uc.ctl_set_tcg_buffer_size(TRANSLATIONS)
            address = int(ffi.cast("uintptr_t", ram))
            self.uc.mem_map_ptr(0, ram_size, unicorn.UC_PROT_ALL, address)
        except unicorn.UcError as error:
            why = str(error)
            if error.errno == unicorn.UC_ERR_RESOURCE:
                why = f"there is no room for {TRANSLATIONS >> 20}M of translated code"
            raise HostError(f"the engine cannot be opened: {why}") from error
        self.handle = ffi.cast("void *", self.uc._uch.value)
        self._run = lib.smp_run
        result = lib.smp_engine_attach(self.handle)
        if result != 0:
            raise HostError(f"the engine cannot be attached (error {result})")

    def run(self) -> int:
        """Enter the Guest; `enum smp_exit`.  What a user's hook raised is raised here."""
        reason: int = self._run(self.handle)
        failed = getattr(self.uc, "_hook_exception", None)
        if failed is not None:
            self.uc._hook_exception = None
            raise failed
        return reason


def preload(switcher: Any) -> None:
    """In the Host, before workers are forked: they inherit the loaded library and binding."""
    if switcher.is_patched:
        unicorn_module()
