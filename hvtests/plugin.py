'''A pytest plugin for whoever writes a hypervisor: boot it in a test, look at what it did.

It comes with the package; nothing has to be configured. A test of a hypervisor of your own::

    from pathlib import Path

    from hvtests import StopKind

    IMAGE = Path("build/my-hypervisor.elf")  # a multiboot1 kernel, a BIOS disk, or an El Torito ISO


    def test_guest_gets_its_answer(hv_machine):
        machine = hv_machine(IMAGE)
        stop = machine.run()
        assert stop.kind is StopKind.DEBUG_EXIT and stop.code == 0x20
        assert machine.serial == b"tiny\\n"


    def test_only_the_expected_exits_happen(hv_machine):
        machine = hv_machine(IMAGE)
        machine.run()
        assert [record.reason for record in machine.vmx.exits] == [10] + [18] * 6  # CPUID, then VMCALLs


    def test_without_vmx_it_says_so(hv_machine, hv_cpu):
        machine = hv_machine(IMAGE, cpu=hv_cpu.without("VMX"))
        assert machine.run().code == 0x21


    def test_wherever_it_runs(hv_run):
        assert hv_run(IMAGE).serial == b"tiny\\n"  # in the harness; with --hv-on bochs in Bochs as well

What a failed test's machines said on COM1 is added to its report.
'''

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from hvtests import CpuModel, Machine
    from hvtests.runners.base import RunResult, SerialSink

# Nothing of the harness is imported before a test asks for it: the plugin is loaded by every pytest on the machine.

EMULATORS = ("unicorn", "bochs", "qemu")
RUN_TIMEOUT = 60.0
_SAID = pytest.StashKey[list[tuple[str, Callable[[], bytes]]]]()


class MachineFactory(Protocol):
    """What the fixture `hv_machine` gives."""

    def __call__(self, image: Path | str | bytes | None = None, *, ram: int = ..., cpu: CpuModel | None = ...,
                 console: SerialSink | None = ...) -> Machine: ...


class RunFactory(Protocol):
    """What the fixture `hv_run` gives."""

    def __call__(self, image: Path | str | bytes, *, timeout: float = ..., **settings: Any) -> RunResult: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hvtests", "hypervisor tests")
    group.addoption(
        "--hv-on", action="append", choices=EMULATORS, metavar="EMULATOR",
        help="where tests that use hv_run boot: unicorn (default), bochs, qemu; may be given several times",
    )  # fmt: skip
    group.addoption(
        "--hv-missing", choices=("fail", "skip"), default="fail",
        help="what becomes of a test whose emulator is not installed (default: fail)",
    )  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "hv_emulator" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--hv-on") or ["unicorn"]
        metafunc.parametrize("hv_emulator", list(dict.fromkeys(chosen)), scope="session")


@pytest.fixture(scope="session")
def hv_cpu() -> CpuModel:
    """The CPU that `hv_machine` models by default, to make others from: `.without(name)`, `.with_msr(name, value)`."""
    from hvtests.vmx.capabilities import CpuModel

    return CpuModel.default()


@pytest.fixture
def hv_image(tmp_path: Path) -> Callable[[bytes], Path]:
    """A function that writes the bytes of a boot image to a file of this test and gives its path."""
    count = 0

    def write(data: bytes) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"hv-image-{count}"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def hv_machine(request: pytest.FixtureRequest, hv_image: Callable[[bytes], Path]) -> Iterator[MachineFactory]:
    """A function that makes a machine and, given an image (a path, or its bytes), boots it; `.run()` is the test's.

    `ram` in bytes (default 256 MiB), `cpu` a CpuModel, `console` called with COM1's bytes as they come.
    Raises ImageFileError for an image that does not boot.
    """
    from hvtests import Machine

    def make(image: Path | str | bytes | None = None, *, ram: int = 256 << 20, cpu: CpuModel | None = None,
             console: SerialSink | None = None) -> Machine:  # fmt: skip
        machine = Machine(ram, cpu, console)
        _remember(request.node, "the harness", lambda: bytes(machine.serial))
        if image is not None:
            machine.boot(hv_image(image) if isinstance(image, bytes) else Path(image))
        return machine

    yield make
    request.node.stash.get(_SAID, []).clear()  # a machine holds its RAM


@pytest.fixture
def hv_run(
    request: pytest.FixtureRequest, hv_emulator: str, hv_image: Callable[[bytes], Path]
) -> RunFactory:
    """A function that boots an image (a path, or its bytes) wherever `--hv-on` says and gives the RunResult.

    The test runs once for each emulator chosen. `settings` are those of the runner, the same for every emulator that
    has them (`memory_mib`). A missing emulator fails the test, or skips it with `--hv-missing skip`.
    """
    from dataclasses import replace

    from hvtests.runners import by_name
    from hvtests.runners.base import Verdict

    def run(image: Path | str | bytes, *, timeout: float = RUN_TIMEOUT, **settings: Any) -> RunResult:
        runner = replace(by_name(hv_emulator), **settings)  # type: ignore[type-var]
        result = runner.run(hv_image(image) if isinstance(image, bytes) else Path(image), timeout=timeout)
        if result.verdict is Verdict.EMULATOR_MISSING:
            if request.config.getoption("--hv-missing") == "skip":
                pytest.skip(result.detail)
            pytest.fail(result.detail, pytrace=False)
        _remember(request.node, f"{hv_emulator} ({result.detail})", lambda: result.serial)
        return result

    return run


def _remember(node: pytest.Item, where: str, serial: Callable[[], bytes]) -> None:
    node.stash.setdefault(_SAID, []).append((where, serial))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]  # noqa: ARG001 - pytest matches arguments by name
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        for where, serial in item.stash.get(_SAID, []):
            said = serial().decode("latin-1").replace("\r\n", "\n")
            report.sections.append((f"COM1 of {where}", said or "(nothing)"))
    return report
