"""generator.arch judged by Bochs: an independent implementation says which fields and controls exist, and how wide."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.arch import controls, msrs, vmcs
from hvtests.runners.bochs import BochsRunner
from hvtests.toolchain.vmx_probe import Probed, make_probe, parse

# The last VMX MSR of each model; penryn has no TRUE MSRs and no EPT, tigerlake has CET.
MODELS = {"core2_penryn_t9600": 0x48B, "corei7_skylake_x": 0x491, "tigerlake": 0x491}
TIME_LIMIT = 30.0

pytestmark = pytest.mark.bochs


@pytest.fixture(scope="module", params=MODELS)
def probed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """What one of Bochs' models says."""
    work: Path = tmp_path_factory.mktemp("probe")
    image = make_probe(work / "probe.img", work, MODELS[request.param])
    result = BochsRunner(cpu=request.param).run(image, timeout=TIME_LIMIT)
    answer = parse(result.debugcon)
    assert max(answer.msrs) == MODELS[request.param], result.detail
    assert len(answer.fields) > 100, result.detail
    return answer


def test_every_field_of_bochs_is_in_the_table(probed: Probed) -> None:
    unknown = [hex(encoding) for encoding in probed.fields if vmcs.decode(encoding) is None]
    assert unknown == []


def test_widths(probed: Probed) -> None:
    """After VMWRITE of all ones, VMREAD gives as many ones as the field is wide."""
    for encoding, (value, written) in probed.fields.items():
        if not written:
            continue
        field, high = vmcs.decode(encoding) or pytest.fail(hex(encoding))
        assert value == (1 << (32 if high else field.bits)) - 1, field.name


def test_read_only_fields(probed: Probed) -> None:
    """VMWRITE fails on VM-exit information and works on all else, unless IA32_VMX_MISC[29] lets it write anything."""
    anything = probed.msrs[0x485] >> 29 & 1
    for encoding, (_, written) in probed.fields.items():
        field, _ = vmcs.decode(encoding) or pytest.fail(hex(encoding))
        assert written == (bool(anything) or field.type is not vmcs.FieldType.READ_ONLY), field.name


def test_fields_that_every_processor_has(probed: Probed) -> None:
    """Fields that the manual makes no condition for exist in each model, both halves of the 64-bit ones."""
    for name in ("GUEST_ES_SELECTOR", "HOST_TR_SELECTOR", "IO_BITMAP_A", "VMCS_LINK_POINTER", "GUEST_IA32_DEBUGCTL",
                 "PIN_BASED_VM_EXEC_CONTROL", "VM_INSTRUCTION_ERROR", "VMX_INSTRUCTION_INFO", "GUEST_ES_LIMIT",
                 "GUEST_SYSENTER_CS", "HOST_IA32_SYSENTER_CS", "CR0_GUEST_HOST_MASK", "EXIT_QUALIFICATION",
                 "GUEST_LINEAR_ADDRESS", "GUEST_CR0", "GUEST_SYSENTER_EIP", "HOST_CR0", "HOST_RIP"):
        field = vmcs.BY_NAME[name]
        assert field.encoding in probed.fields, name
        if field.high_encoding is not None:
            assert field.high_encoding in probed.fields, name


def test_default1_bits(probed: Probed) -> None:
    """The low half of the first capability MSR of a word is its default1 class (SDM 3D A.2)."""
    for word in (controls.PINBASED, controls.PROCBASED, controls.EXIT, controls.ENTRY):
        assert probed.msrs[msrs.BY_NAME[word.msr].address] & 0xFFFF_FFFF == word.default1, word.name


def test_every_control_of_bochs_has_a_name(probed: Probed) -> None:
    for word in controls.WORDS:
        address = msrs.BY_NAME[word.msr].address
        if address not in probed.msrs:
            continue
        named = sum(control.mask for control in word.bits) | word.default1
        allowed = probed.msrs[address] >> (32 if word.width == 32 else 0)
        unnamed = [bit for bit in range(word.width) if allowed >> bit & 1 and not named >> bit & 1]
        assert unnamed == [], word.name
