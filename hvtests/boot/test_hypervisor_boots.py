"""Our own images on emulators that are not ours: what a user does first."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from generator import resources
from generator.build import build, write
from hvtests.runners import kvm
from hvtests.runners.base import RunResult, Verdict
from hvtests.runners.bochs import BochsRunner
from hvtests.runners.qemu import QemuRunner

SUFFIXES = ("img", "iso", "elf")


@pytest.fixture(scope="module")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("minimal")
    write(build(resources.images() / "minimal.toml"), directory)
    return directory


def _finished(result: RunResult) -> None:
    assert result.verdict is Verdict.FINISHED, result.text
    for line in (
        "[long] hello from 64-bit mode", "[long] the hypervisor calls itself hvforgehvfor",
        "[paged] hello from 32-bit mode with paging", "[real] hello from real mode", "[real] printed by a hypercall",
        "hvforge: vm long: ended: exited", "hvforge: vm real: ended: halted", "hvforge: end 0x10 FINISHED",
    ):
        assert line in result.lines


@pytest.mark.bochs
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bochs_runs_the_guests(minimal: Path, suffix: str) -> None:
    _finished(BochsRunner().run(minimal / f"minimal.{suffix}"))


@pytest.mark.qemu
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_qemu_runs_the_guests_or_is_refused_for_its_missing_vmx(minimal: Path, suffix: str) -> None:
    result = QemuRunner().run(minimal / f"minimal.{suffix}")
    if kvm.probe().vmx:
        _finished(result)
        return
    assert (result.verdict, result.code) == (Verdict.REFUSED, 0x12)
    assert result.lines[1:] == [
        "hvforge: refused: CPUID.1:ECX[5] (VMX) is not offered by this CPU", "hvforge: end 0x12 REFUSED"]


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_without_a_debug_exit_port_the_machine_is_powered_off(minimal: Path, machine: str) -> None:
    """ACPI S5 by PM1a_CNT at port 604H, which QEMU has; its status is 0 then."""
    command = ["qemu-system-x86_64", "-machine", machine, "-nodefaults", "-display", "none", "-no-reboot",
               "-serial", "stdio", "-accel", "tcg", "-kernel", str(minimal / "minimal.elf")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines()[-1] == "hvforge: end 0x12 REFUSED"


@pytest.mark.bochs
@pytest.mark.parametrize(("cpu", "reasons"), [
    ("pentium", ["CPUID.80000001H:EDX[29] (long mode) is not offered by this CPU"]),
    ("ryzen", ["CPUID.1:ECX[5] (VMX) is not offered by this CPU"]),
    ("corei5_lynnfield_750", ["IA32_VMX_PROCBASED_CTLS2 (0x48b) does not offer bit 7, UNRESTRICTED_GUEST"]),
    ("core2_penryn_t9600", [
        "IA32_VMX_TRUE_PINBASED_CTLS (0x48d) does not offer bit 6, ACTIVATE_PREEMPTION_TIMER",
        "IA32_VMX_PROCBASED_CTLS2 (0x48b) does not offer bit 1, ENABLE_EPT",
        "IA32_VMX_PROCBASED_CTLS2 (0x48b) does not offer bit 5, ENABLE_VPID",
        "IA32_VMX_PROCBASED_CTLS2 (0x48b) does not offer bit 7, UNRESTRICTED_GUEST",
    ]),
])
def test_a_cpu_that_lacks_something_is_refused_by_name(minimal: Path, cpu: str, reasons: list[str]) -> None:
    result = BochsRunner(cpu=cpu).run(minimal / "minimal.img")
    assert result.verdict is Verdict.REFUSED
    refusals = [line.removeprefix("hvforge: refused: ") for line in result.lines if "refused: " in line]
    assert [reason for reason in reasons if reason in refusals] == reasons
    assert len(refusals) == len(set(refusals)), "something is named twice"
    assert not any(line.startswith("[") for line in result.lines), "a guest ran"


@pytest.mark.bochs
@pytest.mark.parametrize("cpu", ["corei7_sandy_bridge_2600k", "corei7_haswell_4770", "broadwell_ult"])
def test_older_cpus_with_all_it_needs_will_do(minimal: Path, cpu: str) -> None:
    _finished(BochsRunner(cpu=cpu).run(minimal / "minimal.img"))


@pytest.mark.bochs
@pytest.mark.parametrize(("suffix", "reason"), [
    ("img", "the image needs RAM up to 0x800000, and this machine's memory map (E820) does not have it"),
    ("elf", "memory at 0x7f0000 is not RAM in this machine's memory map; the layout needs 0x600000 to 0x800000"),
])
def test_too_little_memory_is_refused_with_the_address(minimal: Path, suffix: str, reason: str) -> None:
    """By our loader before it copies, and by the hypervisor itself where somebody else's loader did (GRUB here)."""
    result = BochsRunner(memory_mib=4 if suffix == "img" else 8).run(minimal / f"minimal.{suffix}")
    assert result.verdict is Verdict.REFUSED
    assert f"hvforge: refused: {reason}" in result.lines


@pytest.mark.bochs
@pytest.mark.qemu
def test_a_damaged_disk_is_refused(minimal: Path, tmp_path: Path) -> None:
    data = bytearray((minimal / "minimal.img").read_bytes())
    data[20 * 512] ^= 1
    path = tmp_path / "damaged.img"
    path.write_bytes(data)
    for runner in (BochsRunner(), QemuRunner()):
        result = runner.run(path)
        assert result.verdict is Verdict.REFUSED
        assert result.lines[0].endswith(
            "the image on the boot disk is damaged or cut short (checksum): write it to the disk again")


@pytest.mark.bochs
@pytest.mark.parametrize("suffix", ["img", "iso"])
def test_a_large_payload_arrives_whole(tmp_path: Path, suffix: str) -> None:
    """20 MiB of random words, which the guest adds up and compares with the sum computed here."""
    count = 20 << 20
    body = random.Random(1).randbytes(count)
    total = sum(struct.unpack(f"<{count // 8}Q", body)) & (1 << 64) - 1
    code = bytes(Ks(KS_ARCH_X86, KS_MODE_64).asm(f"""
        mov rsi, 0x200000
        mov rcx, {count // 8}
        xor eax, eax
    add_up:
        add rax, qword ptr [rsi]
        add rsi, 8
        dec rcx
        jnz add_up
        mov rdx, 0x1100
        xor ebx, ebx
        cmp rax, qword ptr [rdx]
        setne bl
        mov eax, 2
        vmcall
    """, 0x1000)[0])
    guest = bytearray(0x200000 - 0x1000) + body
    guest[:len(code)] = code
    guest[0x100:0x108] = total.to_bytes(8, "little")
    (tmp_path / "big.bin").write_bytes(guest)
    (tmp_path / "big.toml").write_text(
        '[image]\nname = "big"\nwatchdog_ticks = 4_000_000_000\n[[vm]]\nname = "big"\nmemory = "32M"\n'
        '[vm.guest]\nfile = "big.bin"\nformat = "flat"\nmode = "long"\n')
    write(build(tmp_path / "big.toml", ["disk", "iso"]), tmp_path)
    result = BochsRunner().run(tmp_path / f"big.{suffix}", timeout=90)
    assert result.verdict is Verdict.FINISHED, result.text
