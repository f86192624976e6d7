"""`sppnet COMMAND [overrides]`: runs a command and words every failure.

Imports nothing heavy before a command is chosen.

Exit codes: 0 done, 1 a failure, 2 the user's mistake (one line on standard error, nothing left behind).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from sppnet import __version__, errors
from sppnet.errors import RunFailed, UserError
from sppnet.runs import provenance

COMMANDS = {
    "train": "train a network, resume a run that was interrupted, or show the result of one that is done",
    "test": "score a trained network, at other sizes or with other views if you like",
    "predict": "show what a trained network sees in pictures of yours, of any size and shape",
    "status": "where the runs of a study stand, and why those that failed did",
    "report": "the table and the figure of a study, from its run directories",
    "bench": "how fast this is on this machine, beside what one would use otherwise",
    "models": "map sizes, parameters and multiply-adds of every backbone",
    "transfer": "features of a trained or given network and a linear SVM on another data set",
}
TRACEBACK = {"debug=traceback", "debug=fast", "debug.traceback=true"}  # said before there is a configuration
HIDDEN = {"rank": "one further process of a run on several devices, started by the first"}
USAGE = """sppnet COMMAND [KEY=VALUE ...] [-m]

{commands}

sppnet COMMAND --help     the keys and groups of a command
sppnet COMMAND --cfg job  the configuration as it would run
sppnet COMMAND -m ...     a sweep: KEY=A,B runs one job for each value
"""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(dispatch())


def dispatch() -> int:
    """Run the command named on the command line and return the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this (`>&-`); the next file opened takes its number
            setattr(sys, name, Path(os.devnull).open("w", errors="backslashreplace"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks must stop nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    if _completes():
        return 0
    words = sys.argv[1:]
    if not words or words[0] in {"-h", "--help", "help"}:
        print(USAGE.format(commands="\n".join(f"  {command:<8} {text}" for command, text in COMMANDS.items())), end="")
        return 0
    if words[0] == "--version":
        print(f"sppnet {__version__}")
        return 0
    command = words[0]
    provenance.note(words)  # as typed: what follows takes words out of sys.argv, and puts others in
    if command not in COMMANDS and command not in HIDDEN:
        print(f"sppnet: unknown command {command!r}; commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        Path.cwd()
    except OSError as error:
        print(f"sppnet: the working directory is not there any more ({error.strerror}); cd to one", file=sys.stderr)
        return 2
    return _run(command, words[1:])


def _run(command: str, words: list[str]) -> int:
    if "SPPNET_SUBMISSION" in os.environ:
        from sppnet.slurm import job  # first of all: whatever is imported after it takes seconds

        job.listen()
    errors.show_traceback = bool(TRACEBACK & set(words))  # until there is a configuration that says it
    try:
        from sppnet.runs import ranks

        ranks.settle(command)
        words = _admit_packages(words)
        with _hydra_in_one_line():
            importlib.import_module(f"sppnet.commands.{command}").main(words)
    except UserError as error:
        if errors.show_traceback:
            traceback.print_exc()
        print(f"sppnet {command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the output has had enough of it (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        print(f"sppnet {command}: interrupted", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        # What we foresaw, or a full disk or a lost mount says, is clear by itself; anything else is a defect.
        if errors.show_traceback or not isinstance(error, RunFailed | OSError):
            traceback.print_exc()
        name = "" if isinstance(error, RunFailed) else f"{type(error).__name__}: "
        print(f"sppnet {command}: {name}{error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _hydra_in_one_line() -> Iterator[None]:
    """Turn an error that arises in Hydra or below it into a UserError: it asserts, or calls on, what a user typed."""
    try:
        yield
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in {"hydra", "omegaconf", "antlr4"}:
            raise
        bare = "; with PYTHONOPTIMIZE or python -O its grammar does not work, unset it" if sys.flags.optimize else ""
        raise UserError(f"Hydra cannot read this: {error}{bare}") from error


def _admit_packages(words: list[str]) -> list[str]:
    """Take `allow=PACKAGE` off the command line: it may not stand in a config file (`sppnet.config.instantiate`).

    Raises:
        UserError: it is no name of a package, or no list of such names.
    """
    typed = [word for word in words if re.match(r"\+*allow=", word)]
    named: list[str] = []
    for word in typed:
        listed = re.fullmatch(r"\[(.*)\]|([^\[\]]*)", word.partition("=")[2].strip())
        names = [name.strip(" '\"") for name in (listed[1] or listed[2] or "").split(",")] if listed else [""]
        if not all(part.isidentifier() for name in names for part in name.rstrip(".").split(".")):
            raise UserError(
                f"{word} is not allowed; it takes names of packages, such as allow=mine or allow=mine,yours"
            )
        named += names
    if named:
        os.environ["SPPNET_ALLOW"] = ",".join(filter(None, [os.environ.get("SPPNET_ALLOW", ""), *named]))
    if os.environ.get("SPPNET_ALLOW"):
        sys.path.insert(0, str(Path.cwd()))  # the console script does not put the working directory on the path
    return [word for word in words if word not in typed]


def _completes() -> bool:
    """Answer a shell's question for completions (`-sc`); Hydra's script leaves the command in COMP_LINE."""
    if sys.argv[1:2] != ["-sc"]:
        return False
    command = "train"
    if sys.argv[2:3] and sys.argv[2].startswith("query="):
        words = os.environ.get("COMP_LINE", "").split(" ")
        if len(words) <= 2 or words[1] not in COMMANDS:
            print(" ".join(COMMANDS))
            return True
        command = words[1]
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    importlib.import_module(f"sppnet.commands.{command}").main(sys.argv[1:])
    return True


if __name__ == "__main__":
    main()
