"""``hvforge verify``: one run in the harness, and everything about it that can be checked."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from generator.arch import exits
from generator.arch.abi import CONSOLE_PREFIX
from hvtests.machine.stop import Limits, StopKind
from hvtests.places import Places
from hvtests.runners.base import RunResult, Verdict
from hvtests.runners.unicorn import result_of
from hvtests.runners.words import ended_otherwise
from hvtests.vmx.checks import RULES, Checker, EntryState, Failure
from hvtests.vmx.complaints import Complaints
from hvtests.vmx.model import VmxMachine

NOT_VERIFIED = 7   # the run finished as it should, but a check on it failed; Verdict has 0 to 6
_COUNT = re.compile(re.escape(CONSOLE_PREFIX) + r"vm (?P<vm>\S+): exits (?P<reason>\S+) (?P<count>\d+)")
_REASON = 0xFFFF

Counts = dict[tuple[str, str], int]   # by VM and name of the reason
Recorded = Counter[tuple[int, int]]   # by address of the VMCS and number of the reason


@dataclass(frozen=True, slots=True)
class ExitCount:
    """How often one reason came in one VM: by the harness' record, and by what the image printed."""

    vm: str
    reason: str
    harness: int
    image: int


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked; `details` are more lines for one that failed."""

    passed: bool
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found. ``status`` is the process exit status: 0 only if all checks passed."""

    result: RunResult
    exits: tuple[ExitCount, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def status(self) -> int:
        return 0 if self.passed else int(self.result.verdict) or NOT_VERIFIED

    @property
    def verdict(self) -> str:
        """One line."""
        failed = sum(not check.passed for check in self.checks)
        what = f"{failed} of {len(self.checks)} checks failed" if failed else f"all {len(self.checks)} checks passed"
        return f"{self.result.verdict.name} after {self.result.seconds:.2f} s, {what}"


class Auditor(Checker):
    """A Checker that keeps count: of the entries it judged and of the rules it ran."""

    def __init__(self) -> None:
        self.entries = 0
        self.ran: Counter[str] = Counter()
        super().__init__([replace(rule, holds=self._counted(rule.id, rule.holds)) for rule in RULES])

    def _counted(self, name: str, holds: Callable[[EntryState], bool]) -> Callable[[EntryState], bool]:
        def counted(state: EntryState) -> bool:
            self.ran[name] += 1
            return holds(state)
        return counted

    def run(self, state: EntryState, dirty: Collection[str] | None = None) -> Failure | None:
        """See :meth:`hvtests.vmx.checks.Checker.run`."""
        self.entries += 1
        return super().run(state, dirty)


def verify(image: Path, image_map: Mapping[str, Any] | None, timeout: float, memory_mib: int = 256) -> Verification:
    """Boot ``image`` in the harness and check the run.

    ``image_map`` names the VMs; without it they are known by what the image prints. Raises ImageFileError if the file
    cannot boot, EngineError if the harness' engine cannot be used.
    """
    begin = time.monotonic()
    machine = VmxMachine(memory_mib << 20, exits_kept=None)
    machine.vmx.checker = auditor = Auditor()
    machine.vmx.complaints.place = Places.of_file(image) if image_map is None else Places.of_map(image_map)
    machine.boot(image)
    stop = machine.run(Limits(seconds=timeout))
    result = result_of(machine, stop, time.monotonic() - begin)
    told = counts_told(result.lines)
    log = machine.vmx.exits
    # A failed entry is no exit of a guest's: the image tells of it, but does not count it.
    recorded = Counter(
        (record.vmcs, record.reason & _REASON) for record in log if not record.reason & exits.ENTRY_FAILURE)
    failed = sum(bool(record.reason & exits.ENTRY_FAILURE) for record in log)
    counted = counts_recorded(recorded, vm_names(image_map, recorded, told))
    rows = tuple(
        ExitCount(vm, reason, counted.get((vm, reason), 0), told.get((vm, reason), 0))
        for vm, reason in _grouped([*counted, *told])
    )
    checks = (
        _finished(result, stop.kind is StopKind.UNMODELLED),
        _entries(auditor, machine.vmx.complaints),
        _counts(rows, log.total - failed),
    )
    return Verification(result, rows, checks)


def _grouped(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each key once, those of a VM together, otherwise in their order."""
    order = list(dict.fromkeys(vm for vm, _ in keys))
    return sorted(dict.fromkeys(keys), key=lambda key: order.index(key[0]))


def counts_told(lines: Sequence[str]) -> Counts:
    """What the image itself counted, from the lines it prints when a VM ends."""
    told: Counts = {}
    for line in lines:
        match = _COUNT.fullmatch(line)
        if match is not None:
            told[match["vm"], match["reason"]] = int(match["count"])
    return told


def counts_recorded(recorded: Recorded, names: Mapping[int, str]) -> Counts:
    """What the harness recorded, VMs named by the addresses of their VMCSs."""
    counted: Counts = {}
    for (vmcs, reason), count in recorded.items():
        known = exits.BY_NUMBER.get(reason)
        counted[names[vmcs], known.name if known else f"RESERVED_{reason}"] = count
    return counted


def vm_names(image_map: Mapping[str, Any] | None, recorded: Recorded, told: Counts) -> dict[int, str]:
    """Names of VMs by the addresses of their VMCSs: from the map, else by who counted the same exits."""
    unknown = {address: f"VMCS {address:#x}" for address, _ in recorded}
    if image_map is not None:
        starts = {row["name"]: row["start"] for row in image_map["data"]}
        named = {starts[f"vmcs_{number}"]: vm["name"] for number, vm in enumerate(image_map["vms"])}
        return unknown | named
    counted = counts_recorded(recorded, unknown)
    left, known = list(unknown), dict(unknown)
    for vm in dict.fromkeys(vm for vm, _ in told):
        alike = [address for address in left if _of(counted, unknown[address]) == _of(told, vm)] or left
        if alike:
            known[alike[0]] = vm
            left.remove(alike[0])
    return known


def _of(counts: Counts, vm: str) -> dict[str, int]:
    return {reason: count for (name, reason), count in counts.items() if name == vm}


def _finished(result: RunResult, unmodelled: bool) -> Check:
    if unmodelled:
        return Check(False, f"the harness does not model what the image did: {result.detail}")
    if result.verdict is Verdict.FINISHED:
        return Check(True, "every VM ended as expected")
    return Check(False, f"the run ended otherwise: {result.detail}", tuple(ended_otherwise(result.lines)))


def _entries(auditor: Auditor, complaints: Complaints) -> Check:
    if not auditor.entries:
        return Check(False, "there was no VM entry to check", tuple(complaints.instructions))
    rules = f"{len(auditor.ran)} of {_many(len(auditor.rules), 'rule')}, run {_many(sum(auditor.ran.values()), 'time')}"
    text = f"VM entries: {rules} at the {_many(auditor.entries, 'entry', 'entries')} with something new to check"
    failed, other = complaints.failed_entries, complaints.failed_instructions - complaints.failed_entries
    if not complaints.failed_instructions and not failed:
        return Check(True, f"{text}: all held")
    details = [line for entry in complaints.entries for line in entry]
    if not failed:
        # VMfail is an answer that software may want: it is told, and what came of it shows in the other checks.
        return Check(True, f"{text}: all held; {_many(other, 'VMX instruction')} failed",
                     tuple(complaints.instructions))
    return Check(False, f"{text}: {_many(failed, 'entry', 'entries')} failed", tuple(details))


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def _counts(rows: Sequence[ExitCount], total: int) -> Check:
    kept = sum(row.harness for row in rows)
    if kept < total:
        return Check(False, f"{_many(total, 'VM exit')}: too many to compare, the harness keeps the last {kept}")
    differ = [row for row in rows if row.harness != row.image]
    if differ:
        return Check(False, f"{_many(total, 'VM exit')}, but the image counted otherwise", tuple(
            f"{row.vm} {row.reason}: {row.harness} in the harness, {row.image} by the image" for row in differ))
    if not total:
        return Check(False, "there was no VM exit")
    return Check(True, f"{_many(total, 'VM exit')}, counted alike by the image")


__all__ = ["NOT_VERIFIED", "Auditor", "Check", "ExitCount", "Verdict", "Verification", "verify"]
