"""Ways to boot an image: the harness on Unicorn, Bochs, QEMU; one interface (:class:`hvtests.runners.base.Runner`)."""

from __future__ import annotations

from generator.errors import UsageError
from hvtests.runners.base import Runner

NAMES = ("unicorn", "bochs", "qemu")


def by_name(name: str, memory_mib: int = 256) -> Runner:
    """A runner with so much memory, and its default settings. Raises UsageError for a name not in :data:`NAMES`."""
    # Imported here so that Bochs and QEMU can be used where the harness' CPU engine cannot be loaded.
    if name == "unicorn":
        from hvtests.runners.unicorn import UnicornRunner

        return UnicornRunner(memory_mib=memory_mib)
    if name == "bochs":
        from hvtests.runners.bochs import BochsRunner

        return BochsRunner(memory_mib=memory_mib)
    if name == "qemu":
        from hvtests.runners.qemu import QemuRunner

        return QemuRunner(memory_mib=memory_mib)
    raise UsageError(f"no emulator is called {name!r}; there are {', '.join(NAMES)}")
