"""What /dev/kvm would give a guest's CPU. That the device exists says nothing: its host may keep VMX to itself."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

KVM_GET_SUPPORTED_CPUID = 0xC008AE05  # _IOWR(0xAE, 5, struct kvm_cpuid2), linux/kvm.h
_ENTRIES = 256
_ENTRY = struct.Struct("<7I12x")      # function, index, flags, eax, ebx, ecx, edx


@dataclass(frozen=True, slots=True)
class KvmOffer:
    """Whether KVM can be used, and whether its guests would have VMX or SVM; ``detail`` in one line."""

    usable: bool
    vmx: bool
    svm: bool
    detail: str


def kvm_offer(device: Path = Path("/dev/kvm")) -> KvmOffer:
    """Ask KVM by KVM_GET_SUPPORTED_CPUID for CPUID.1:ECX[5] (VMX) and CPUID.8000_0001:ECX[2] (SVM)."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return KvmOffer(False, False, False, f"{device}: {error.strerror}")
    try:
        table = bytearray(struct.pack("<II", _ENTRIES, 0) + bytes(_ENTRY.size * _ENTRIES))
        fcntl.ioctl(fd, KVM_GET_SUPPORTED_CPUID, table)
    except OSError as error:
        return KvmOffer(False, False, False, f"{device}: KVM_GET_SUPPORTED_CPUID: {error.strerror}")
    finally:
        os.close(fd)
    (count,) = struct.unpack_from("<I", table)
    leaves = {function: ecx for function, _, _, _, _, ecx, _ in
              (_ENTRY.unpack_from(table, 8 + i * _ENTRY.size) for i in range(min(count, _ENTRIES)))}  # fmt: skip
    vmx, svm = bool(leaves.get(1, 0) >> 5 & 1), bool(leaves.get(0x8000_0001, 0) >> 2 & 1)
    offers = " and ".join([name for name, there in (("VMX", vmx), ("SVM", svm)) if there]) or "neither VMX nor SVM"
    return KvmOffer(True, vmx, svm, f"{device} offers {offers} to its guests")
