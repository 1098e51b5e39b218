"""The plugin as its user meets it: the example of its documentation, run by pytest in a directory of its own."""

import textwrap
from pathlib import Path

import pytest

import hvtests
import hvtests.plugin
from hvtests.boot import images, tiny_hypervisor

pytest_plugins = ["pytester"]


def example() -> str:
    """The code block of the plugin's docstring."""
    text = hvtests.plugin.__doc__ or ""
    block = text.partition("::\n")[2]
    lines = [line for line in block.splitlines() if line.startswith("    ") or not line]
    return textwrap.dedent("\n".join(lines))


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> pytest.RunResult:
    """Pytest in a process of its own, with this plugin and no other, wherever the package is installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(hvtests.__file__).parents[1]))
    return pytester.runpytest_subprocess("-p", "hvtests.plugin", "-p", "no:cacheprovider", *arguments, timeout=100)


@pytest.fixture
def own_hypervisor(pytester: pytest.Pytester) -> Path:
    path = pytester.mkdir("build") / "my-hypervisor.elf"
    path.write_bytes(tiny_hypervisor.build())
    return path


@pytest.mark.usefixtures("own_hypervisor")
def test_the_documented_example_passes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(example())
    run(pytester, monkeypatch).assert_outcomes(passed=4)


@pytest.mark.bochs
@pytest.mark.usefixtures("own_hypervisor")
def test_the_example_in_bochs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(example())
    result = run(pytester, monkeypatch, "--hv-on", "bochs", "--hv-on", "unicorn", "-k", "wherever", "-v")
    result.assert_outcomes(passed=2, deselected=3)
    result.stdout.fnmatch_lines_random(["*wherever_it_runs?bochs? PASSED*", "*wherever_it_runs?unicorn? PASSED*"])


def test_a_failed_test_shows_what_came_on_com1(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytester.path / "image"
    image.write_bytes(images.disk(b"I am lost\r\n", images.debug_exit(1)))
    pytester.makepyfile("""
        def test_machine(hv_machine):
            hv_machine("image").run()
            assert False

        def test_bytes(hv_run):
            assert hv_run(open("image", "rb").read(), memory_mib=64).code == 2

        def test_passes(hv_machine):
            assert hv_machine("image").run().code == 1
    """)
    result = run(pytester, monkeypatch)
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    assert text.count("COM1 of the harness") == 1
    assert text.count("COM1 of unicorn (debug exit") == 1
    assert text.splitlines().count("I am lost") == 2


@pytest.mark.parametrize(("arguments", "outcome"), [((), {"failed": 1}), (("--hv-missing", "skip"), {"skipped": 1})])
def test_a_missing_emulator_fails_unless_skipping_is_asked_for(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], outcome: dict[str, int]
) -> None:
    (pytester.path / "image").write_bytes(images.disk(b"x", images.debug_exit(1)))
    pytester.makepyfile('def test_it(hv_run): hv_run("image")')
    monkeypatch.setenv("PATH", str(pytester.path))
    result = run(pytester, monkeypatch, "--hv-on", "qemu", "-rs", *arguments)
    result.assert_outcomes(**outcome)
    result.stdout.fnmatch_lines(["*qemu-system-x86_64 is not installed*apt-get install*"])


def test_the_plugin_costs_nothing_until_it_is_used(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile("""
        import sys

        def test_nothing_is_loaded():
            assert not [name for name in ("unicorn", "keystone", "capstone") if name in sys.modules]
    """)
    run(pytester, monkeypatch).assert_outcomes(passed=1)


def test_package_gives_its_names_lazily() -> None:
    for name in hvtests.__all__:
        assert getattr(hvtests, name).__name__ in (name, "VmxMachine")
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        hvtests.Nonsense  # noqa: B018
