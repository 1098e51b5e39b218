"""Random short programs: a few instructions from every corner that a hypervisor's guest reaches, in four modes.

The same seed gives the same programs. Left out are instructions whose result the manual leaves open (undefined flags,
the TSC) and those after which the image cannot go on (HLT, LGDT, LIDT, LTR).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Name -> (code size, CS, SS and data segments, page where programs run): selectors of image.s' GDT
MODES = {
    "kernel64": (64, 0x08, 0x10, 0x13_0000),
    "user64":   (64, 0x3B, 0x33, 0x14_0000),
    "kernel32": (32, 0x18, 0x10, 0x13_0000),
    "user32":   (32, 0x2B, 0x33, 0x14_0000),
}
# Pages of image.s: absent, read-only, user, not executable, user and read-only, a reserved bit, aliases of data
PAGES = (0x120000, 0x121000, 0x122000, 0x123000, 0x124000, 0x125000, 0x126000, 0x127000, 0x128000, 0x12A000, 0x12B000,
         0x12C000, 0x12D000, 0x400000)
OFFSETS = (0, 1, 8, 0x7F, 0x800, 0xFF0, 0xFFC, 0xFFD, 0xFFF)
SELECTORS = (0, 1, 3, 4, 0x08, 0x0B, 0x10, 0x13, 0x18, 0x2B, 0x30, 0x33, 0x38, 0x3B, 0x40, 0x50, 0x53, 0x5B, 0x60, 0x63,
             0x68, 0x8B, 0x90, 0x93, 0x98, 0x9B, 0xC0, 0xC3, 0xD3, 0xDB, 0xF8, 0x100, 0x104)
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678)
CR4 = 0x6A0           # PAE, PGE, OSFXSR, OSXMMEXCPT
CR0 = 0x8005_0033
SMEP, SMAP, WP, AC, TF = 1 << 20, 1 << 21, 1 << 16, 1 << 18, 1 << 8

MEMORY = (
    "mov {w}, [{p}]", "mov [{p}], {w}", "add {w}, [{p}]", "add [{p}], {w}", "inc dword ptr [{p}]", "cmp [{p}], {w}",
    "movzx eax, byte ptr [{p}]", "movsx edx, word ptr [{p}]", "xor [{p}], {w}", "not byte ptr [{p}]", "sete [{p}]",
    "xadd [{p}], {w}", "lock inc dword ptr [{p}]", "cmovb {w}, [{p}]", "push {q} ptr [{p}]", "pop {q} ptr [{p}]",
    "mov byte ptr [{p}], 0x5a", "movups xmm1, [{p}]", "movups [{p}], xmm2", "fnstcw [{p}]", "prefetcht0 [{p}]",
)
STRINGS = ("rep movsb", "rep stosd", "movsw", "rep lodsb", "lodsd", "stosb", "std\nrep stosw\ncld", "repne scasb")
PLAIN = (
    "add {w}, {n}", "sub {w}, {n}", "adc {w}, {w2}", "sbb {w}, {w2}", "xor {w}, {w2}", "and {w}, {n}", "or {w}, {w2}",
    "neg {w}", "inc {w}", "dec {w}", "lea {w}, [{b} + 8]", "xchg {w}, {w2}", "cmp {w}, {w2}", "cmovs {w}, {w2}", "cdq",
    "setnbe al", "movzx eax, bl", "bswap edx", "shl {w}, 1", "ror {w}, 1", "stc", "cmc", "clc", "push {b}\npop {b2}",
    "jc 1f\nnop\n1:", "jmp 1f\nud2\n1:", "call 1f\n1: pop {b}", "lahf", "sahf", "xlat", "cld", "nop",
    "mov eax, {n}\nmul {w2}\ntest eax, eax", "enter 16, 0\nleave", "movd xmm0, {w}\npaddd xmm1, xmm0\nmovd edx, xmm1",
)
SYSTEM = (
    "ud2", "int3", "int 0x21", "int 0x30", "int 0x31", "int 0x32", "int 0x33", "int 0x34", ".byte 0xf1", "cli", "clts",
    "mov {b}, cr0", "mov {b}, cr2", "mov {b}, cr4", "mov {b}, dr6", "mov {b}, dr7", "mov {b}, dr0", "mov dr1, {b}",
    "xor eax, eax\ncpuid\nxor eax, eax", "mov ecx, 0xc0000080\nrdmsr", "mov ecx, 0xc0000100\nrdmsr", "invd", "wbinvd",
    "mov ecx, 0xc0000101\nmov eax, 0x120000\nxor edx, edx\nwrmsr\nrdmsr", "invlpg [{p}]", "smsw ax", "smsw {w}",
    "lmsw ax", "sgdt [{p}]", "sidt [{p}]", "str {w}", "sldt ax", "lldt ax", "pushf\npop {b}", "out 0x80, al",
    "pushf\nor dword ptr [{sp}], 0x40800\npopf", "pushf\nor dword ptr [{sp}], 0x4001\npopf", "xgetbv", "syscall",
    "sysenter", "rsm", "getsec", "vmxon [{p}]", "vmread {b}, {b2}", "vmxoff", "clac", "stac", "fwait", "emms",
    "mov {b}, cr3\nmov cr3, {b}", "mov {b}, cr0\nmov cr0, {b}", "xor ecx, ecx\ndiv ecx", "mov {b}, cr4\nmov cr4, {b}",
)
SEGMENTS = (
    "mov ecx, {s}\nmov ds, ecx", "mov ecx, {s}\nmov ss, ecx", "mov ecx, {s}\nmov fs, ecx", "mov ecx, {s}\nmov es, ecx",
    "mov ecx, {s}\nverr cx", "mov ecx, {s}\nverw cx", "mov ecx, {s}\nlsl edx, ecx",
    "mov ecx, {s}\nlldt cx", "mov ecx, ss\nmov ss, ecx\nnop",
)
FAR64 = ("lea rax, [rip + 1f]\npush {s}\npush rax\nretfq\n1: nop",
         "lea rax, [rip + 1f]\npush {s}\npush 0x12c800\npushf\npush 0x3b\npush rax\niretq\n1: nop",
         "lea rax, [rip + 1f]\npush 0x33\npush 0x12c800\npushf\npush {s}\npush rax\niretq\n1: nop")
FAR32 = ("call 1f\n1: pop eax\nadd eax, 6 + {slen}\npush {s}\npush eax\nretf\nnop",)


@dataclass(frozen=True)
class Program:
    """Text for GNU as, and the state in which it starts."""

    mode: str
    text: str
    rflags: int = 2
    cr0: int = CR0
    cr4: int = CR4

    def __str__(self) -> str:
        text = self.text.replace("\n", "; ")
        return f"{self.mode}: {text} (RFLAGS {self.rflags:#x}, CR0 {self.cr0:#x}, CR4 {self.cr4:#x})"


def _fill(rng: random.Random, template: str, bits: int) -> str:
    pointer = rng.choice(("bx", "si", "di"))
    names = ("eax", "ecx", "edx", "ebx", "ebp")
    wide = tuple("r" + name[1:] for name in names) if bits == 64 else names
    first, second = rng.choice(names), rng.choice(names)
    selector = rng.choice(SELECTORS)
    return template.format(
        w=first, w2=second, b=rng.choice(wide), b2=rng.choice(wide), p=f"{wide[0][0]}{pointer}", pe=f"e{pointer}",
        n=hex(rng.choice(NUMBERS)), s=hex(selector), slen=2 if selector < 0x80 else 5,
        sp="rsp" if bits == 64 else "esp", q="qword" if bits == 64 else "dword")


def _instruction(rng: random.Random, bits: int) -> str:
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(PLAIN)
    if kind < 6:
        pointer = hex(rng.choice(PAGES) + rng.choice(OFFSETS))
        if rng.random() < 0.2:
            register = rng.choice(("esi", "edi"))
            return f"mov {register}, {pointer}\nmov ecx, {rng.randrange(5)}\n{rng.choice(STRINGS)}"
        return f"mov {{pe}}, {pointer}\n{rng.choice(MEMORY)}"
    if kind < 8:
        return rng.choice(SYSTEM)
    if kind < 9:
        return rng.choice(SEGMENTS)
    return rng.choice(FAR64 if bits == 64 else FAR32)


def make(seed: int, count: int) -> list[Program]:
    """`count` programs, always the same for a seed."""
    rng = random.Random(seed)
    programs = []
    for _ in range(count):
        mode = rng.choice(tuple(MODES))
        bits = MODES[mode][0]
        text = "\n".join(_fill(rng, _instruction(rng, bits), bits) for _ in range(rng.randrange(1, 5)))
        rflags = 2 | (TF if rng.random() < 0.1 else 0) | (AC if rng.random() < 0.1 else 0)
        cr4 = CR4 | (SMEP if rng.random() < 0.3 else 0) | (SMAP if rng.random() < 0.3 else 0)
        programs.append(Program(mode, text, rflags, CR0 & ~(WP if rng.random() < 0.2 else 0), cr4))
    return programs
