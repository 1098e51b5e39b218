"""Instruction lines by chance, the same ones at every run: right ones, odd ones and wrong ones."""

from __future__ import annotations

from random import Random

OUTSIDE = {16: 0x678, 32: 0x34_5678, 64: 0x34_5678}  # value of the symbol "outside", by mode

_REGISTERS = {
    8:  ("al", "bl", "ch", "dl", "ah", "sil", "r9b"),
    16: ("ax", "bx", "si", "sp", "bp", "r10w"),
    32: ("eax", "ebx", "esi", "esp", "ebp", "r11d"),
    64: ("rax", "rbx", "rdi", "rsp", "rbp", "r12", "r13"),
}  # fmt: skip
_SIZES = {8: "byte", 16: "word", 32: "dword", 64: "qword"}
_ADDRESSES = {
    16: ("bx", "si", "di", "bp", "bx + si", "bp + di", "esi", "eax + ecx*4", ""),
    32: ("eax", "ebp", "esp", "ecx*4", "eax + ecx*8", "ebp + ecx*2", "eax + ebp", ""),
    64: ("rax", "rbp", "rsp", "r12", "r13", "rcx*4", "rax + rcx*8", "r13 + r12*2", "rax + rbp", "rip", "eax", ""),
}
_DISPLACEMENTS = ("", "+ 4", "- 8", "+ 0x1234", "+ outside", "+ first", "+ first + 4", "+ 8*2", "+ 0x7f", "+ 0x80",
                  "- 0x80")  # fmt: skip
_NUMBERS = ("1", "-1", "0x7f", "0x80", "0xff", "0x1234", "-0x80", "0xffffffff", "0x80000000", "0xffff", "outside",
            "first", "last - first", "0x7fffffff", "0xfffffffffffff000", "'A'")  # fmt: skip
_ARITHMETIC = ("mov", "add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "xchg", "lock xadd",
               "lock cmpxchg")  # fmt: skip
_UNARY = ("inc", "dec", "neg", "not", "mul", "imul", "div", "idiv")
_SHIFTS = ("shl", "shr", "sar", "rol", "ror", "sal", "rcl")
_BRANCHES = ("jmp", "call", "je", "jnbe", "jc")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_STRING = _words("stosb movsw lodsd scasb cmpsd stosq movsq insb outsw insd lodsw")
_PLAIN = _words(
    "pushf popf pushfd pushfq iret iretd iretq ret retf retfq leave cwde cdq cqo cdqe cbw cwd pusha popad pushad cli "
    "hlt cpuid rdmsr wrmsr rdtsc rdtscp xgetbv xsetbv vmcall vmlaunch vmresume vmxoff invd wbinvd ud2 pause int3 int1 "
    "swapgs clts sti cld lfence mfence sfence monitor mwait syscall sysenter sysret sysexit rsm xlatb fninit fwait "
    "emms nop vmfunc clac stac lahf sahf into"
)
_SYSTEM = ("lgdt", "lidt", "sgdt", "invlpg", "vmptrld", "vmclear", "vmxon", "fxsave", "fxrstor", "fxsave64", "xsave",
           "xrstor64", "cmpxchg8b", "cmpxchg16b", "ldmxcsr", "clflush", "ljmp", "lcall")  # fmt: skip


class Corpus:
    """Lines for one mode. They may name the labels ``first`` and ``last`` around them, and ``outside``."""

    def __init__(self, bits: int, seed: int) -> None:
        self.bits = bits
        self.random = Random(seed)

    def lines(self, count: int) -> list[str]:
        """At most ``count`` different lines."""
        return list(dict.fromkeys(self.line() for _ in range(count)))

    def one(self, *choices: str) -> str:
        return self.random.choice(choices)

    def register(self, size: int) -> str:
        new = ("sil", "r9b", "r10w", "r11d")
        return self.one(*(name for name in _REGISTERS[size] if self.bits == 64 or name not in new))

    def memory(self, size: int) -> str:
        prefix = self.one("", f"{_SIZES[size]} ptr ") + self.one("", "", "", "gs:", "es:")
        address, displacement = self.one(*_ADDRESSES[self.bits]), self.one(*_DISPLACEMENTS)
        if address == "rip" and "first" not in displacement and "outside" not in displacement:
            displacement = "+ first"
        inside = f"{address} {displacement}".strip() if address else displacement.lstrip("+ ") or "4"
        return f"{prefix}[{inside}]"

    def number(self) -> str:
        return self.one(*_NUMBERS)

    def line(self) -> str:
        """One line; about half of them can be assembled."""
        size = self.random.choice((8, 16, 32, 64, 64) if self.bits == 64 else (8, 16, 32))
        r, m, n = self.register(size), self.memory(size), self.number()
        pair = self.one(f"{r}, {self.register(size)}", f"{r}, {m}", f"{m}, {r}", f"{r}, {n}", f"{m}, {n}")
        either = self.one(r, m)
        small = self.random.choice((8, 16))
        return self.random.choice((
            f"{self.one(*_ARITHMETIC)} {pair}", f"{self.one(*_ARITHMETIC)} {pair}", f"{self.one(*_ARITHMETIC)} {pair}",
            f"{self.one(*_UNARY)} {either}",
            f"{self.one(*_SHIFTS)} {either}, {self.one('1', 'cl', '5')}",
            f"{self.one('movzx', 'movsx')} {r}, {self.one(self.register(small), self.memory(small))}",
            f"lea {r}, {m}",
            f"{self.one('push', 'pop')} {self.one(r, m, n, 'fs', 'es', 'gs')}",
            f"{self.one(*_BRANCHES)} {self.one('first', 'last', 'outside', 'first + 2', r, self.memory(self.bits))}",
            self.one("", "rep ", "repne ", "lock ") + self.one(*_STRING),
            self.one(*_PLAIN),
            f"{self.one('bt', 'bts', 'btr', 'btc')} {self.one(f'{either}, 5', pair)}",
            self.one(f"in {self.one('al', 'ax', 'eax')}, {self.one('dx', '0x60')}",
                     f"out {self.one('dx', '0x60')}, {self.one('al', 'ax', 'eax')}"),
            self.one(f"mov {self.one('cr0', 'cr3', 'cr4', 'dr7')}, {r}", f"mov {r}, {self.one('cr0', 'cr2', 'dr6')}"),
            self.one(f"mov {self.one('ds', 'es', 'ss')}, {either}", f"mov {either}, {self.one('ds', 'cs', 'gs')}"),
            f"{self.one('ltr', 'lldt', 'str', 'sldt', 'smsw', 'lmsw')} {either}",
            f"{self.one(*_SYSTEM)} {m}",
            f"{self.one('bsf', 'bsr', 'popcnt', 'cmovc')} {pair}",
            f"imul {r}, {self.one(either, n, f'{either}, {n}')}",
            self.one(f"setnz {either}", f"bswap {r}", f"movsxd {r}, {either}", f"movdqu {m}, xmm1"),
            self.one(f"vmread {either}, {r}", f"vmwrite {r}, {either}", f"invept {r}, {m}", f"invvpid {r}, {m}"),
            f"{self.one('shld', 'shrd')} {either}, {r}, {self.one('3', 'cl')}",
        ))  # fmt: skip
