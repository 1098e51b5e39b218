"""`hvforge explain`: each topic, by number and by name, and what is said of things that do not exist."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from generator.arch import controls, cpuid, events, exits, instruction_errors, msrs, vmcs
from generator.errors import UsageError
from generator.explain import TOPICS, Explanation, explain, number


@dataclass(frozen=True)
class Rule:
    id: str = "guest.rip.upper"
    section: str = "SDM 3C 27.3.1.4"
    sentence: str = "Bits 63:32 of RIP are 0 unless the guest is in 64-bit mode."
    reads: tuple[str, ...] = ("GUEST_RIP", "VM_ENTRY_CONTROLS", "something else")


CHECKS = {"guest.rip.upper": Rule()}


def text(explanation: Explanation) -> str:
    return "\n".join(f"{label}: {words}" for label, words in explanation.rows)


def refused(topic: str, what: str) -> str:
    with pytest.raises(UsageError) as caught:
        explain(topic, what, CHECKS)
    assert caught.value.status == 64
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("what", ["0x681e", "0x681E", "681eh", "681EH", "26654", "GUEST_RIP", "guest_rip", "guest-rip"])
def test_vmcs_field(what: str) -> None:
    found = explain("vmcs", what)
    assert (found.title, found.section) == ("GUEST_RIP: guest RIP", "SDM 3C 25.4.1")
    assert dict(found.rows) == {"encoding": "0x681e", "width": "natural", "type": "guest state",
                                "index": "15 (SDM 3D B.4.3)"}


def test_vmcs_high_half() -> None:
    found = explain("vmcs", "0x2801")
    assert found.title == "VMCS_LINK_POINTER (high half): VMCS link pointer"
    assert ("encoding", "0x2800, high half 0x2801") in found.rows


def test_vmcs_control_word_shows_its_bits() -> None:
    rows = explain("vmcs", "SECONDARY_VM_EXEC_CONTROL").rows
    assert ("capability MSR", "IA32_VMX_PROCBASED_CTLS2") in rows
    assert ("bit 1", "ENABLE_EPT: extended page tables") in rows


def test_vmcs_layout() -> None:
    assert "bit 16: UNUSABLE: the segment is unusable" in text(explain("vmcs", "GUEST_CS_AR_BYTES"))
    assert "bits 15:0: BASIC: basic exit reason" in text(explain("vmcs", "VM_EXIT_REASON"))


@pytest.mark.parametrize(("what", "message"), [
    ("GUEST_RPI", 'there is no VMCS field "GUEST_RPI"; did you mean GUEST_'),
    ("0x681f", 'there is no VMCS field "0x681f"; only 64-bit fields have a high half'),
    ("0x482c", 'there is no VMCS field "0x482c"; W32, GUEST, index 22: the manual gives that no field'),
    ("0x1000", 'there is no VMCS field "0x1000"; an encoding has bits 14:13, 11:10, 9:1 and 0 alone'),
    ("4402", 'there is no VMCS field "4402"; did you mean 0x4402?'),
    ("681e", 'there is no VMCS field "681e"; did you mean 0x681e?'),
    ("", 'there is no VMCS field ""; write a name like GUEST_RIP or an encoding like 0x681e'),
    ("qqqq", 'there is no VMCS field "qqqq"; write a name like GUEST_RIP or an encoding like 0x681e')])
def test_no_such_vmcs_field(what: str, message: str) -> None:
    assert refused("vmcs", what).startswith(message)


@pytest.mark.parametrize("what", ["48", "0x30", "EPT_VIOLATION", "ept-violation", "ept violation"])
def test_exit(what: str) -> None:
    found = explain("exit", what)
    assert found.title.startswith("exit 48 EPT_VIOLATION: ")
    assert "qualification bit 1: WRITE: a data write" in text(found)


def test_exit_with_flags() -> None:
    found = explain("exit", "0x80000021")
    assert found.title.startswith("exit 33 INVALID_GUEST_STATE")
    assert ("bit 31 is 1", "the VM entry failed") in found.rows


def test_exit_names_its_control() -> None:
    assert "control: PROCBASED[7] HLT_EXITING: HLT causes VM exits" in text(explain("exit", "HLT"))


@pytest.mark.parametrize(("what", "message"), [
    ("35", "there is no basic exit reason 35; they go from 0 to 85"),
    ("CPUDI", 'there is no exit reason "CPUDI"; did you mean CPUID?'),
    ("-", 'there is no exit reason "-"; write a name such as EPT_VIOLATION or a number such as 48')])
def test_no_such_exit(what: str, message: str) -> None:
    assert refused("exit", what).startswith(message)


@pytest.mark.parametrize("what", ["7", "0x7", "ENTRY_INVALID_CONTROLS"])
def test_error(what: str) -> None:
    found = explain("error", what)
    assert (found.title, found.section) == ("VM-instruction error 7 ENTRY_INVALID_CONTROLS", "SDM 3C 31.4")
    assert ("means", "VM entry with control fields that are invalid") in found.rows


def test_no_such_error() -> None:
    assert refused("error", "14") == "VM-instruction error 14 has no meaning in the manual"
    assert refused("error", "29") == 'there is no VM-instruction error "29"; they are numbers from 1 to 28'
    assert "did you mean VMXON_IN_ROOT" in refused("error", "VMXON_IN_ROT")


@pytest.mark.parametrize("what", ["0x48b", "48bh", "1163", "IA32_VMX_PROCBASED_CTLS2", "vmx_procbased_ctls2"])
def test_msr(what: str) -> None:
    found = explain("msr", what)
    assert found.title.startswith("IA32_VMX_PROCBASED_CTLS2: ")
    assert found.section == "SDM 3D A.3.3"
    assert "bits 63:32: ALLOWED_1: 1: the control may be 1" in text(found)
    assert "bit 7: UNRESTRICTED_GUEST: the guest may run unpaged and in real mode" in text(found)


def test_msr_and_the_bitmap() -> None:
    assert ("MSR bitmaps", "cover it") in explain("msr", "efer").rows


@pytest.mark.parametrize(("what", "message"), [
    ("0x12345", 'there is no MSR "0x12345"; write a name such as IA32_EFER or an address such as 0x48b'),
    ("48b", 'there is no MSR "48b"; did you mean 0x48b?'),
    ("480", 'there is no MSR "480"; did you mean 0x480?'),
    ("IA32_EFRE", 'there is no MSR "IA32_EFRE"; did you mean IA32_EFER')])
def test_no_such_msr(what: str, message: str) -> None:
    assert refused("msr", what).startswith(message)


def test_control_by_a_part_of_its_name() -> None:
    found = explain("control", "ept")
    assert ("PROCBASED2[1] ENABLE_EPT", "extended page tables (SDM 3C 25.6.2)") in found.rows
    assert found.title == f'{len(found.rows)} controls match "ept"'
    assert all("preemption" not in words.lower() for words in dict(found.rows))


@pytest.mark.parametrize("what", ["UNRESTRICTED_GUEST", "unrestricted guest", "unrestricted-guest"])
def test_control_alone(what: str) -> None:
    found = explain("control", what)
    assert found.title == "UNRESTRICTED_GUEST: the guest may run unpaged and in real mode"
    assert dict(found.rows) == {
        "word": "PROCBASED2, VMCS field SECONDARY_VM_EXEC_CONTROL (0x401e)",
        "bit": "7 (mask 0x80)",
        "capability MSR": "IA32_VMX_PROCBASED_CTLS2 (0x48b): it must be 1 if bit 7 is 1, may be 1 if bit 39 is 1",
        "counts only with": "PROCBASED ACTIVATE_SECONDARY_CONTROLS",
    }


def test_control_in_two_words() -> None:
    words = [words for label, words in explain("control", "LOAD_IA32_PAT").rows if label == "word"]
    assert words == ["EXIT, VMCS field VM_EXIT_CONTROLS (0x400c)", "ENTRY, VMCS field VM_ENTRY_CONTROLS (0x4012)"]


def test_control_of_the_default1_class() -> None:
    assert "only the TRUE MSR can say otherwise" in text(explain("control", "CR3_LOAD_EXITING"))


def test_control_of_a_64_bit_word() -> None:
    assert "IA32_VMX_PROCBASED_CTLS3 (0x492): it may be 1 if bit 1 is 1" in text(explain("control", "ENABLE_HLAT"))


def test_control_word_by_name() -> None:
    assert len(explain("control", "PROCBASED2").rows) == 31


def test_no_such_control() -> None:
    assert refused("control", "qqqq") == 'there is no control "qqqq"; write a part of its name, such as ept'
    assert "did you mean HLT_EXITING" in refused("control", "HLT_EXTING")
    assert refused("control", "").startswith('there is no control ""')


def test_cpuid() -> None:
    assert ("where", "CPUID.1:ECX[5]") in explain("cpuid", "vmx").rows
    assert refused("cpuid", "VMXX").startswith('there is no CPUID bit "VMXX"; did you mean VMX')


@pytest.mark.parametrize(("what", "name"), [
    ("CPUID.1:ECX[5]", "VMX"), ("cpuid.01h:ecx.vmx[bit 5]", "VMX"), ("CPUID.1:ECX[5] (VMX)", "VMX"),
    ("1:ecx[5]", "VMX"), ("CPUID.80000001H:EDX[29] (long mode)", "LM"), ("CPUID.0x80000001:EDX[20]", "NX"),
    ("CPUID.7,0:EBX[0]", "FSGSBASE"), ("CPUID.(EAX=07H,ECX=0):EBX[bit 0]", "FSGSBASE"), ("CPUID.DH,1:EAX[3]", "XSAVES"),
])
def test_cpuid_by_its_place(what: str, name: str) -> None:
    assert explain("cpuid", what).title.startswith(f"{name}: ")


@pytest.mark.parametrize("what", ["CPUID.1:ECX[99]", "CPUID.1:ESX[5]", "CPUID.1:ECX", "CPUID.:ECX[5]"])
def test_no_such_place_in_cpuid(what: str) -> None:
    with pytest.raises(UsageError, match=r'no CPUID bit .*; .*'):
        explain("cpuid", what)


@pytest.mark.parametrize(("topic", "what", "name"), [
    ("msr", "IA32_VMX_BASIC (0x480) bit 55 (the TRUE capability MSRs)", "IA32_VMX_BASIC"),
    ("msr", "IA32_VMX_MISC[29]", "IA32_VMX_MISC"),
    ("control", "PROCBASED[7]", "HLT_EXITING"),
    ("control", "PROCBASED2[7] UNRESTRICTED_GUEST", "UNRESTRICTED_GUEST"),
    ("control", "exit.load_ia32_efer", "LOAD_IA32_EFER"),
])
def test_spellings_that_messages_use(topic: str, what: str, name: str) -> None:
    """What the image, the checks and explain itself print can be asked for as it stands."""
    found = explain(topic, what)
    assert found.title.startswith(f"{name}: ")
    if topic == "control":
        assert ("word", what.upper().split("[")[0].split(".")[0]) == (found.rows[0][0], found.rows[0][1].split(",")[0])


@pytest.mark.parametrize("what", ["13", "#GP", "gp", "0xd"])
def test_exception(what: str) -> None:
    found = explain("exception", what)
    assert found.title == "#GP: general protection"
    assert ("vector", "13 (EXCEPTION_BITMAP mask 0x2000)") in found.rows


def test_no_such_exception() -> None:
    assert refused("exception", "9") == (
        'there is no exception "9"; write a mnemonic such as #GP or a vector such as 13')


def test_check() -> None:
    found = explain("check", "guest.rip.upper", CHECKS)
    assert (found.title, found.section) == ("check guest.rip.upper", "SDM 3C 27.3.1.4")
    assert found.rows == (
        ("rule", "Bits 63:32 of RIP are 0 unless the guest is in 64-bit mode."),
        ("reads", "GUEST_RIP (0x681e): guest RIP"),
        ("reads", "VM_ENTRY_CONTROLS (0x4012): VM-entry controls"),
        ("reads", "something else"))


def test_no_such_check() -> None:
    assert refused("check", "guest.rip.uper") == (
        'there is no check "guest.rip.uper"; did you mean guest.rip.upper?')
    assert refused("check", "zzz") == 'there is no check "zzz"; there are 1, such as guest.rip.upper'


def test_no_such_topic() -> None:
    assert refused("vmsc", "1") == ('cannot explain "vmsc"; write one of: vmcs, exit, error, msr, control, cpuid, '
                                    "exception, check")


def test_everything_in_the_tables_can_be_explained() -> None:
    names = {"vmcs": vmcs.BY_NAME, "exit": exits.BY_NAME, "error": instruction_errors.BY_NAME, "msr": msrs.BY_NAME,
             "control": {control.name for control in controls.BITS}, "cpuid": cpuid.BY_NAME,
             "exception": events.BY_MNEMONIC}
    assert set(names) | {"check"} == set(TOPICS)
    for topic, table in names.items():
        for name in table:
            found = explain(topic, name)
            assert name in found.title
            assert found.section.startswith("SDM "), name
            assert found.rows


@pytest.mark.parametrize(("written", "value"), [
    ("48", 48), ("0x30", 48), ("30h", 48), ("0b11", 3), ("010", 10), ("x", None), ("", None), ("h", None), ("-1", -1)])
def test_number(written: str, value: int | None) -> None:
    assert number(written) == value
