"""The command ``hvforge``: arguments in, text and an exit status out. What is done is in other modules.

A mistake of the user's is one line on standard error, ``hvforge: error: WHERE: MESSAGE``, and the status of its class
in generator.errors; ``--debug`` puts the traceback before it. docs/exit-codes.md lists all statuses.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from generator import __version__
from generator.cli_process import abandon_output, output_error, require_output, signals_that_end, tell
from generator.errors import HvforgeError, UsageError, one_line

INTERNAL_ERROR = 80   # a fault of hvforge itself
HUNG_UP = 129         # what shells report for SIGHUP
INTERRUPTED = 130     # for SIGINT
BROKEN_PIPE = 141     # for SIGPIPE
TERMINATED = 143      # for SIGTERM
MEMORY_MAX = 3072     # MiB: above are PCI windows

# Usage errors are this class, whose public name depends on the version of typer.
_CommandLineError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


@dataclass
class Settings:
    """Options that stand before the command."""

    debug: bool = False


class Format(StrEnum):
    """What a machine boots."""

    DISK = "disk"
    ISO = "iso"
    MULTIBOOT = "multiboot"


class BuildFormat(StrEnum):
    """What ``hvforge build`` writes."""

    DISK = "disk"
    ISO = "iso"
    MULTIBOOT = "multiboot"
    ALL = "all"


class Emulator(StrEnum):
    """Where an image runs; hvtests.runners knows them by these names."""

    UNICORN = "unicorn"
    BOCHS = "bochs"
    QEMU = "qemu"



def _directory_name(text: str | Path) -> Path:
    if not str(text):
        raise typer.BadParameter('"" names no directory; the current one is "."')
    return Path(text)


# What cannot be read has a status and words of its own, which typer would forestall.
_Description = Annotated[Path, typer.Argument(
    metavar="IMAGE.toml", readable=False, help="The description of the image.")]
_Image = Annotated[Path, typer.Argument(
    metavar="IMAGE.toml|FILE", readable=False,
    help="The description of an image, which is built first, or a file that boots.")]
_Format = Annotated[Format | None, typer.Option("--format", help="What to build of an IMAGE.toml.  [default: disk]")]
_Templates = Annotated[list[Path] | None, typer.Option(
    "--templates", metavar="DIR", help="Look here for templates before those of hvforge; may be given again.")]
_Timeout = Annotated[float, typer.Option(
    "--timeout", metavar="SECONDS", min=0.1, help="Stop after so much real time.")]
_Memory = Annotated[int | None, typer.Option(
    "--memory", metavar="MIB", min=16, max=MEMORY_MAX,
    help="The machine's memory in MiB.  [default: what the image's map asks for, at least 256]")]

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Builds Type-1 VMX hypervisor images from one image.toml, verifies them in an emulator, and boots them."""
    context.obj.debug = debug
    if version:
        print(f"hvforge {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def build(
    image: _Description,
    output: Annotated[Path, typer.Option(
        "-o", "--output", metavar="DIR", help="Where the files go.", parser=_directory_name)] = Path("build"),
    format_: Annotated[BuildFormat, typer.Option("--format", help="Which of the bootable files.")] = BuildFormat.ALL,
    templates: _Templates = None,
) -> None:
    """Build an image: disk, ISO, multiboot kernel, map and listing."""
    from generator import build as pipeline
    from generator.cli_report import print_build

    formats = tuple(pipeline.FORMATS) if format_ is BuildFormat.ALL else (format_.value,)
    built = pipeline.build(image, formats, _directories(templates))
    print_build(built, pipeline.write(built, output))


@app.command()
def verify(
    image: _Image,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the report.")] = False,
    format_: _Format = None,
    timeout: _Timeout = 60.0,
    memory: _Memory = None,
    templates: _Templates = None,
) -> None:
    """Run an image in the harness and check it: its end, every VM entry, every count of exits."""
    from generator.cli_report import json_verification, print_verification
    from generator.cli_run import emulator_missing
    from generator.source import bootable

    missing = emulator_missing("unicorn")
    if missing is not None:
        tell(missing[1])
        raise typer.Exit(missing[0])
    from hvtests.verification import verify as run_and_check

    with bootable(image, format_, _directories(templates)) as source:
        found = run_and_check(source.path, source.map, timeout, memory or source.memory_mib)
        if json:
            print(json_verification(source, found, str(image)))
        else:
            print_verification(source, found, str(image))
    raise typer.Exit(found.status)


