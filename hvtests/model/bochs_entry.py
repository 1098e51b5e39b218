"""VM entries tried in Bochs: an image of ours that loads a VMCS, changes some fields, executes VMLAUNCH and tells.

Bochs' VMX was written from the manual by others, so it is a judge of the rules in `hvtests.vmx.checks` that is not us.
`try_entries` takes cases (a base VMCS and changes) and returns an outcome for each; hundreds share one boot. A case
after which Bochs goes on no more (a guest state that hangs it) is noted as LOST, and the rest is tried in a new boot.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator.arch.vmcs import BY_NAME, FIELDS, FieldType
from hvtests.model.bochs_cpus import BOCHS_NAMES
from hvtests.model.valid_state import EPT_PML4, GUEST_TABLES, VMCS_POINTER
from hvtests.runners.bochs import BochsRunner
from hvtests.vmx.capabilities import CpuModel

VMXON_REGION = 0x30_0000
STAGE2, PML4, GDT_AND_STACK, TABLES = 0x1_0000, 0x1_1000, 0x1_5000, 0x1_6000
LOAD_LIMIT = 0x9_0000
CHUNK = 64 * 512
MEMORY_MIB = 64
LINKED, LINKED_SHADOW, VTPR_PAGE = 0x32_0000, 0x32_1000, 0x32_2000
PAE_TABLE, PAE_TABLE_BAD = 0x21_0000, 0x21_2000
WRITABLE = [field for field in FIELDS if field.type is not FieldType.READ_ONLY]


def memory(cap: CpuModel) -> dict[int, int]:
    """The 32-bit words of memory that are not 0 and that checks look at: for the image, and for the model."""
    return {
        VMCS_POINTER: cap.vmcs_revision,
        LINKED: cap.vmcs_revision,
        LINKED_SHADOW: 1 << 31 | cap.vmcs_revision,
        VTPR_PAGE + 0x80: 0x50,
        PAE_TABLE: 0x21_1001,      # a good PDPTE
        PAE_TABLE_BAD: 0x21_1003,  # one with a reserved bit
    }


Fields = dict[str, int]


@dataclass(frozen=True)
class Trial:
    """One VM entry: a base by its name, and fields changed."""

    base: str
    changes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.base}: " + ", ".join(f"{name} = {value:#x}" for name, value in self.changes)


@dataclass(frozen=True)
class Outcome:
    """What became of an entry: entered; VMfailValid with its error; a failed entry's reason and qualification."""

    kind: str  # "entered" | "fail" | "exit" | "invalid" | "unwritable" | "lost"
    number: int = 0
    qualification: int = 0

    def __str__(self) -> str:
        if self.kind == "fail":
            return f"error {self.number}"
        return f"reason {self.number} qualification {self.qualification}" if self.kind == "exit" else self.kind


ENTERED, LOST = Outcome("entered"), Outcome("lost")


