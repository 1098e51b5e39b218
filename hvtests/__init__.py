"""A test harness for hypervisors: a PC with VMX in an emulator, that boots the file a real PC would boot.

>>> from hvtests import Machine  # doctest: +SKIP
>>> machine = Machine()
>>> machine.boot(Path("build/minimal.img"))
>>> machine.run()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvtests.machine.stop import Limits, Stop, StopKind
    from hvtests.vmx.capabilities import CpuModel
    from hvtests.vmx.model import VmxMachine as Machine

__all__ = ["CpuModel", "Limits", "Machine", "Stop", "StopKind"]

_HOMES = {
    "CpuModel": ("hvtests.vmx.capabilities", "CpuModel"),
    "Limits": ("hvtests.machine.stop", "Limits"),
    "Machine": ("hvtests.vmx.model", "VmxMachine"),
    "Stop": ("hvtests.machine.stop", "Stop"),
    "StopKind": ("hvtests.machine.stop", "StopKind"),
}


def __getattr__(name: str) -> object:
    # Loaded when first asked for: Bochs and QEMU can then be used where the harness' CPU engine cannot be loaded.
    if name not in _HOMES:
        raise AttributeError(f"module 'hvtests' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