@app.command()
def run(
    image: _Image,
    on: Annotated[Emulator, typer.Option("--on", help="Where to run it.")] = Emulator.UNICORN,
    format_: _Format = None,
    timeout: _Timeout = 60.0,
    memory: _Memory = None,
    serial: Annotated[Path | None, typer.Option(
        "--serial", metavar="FILE", help="Write what comes on COM1 to this file as well, unchanged.")] = None,
    templates: _Templates = None,
) -> None:
    """Boot an image and show what it says on COM1; the status tells how it ended."""
    from generator.cli_run import emulator_missing, run_streaming
    from generator.source import bootable

    # Asked before anything is built; what booting this very file needs beyond that shows when it is run.
    ended = emulator_missing(on.value)
    if ended is None:
        with bootable(image, format_, _directories(templates)) as source:
            ended = run_streaming(source.path, on.value, timeout, serial, memory or source.memory_mib)
    status, line = ended
    tell(line)
    raise typer.Exit(status)


@app.command()
def inspect(image: _Image, format_: _Format = None, templates: _Templates = None) -> None:
    """Show what an image holds, read back from its bytes: layout, VMCS, bitmaps, page tables, EPT."""
    from generator.inspection import inspect as take_apart
    from generator.inspection.text import as_text
    from generator.source import bootable

    with bootable(image, format_, _directories(templates)) as source:
        where = str(image) if source.image is None else f"{image}, built as {source.path.name}"
        print(as_text(take_apart(source.data, where, source.map)), end="")


@app.command()
def doctor() -> None:
    """Show what this machine offers, and what each missing piece would enable."""
    from generator.cli_report import print_findings
    from generator.doctor import survey

    print_findings(survey())


@app.command()
def explain(
    topic: Annotated[str, typer.Argument(help="vmcs, exit, error, msr, control, cpuid, exception or check.")],
    what: Annotated[list[str], typer.Argument(help="A name, number, encoding, address or ID.")],
) -> None:
    """Tell what something is, its bits, and its section of the manual: hvforge explain vmcs 0x681e."""
    from generator.cli_report import print_explanation
    from generator.explain import explain as look_up

    if topic == "check":
        from hvtests.vmx.checks import BY_ID

        print_explanation(look_up(topic, " ".join(what), BY_ID))
    else:
        print_explanation(look_up(topic, " ".join(what)))


@app.command()
def checks(
    words: Annotated[list[str] | None, typer.Argument(help="Only rules that have these: ID, sentence, fields.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the rules that every VM entry is judged by, in the manual's order."""
    from generator.cli_report import print_rules
    from hvtests.vmx.diagnose import rules

    wanted = [word.lower() for word in words or ()]
    found = [rule for rule in rules() if all(
        word in " ".join((rule.id, rule.sentence, *rule.reads)).lower() for word in wanted)]
    if not found:
        raise UsageError(f"no rule has {' and '.join(wanted)} in its ID, sentence or fields", "checks")
    print_rules(found, as_json=json_)


@app.command()
def images() -> None:
    """List the images that come with hvforge, to build or to copy."""
    from generator.cli_report import print_images
    from generator.resources import images as directory

    print_images(sorted(directory().glob("*.toml")))


def _directories(given: Sequence[Path] | None) -> tuple[Path, ...]:
    for directory in given or ():
        if not directory.is_dir():
            raise UsageError("is not a directory", f"--templates {directory}")
    return tuple(given or ())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (sys.argv's by default); the process exit status."""
    settings = Settings()
    with signals_that_end() as ends:
        try:
            require_output()
            status = _invoke(list(sys.argv[1:] if arguments is None else arguments), settings)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            abandon_output()   # whoever read it went away
            return BROKEN_PIPE
        except KeyboardInterrupt:
            tell(f"hvforge: {ends.word}")
            return ends.status
        except HvforgeError as error:
            return _complain(error, settings.debug)
        except Exception as error:
            expected = output_error(error) if isinstance(error, OSError) else None
            if expected is not None:
                return _complain(expected, settings.debug)
            # A fault of ours: the user gets one line, and the traceback when asked for.
            what = one_line(f"internal error: {type(error).__name__}: {error}")
            return _end(error, f"{what} (hvforge --debug shows where)", INTERNAL_ERROR, settings.debug)


def _invoke(arguments: list[str], settings: Settings) -> int:
    command = typer.main.get_command(app)
    try:
        # Not command.main(), which would turn broken pipes and interrupts into endings of its own.
        with command.make_context("hvforge", arguments, obj=settings) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    except _CommandLineError as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "hvforge")
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        message = message.replace("Value error, ", "").strip().rstrip(".")
        where = path.partition(" ")[2]
        raise UsageError(f"{message} (see {path} --help)", where or None) from error
    return 0


def _complain(error: HvforgeError, debug: bool) -> int:
    return _end(error, f"error: {one_line(str(error))}", error.status, debug)


def _end(error: Exception, line: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    tell(f"hvforge: {line}")
    return status


if __name__ == "__main__":
    sys.exit(main())