def try_entries(cap: CpuModel, bases: dict[str, Fields], trials: Sequence[Trial],
                timeout: float = 60.0) -> list[Outcome]:
    """The outcome of each trial in Bochs with the CPU that `cap` describes, in order."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(trials):
        told = _boot(cap, bases, trials[len(outcomes):], timeout)
        outcomes += told
        if len(outcomes) < len(trials) and not told.complete:
            outcomes.append(LOST)
    return outcomes


class _Told(list[Outcome]):
    complete = True


def _boot(cap: CpuModel, bases: dict[str, Fields], trials: Sequence[Trial], timeout: float) -> _Told:
    with tempfile.TemporaryDirectory(prefix="hvforge-entry-") as name:
        image = Path(name) / "entry.img"
        tried = _make_image(Path(name), cap, bases, trials, image)
        result = BochsRunner(cpu=BOCHS_NAMES[cap.name], memory_mib=MEMORY_MIB).run(image, timeout=timeout)
    text = result.debugcon.decode("latin-1")
    told = _Told(_outcome(line) for line in re.findall(r"@([VIWX]\S+(?: \S+)?)\n", text))
    told.complete = "@E0" in text
    if told.complete and len(told) != tried:
        raise RuntimeError(f"{tried} entries tried, {len(told)} outcomes told")
    if not told and not told.complete and not text.count("@"):
        raise RuntimeError(f"the image told nothing: {result.detail}: {text[-200:]!r}")
    return told


def _outcome(line: str) -> Outcome:
    letter, _, qualification = line.partition(" ")
    letter, number = letter[0], int(letter[1:], 16)
    if letter == "X":
        if number >> 31:
            return Outcome("exit", number & 0xFFFF, int(qualification, 16))
        return ENTERED
    return {"V": Outcome("fail", number), "I": Outcome("invalid"), "W": Outcome("unwritable", number)}[letter]


# -- the image -----------------------------------------------------------------------------------------------------

def _make_image(directory: Path, cap: CpuModel, bases: dict[str, Fields], trials: Sequence[Trial],
                image: Path) -> int:
    """Write the image; returns how many trials fit in it."""
    _, vm_exit = _assemble(directory, "bochs_entry.s", STAGE2, _symbols(cap, TABLES, TABLES, TABLES, TABLES, 1))
    names = list(bases)
    copies = TABLES
    copy_data = _copies(cap)
    encodings = copies + len(copy_data)
    base_table = encodings + 8 * len(WRITABLE)
    cases = base_table + 8 * len(WRITABLE) * len(names)
    bases_data = b"".join(_base(bases[name], vm_exit) for name in names)
    count = 0
    parts: list[bytes] = []
    size = 0
    for trial in trials:
        part = struct.pack("<II", names.index(trial.base), len(trial.changes))
        part += b"".join(struct.pack("<QQ", BY_NAME[field].encoding, value) for field, value in trial.changes)
        if cases + size + len(part) > LOAD_LIMIT:
            break
        parts.append(part)
        size += len(part)
        count += 1
    case_data = b"".join(parts)
    code, _ = _assemble(directory, "bochs_entry.s", STAGE2,
                        _symbols(cap, copies, encodings, base_table, cases, count))
    payload = bytearray(TABLES - STAGE2)
    payload[: len(code)] = code
    assert len(code) <= PML4 - STAGE2
    payload[PML4 - STAGE2 : PML4 - STAGE2 + 3 * 4096] = _identity(PML4, 0x3, 0x83)
    payload += copy_data
    payload += b"".join(struct.pack("<Q", field.encoding) for field in WRITABLE)
    payload += bases_data + case_data
    chunks = -(-len(payload) // CHUNK)
    boot, _ = _assemble(directory, "bochs_boot.s", 0x7C00, {"STAGE2": STAGE2, "PML4": PML4, "CHUNKS": chunks})
    assert len(boot) == 512
    image.write_bytes((boot + payload.ljust(chunks * CHUNK, b"\0")).ljust(1 << 20, b"\0"))
    return count


def _symbols(cap: CpuModel, copies: int, encodings: int, bases: int, cases: int, count: int) -> dict[str, int]:
    return {"STACK": GDT_AND_STACK + 0xFF0, "COPIES": copies, "ENCODINGS": encodings, "FIELDS": len(WRITABLE),
            "BASES": bases, "CASES": cases, "COUNT": count, "VMXON": VMXON_REGION, "VMCS": VMCS_POINTER,
            "REVISION": cap.vmcs_revision}


def _assemble(directory: Path, source: str, origin: int, symbols: dict[str, int]) -> tuple[bytes, int]:
    """GNU as and ld: the flat binary, and the address of `vm_exit` where the source has one."""
    text, output = Path(__file__).with_name(source), directory / source
    defines = [part for name, value in symbols.items() for part in ("--defsym", f"{name}={value}")]
    subprocess.run(["as", "--64", *defines, "-o", f"{output}.o", str(text)], check=True, timeout=30)
    subprocess.run(["ld", "-m", "elf_x86_64", f"-Ttext={origin:#x}", "-o", f"{output}.elf", f"{output}.o"], check=True,
                   timeout=30)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", f"{output}.elf", f"{output}.bin"], check=True, timeout=30)
    listed = subprocess.run(["nm", f"{output}.elf"], check=True, timeout=30, capture_output=True, text=True).stdout
    found = re.search(r"([0-9a-f]+) T vm_exit", listed)
    return Path(f"{output}.bin").read_bytes(), int(found[1], 16) if found else 0


def _base(values: Fields, vm_exit: int) -> bytes:
    host = {"HOST_RIP": vm_exit}
    return b"".join(struct.pack("<Q", host.get(field.name, values.get(field.name, 0))) for field in WRITABLE)


def _identity(table: int, pointer: int, page: int) -> bytes:
    """Three tables at `table`: 1 GiB mapped to itself by 2 MiB pages, entries or-ed with the given low bits."""
    first = struct.pack("<Q", table + 0x1000 | pointer).ljust(4096, b"\0")
    second = struct.pack("<Q", table + 0x2000 | pointer).ljust(4096, b"\0")
    return first + second + b"".join(struct.pack("<Q", index << 21 | page) for index in range(512))


def _ept() -> bytes:
    """EPT, 1 GiB identity: memory below 2 MiB, where the hypervisor is, cannot be written."""
    tables = bytearray(_identity(EPT_PML4, 0x7, 0xB7))
    tables[0x2000:0x2008] = struct.pack("<Q", 0xB5)
    return bytes(tables)


def _copies(cap: CpuModel) -> bytes:
    """What stands at addresses that the boot does not load: tables of the guest, words of memory, guest code (HLT)."""
    pieces = [
        (GUEST_TABLES, _identity(GUEST_TABLES, 0x3, 0x83)),
        (PAE_TABLE + 0x1000, b"".join(struct.pack("<Q", index << 21 | 0x83) for index in range(512))),
        (EPT_PML4, _ept()),
        (0x40_0000, b"\xf4" * 64),
        *((address, struct.pack("<I", value)) for address, value in memory(cap).items()),
    ]
    data = b"".join(struct.pack("<QQ", address, len(piece)) + piece for address, piece in pieces)
    return (data + bytes(16)).ljust(-(-(len(data) + 16) // 8) * 8, b"\0")
