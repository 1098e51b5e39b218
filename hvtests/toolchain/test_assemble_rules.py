"""Every refused form: that it is refused by its name, and what Keystone makes of it against GNU as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from generator.assemble import Unit, assemble
from generator.assemble_child import Outcome, run_texts
from generator.assemble_directives import DIRECTIVES
from generator.assemble_rules import RULES
from generator.errors import AssemblerError
from generator.render import Line
from hvtests.toolchain.gnu_as import GnuError, as_bytes

BASE = {16: 0x7C00, 32: 0x10_0000, 64: 0x10_0000}
END = "\nplace:"  # a label behind the text, for the forms that use one


@dataclass(frozen=True)
class Case:
    """``why``: differs (other bytes than GNU as), fails (no code where GNU as has some), dies (so does its process),
    lax (code where GNU as refuses), drops (the same code as for the text up to the offending sign)."""

    rule: str
    bits: int
    text: str
    why: str
    gnu: str | None = None  # what GNU as is given, where its dialect has another word for the same meaning


CASES = (
    Case("comment",             32, "mov eax, 5 // and so on",           "drops"),
    Case("comment",             32, "mov eax, 5 # and so on",            "drops"),
    Case("unclosed-bracket",    64, "mov rax, [rbx",                     "lax"),
    Case("numeric-label",       64, "1: jmp 1b",                         "fails"),
    Case("numeric-label",       64, "jmp 1f",                            "fails",   "jmp 1f\n1:"),
    Case("offset",              64, "mov edi, offset place",             "fails"),
    Case("short-near",          64, "jmp short place",                   "fails"),
    Case("absolute-address-64", 64, "mov rbx, gs:[0x60]",                "differs"),
    Case("absolute-address-64", 64, "mov rbx, [0x1234]",                 "differs"),
    Case("absolute-address-64", 64, "cmp dword ptr gs:[0x1234], 5",      "differs"),
    Case("rip-number",          64, "lea rdi, [rip + 0x100100]",         "differs", "lea rdi, [rip+t]\n.zero 249\nt:"),
    Case("address-difference",  64, "mov rax, [rbx + begin - place]",    "differs"),
    Case("label-arithmetic",    64, "mov ecx, (place - begin) / 2",      "fails"),
    Case("label-arithmetic",    32, "mov ecx, (place - begin) * 2",      "fails"),
    Case("high-byte-with-rex",  64, "mov ah, [r8]",                      "dies"),
    Case("high-byte-with-rex",  64, "movzx rax, ah",                     "dies"),
    Case("high-byte-with-rex",  64, "add ah, spl",                       "dies"),
    Case("label-64",            64, "mov rdi, place",                    "differs"),
    Case("far-pointer",         32, "ljmp 8:0x100000",                   "differs"),
    Case("far-pointer",         32, "jmp 8:0x100000",                    "fails"),
    Case("far-pointer",         16, "jmp 8:0x1000",                      "fails"),
    Case("far-indirect",        64, "jmp fword ptr [rax]",               "fails"),
    Case("table-register-32",   32, "lgdt [eax]",                        "differs"),
    Case("table-register-32",   32, "sidt [eax]",                        "differs"),
    Case("iret",                32, "iret",                              "differs"),
    Case("iret",                64, "iret",                              "differs"),
    Case("pushf-popf",          64, "pushf",                             "differs"),
    Case("pushf-popf",          64, "popf",                              "differs"),
    Case("pushf-popf",          32, "pushf",                             "differs"),
    Case("push-number-16",      16, "push 0x1234",                       "differs"),
    Case("push-segment-16",     16, "push fs",                           "differs"),
    Case("push-segment-32",     32, "pop es",                            "differs"),
    Case("push-label",          32, "push place",                        "fails"),
    Case("push-label",          64, "push place",                        "differs"),
    Case("push-ff80",           32, "push 0xffff",                       "differs"),
    Case("push-ff80",           64, "push 0xff80",                       "differs"),
    Case("push-wide-64",        64, "push 0xffffffff",                   "lax"),
    Case("call-16",             16, "call place",                        "differs"),
    Case("return-16",           16, "ret",                               "differs"),
    Case("return-16",           16, "retf",                              "differs"),
    Case("sysret-sysexit",      64, "sysret",                            "lax"),
    Case("sysret-sysexit",      64, "sysexit",                           "lax"),
    Case("sysret-sysexit",      64, "sysretq",                           "fails"),
    Case("swapgs",              32, "swapgs",                            "lax"),
    Case("long-nop",            64, "nop dword ptr [rax]",               "differs"),
    Case("lretq",               64, "lretq",                             "fails"),
    Case("cet",                 64, "endbr64",                           "fails"),
    Case("newer-instruction",   64, "rdpid rax",                         "fails"),
    Case("newer-instruction",   64, "serialize",                         "fails"),
    Case("newer-instruction",   64, "lar eax, cx",                       "fails"),
)  # fmt: skip


def keystone(bits: int, text: str, limit: float = 5.0) -> Outcome:
    return run_texts([(bits, BASE[bits], text)], limit)[0]


def refused(bits: int, *lines: str) -> str:
    unit = Unit("test", bits, BASE[bits], [Line(text, "file.asm.j2", number) for number, text in enumerate(lines, 1)])
    with pytest.raises(AssemblerError) as caught:
        assemble([unit])
    return str(caught.value)


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in RULES} == {case.rule for case in CASES}
    assert {(rule.name, bits) for rule in RULES for bits in rule.modes} >= {(case.rule, case.bits) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.bits}-{case.text}")
def test_form_is_refused_by_name(case: Case) -> None:
    message = refused(case.bits, "begin:", case.text, "place:")
    assert message.startswith("file.asm.j2:2: ")
    assert f"({case.rule})" in message
    assert "; write " in message


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.bits}-{case.text}")
def test_why_the_form_is_refused(case: Case, tmp_path: Path) -> None:
    outcome = keystone(case.bits, f"begin:\n{case.text}{END}\n")

    def gnu() -> bytes:
        return as_bytes(case.bits, BASE[case.bits], f"begin:\n{case.gnu or case.text}{END}", tmp_path)

    if case.why == "differs":
        assert outcome.code and not outcome.error
        assert not gnu().startswith(outcome.code)
    elif case.why == "fails":
        assert not outcome.code
        assert gnu()
    elif case.why == "dies":
        assert outcome.died
    elif case.why == "lax":
        assert outcome.code and not outcome.error
        with pytest.raises(GnuError):
            gnu()
    else:
        assert case.why == "drops"
        assert outcome.code == keystone(case.bits, case.text.split("/")[0].split("#")[0]).code != b""


@pytest.mark.parametrize("name", [name for rule in DIRECTIVES for name in rule.names])
def test_directive_is_refused_by_name(name: str) -> None:
    message = refused(64, "nop", f"{name} 1")
    assert message.startswith("file.asm.j2:2: ") and f"{name} is refused" in message


def test_section_text_ends_keystones_process() -> None:
    assert keystone(64, "nop\n.text\nnop").died


def test_keystone_knows_one_section_only() -> None:
    assert keystone(64, "nop\n.data\nnop").code == b"\x90\x90"
    assert keystone(64, ".section .mine\nnop").code != b"\x90"


@pytest.mark.parametrize("text", [".word 0x1ffff", '.include "/nonexistent"'])
def test_keystone_gives_no_code_and_no_error(text: str) -> None:
    outcome = keystone(64, text)
    assert (outcome.error, outcome.code, outcome.died) == ("", b"", False)


def test_keystone_reads_files_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    assert keystone(64, f'.incbin "{tmp_path}/secret"').code == b"secret"


@pytest.mark.parametrize(
    "text", ["a: nop\n.fill 16-(.-a), 1, 0", "a: nop\n.skip 16-(.-a), 0", ".quad 0x123456789abcdef01"]
)
def test_keystone_hangs(text: str) -> None:
    outcome = keystone(64, text, limit=1.0)
    assert outcome.died and "did not finish within 1 s" in outcome.error


def test_numbers_that_do_not_fit_are_ours_to_refuse() -> None:
    assert "0x1ffff does not fit in 16 bits" in refused(64, ".word 0x1ffff")
    assert "does not fit in 64 bits" in refused(64, ".quad 0x123456789abcdef01")


def test_keystone_pads_16_bit_code_with_instructions() -> None:
    """Its long NOPs are shorter instructions there, and what is left of them is not a NOP: ``add [bx+si], al``."""
    code = keystone(16, "nop\n.balign 16, 0x90\nnop").code
    assert code[1:-1] != b"\x90" * 15
    assert b"\x0f\x1f\x84\x00\x00\x00\x00\x00" in code
