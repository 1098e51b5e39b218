"""Whether this machine's KVM lets a guest use VMX or SVM.

A /dev/kvm may well exist without them: only KVM's own answer about the CPUID that guests can have tells
(Linux, Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_CPUID).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from generator.arch.cpuid import BY_NAME

KVM_DEVICE = Path("/dev/kvm")
KVM_GET_SUPPORTED_CPUID = 0xC008AE05   # _IOWR(0xAE, 0x05, struct kvm_cpuid2)
_HEADER = struct.Struct("<II")         # nent, padding
_ENTRY = struct.Struct("<10I")         # function, index, flags, eax, ebx, ecx, edx, padding[3]
_ENTRIES = 256                         # KVM_MAX_CPUID_ENTRIES of Linux 6; E2BIG from a kernel that has more
_REGISTERS = ("eax", "ebx", "ecx", "edx")


@dataclass(frozen=True, slots=True)
class KvmOffer:
    """What KVM offers to guests. `usable` means that /dev/kvm could be asked; `detail` says it in words."""

    usable: bool
    vmx: bool
    svm: bool
    detail: str


def parse_cpuid(buffer: bytes) -> Iterator[tuple[int, int, dict[str, int]]]:
    """(leaf, sub-leaf, registers) of each entry of a struct kvm_cpuid2."""
    count, _ = _HEADER.unpack_from(buffer)
    for number in range(count):
        leaf, subleaf, _, *registers = _ENTRY.unpack_from(buffer, _HEADER.size + number * _ENTRY.size)
        yield leaf, subleaf, dict(zip(_REGISTERS, registers, strict=False))


def offer_of(buffer: bytes) -> KvmOffer:
    """The offer in a struct kvm_cpuid2 that KVM_GET_SUPPORTED_CPUID has filled."""
    has = dict.fromkeys(("VMX", "SVM"), False)
    for leaf, subleaf, registers in parse_cpuid(buffer):
        for name in has:
            bit = BY_NAME[name]
            if (leaf, subleaf) == (bit.leaf, bit.subleaf) and registers[bit.register] & bit.mask:
                has[name] = True
    offered = [name for name, there in has.items() if there]
    missing = [f"{name} ({BY_NAME[name].where} is 0)" for name, there in has.items() if not there]
    detail = f"offers {' and '.join(offered)} to guests" if offered else f"offers guests no {' and no '.join(missing)}"
    return KvmOffer(True, has["VMX"], has["SVM"], detail)


def probe(device: Path = KVM_DEVICE) -> KvmOffer:
    """Ask `device` what it offers. Never raises: absence, lack of permission and refusals are in the answer."""
    def unusable(reason: str) -> KvmOffer:
        return KvmOffer(False, False, False, reason)

    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return unusable(f"there is no {device}")
    except PermissionError:
        return unusable(f"no permission to open {device} (join the group kvm, or run as root)")
    except OSError as error:
        return unusable(f"{device} cannot be opened: {(error.strerror or str(error)).lower()}")
    try:
        buffer = bytearray(_HEADER.size + _ENTRIES * _ENTRY.size)
        _HEADER.pack_into(buffer, 0, _ENTRIES, 0)
        fcntl.ioctl(handle, KVM_GET_SUPPORTED_CPUID, buffer, True)
        return offer_of(bytes(buffer))
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "an error")
        return unusable(f"{device} refuses KVM_GET_SUPPORTED_CPUID ({name})")
    except struct.error:
        return unusable(f"{device} gives an answer that is no list of CPUID leaves")
    finally:
        os.close(handle)
