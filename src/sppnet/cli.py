"""`sppnet COMMAND [overrides]`: run a command and report any failure in one line; a bug also prints a traceback.

Heavy modules are imported only after the command is known.

Exit codes: 0 for success, 1 for a failure, 2 for a user error (one line on standard error, and no new files).
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

import yaml

from sppnet import __version__, errors
from sppnet.errors import RunFailed, UserError
from sppnet.runs import provenance

COMMANDS = {
    "train": "train a network, resume an interrupted run, or show the result of a finished one",
    "test": "test a trained network, with the run's sizes and views or with different ones",
    "predict": "classify your own images, of any size and shape, with a trained network",
    "export": "write a trained network as ONNX, torch.export or safetensors, or as a folder for the Hugging Face Hub",
    "status": "show the state of a study's runs, and why failed runs failed",
    "report": "write the table and figure of a study from its run directories",
    "bench": "compare the speed of sppnet on this machine with that of the usual alternatives",
    "config": "print the JSON Schema of the configuration, for editors: sppnet config schema",
    "models": "print feature map sizes, parameters and multiply-adds of every backbone",
    "transfer": "fit a linear SVM to features of a trained or pretrained network, on a different data set",
}
HIDDEN_COMMANDS = {"rank"}  # started by the first process of a run on several devices, for each additional process
TRACEBACK_OVERRIDES = {"debug=traceback", "debug=fast", "debug.traceback=true"}
USAGE = """sppnet COMMAND [KEY=VALUE ...] [-m]

{commands}

sppnet COMMAND --help     the keys and groups of the command
sppnet COMMAND --cfg job  the configuration that the command would run with
sppnet COMMAND -m ...     a sweep: KEY=A,B runs one job per value
"""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(dispatch())


def dispatch() -> int:
    """Run the command that `sys.argv` names and return the exit code."""
    for name in ("stdout", "stderr"):
        # If the shell has closed the stream (`>&-`), replace it with the null device. Otherwise, the next file that is
        # opened would get descriptor 1 or 2, and any output would be written to that file.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", errors="backslashreplace"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # printing a name that the terminal cannot encode must not fail
        sys.stdout.reconfigure(errors="backslashreplace")
    if _complete():
        return 0
    words = sys.argv[1:]
    if not words or words[0] in {"-h", "--help", "help"}:
        print(USAGE.format(commands="\n".join(f"  {command:<8} {text}" for command, text in COMMANDS.items())), end="")
        return 0
    if words[0] == "--version":
        print(f"sppnet {__version__}")
        return 0
    command = words[0]
    provenance.remember_command(words)  # before `sys.argv` is rewritten for Hydra
    if command not in COMMANDS and command not in HIDDEN_COMMANDS:
        print(f"sppnet: unknown command {command!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        Path.cwd()
    except OSError as error:
        print(
            f"sppnet: the working directory no longer exists ({error.strerror}); cd to another directory",
            file=sys.stderr,
        )
        return 2
    return _run(command, words[1:])


def _run(command: str, words: list[str]) -> int:
    """Run `command` and turn any exception into a line on standard error and an exit code."""
    if "SPPNET_SUBMISSION" in os.environ:
        from sppnet.slurm import job  # first, because a signal may arrive during the slow imports

        job.install_signal_handlers()
    errors.show_traceback = bool(TRACEBACK_OVERRIDES & set(words))  # provisional: `debug.traceback` is not composed yet
    try:
        from sppnet.runs import ranks

        ranks.clear_inherited_ranks(command)
        words = _allow_packages(words)
        with _hydra_errors_as_user_errors():
            importlib.import_module(f"sppnet.commands.{command}").main(words)
    except UserError as error:
        if errors.show_traceback:
            traceback.print_exc()
        print(f"sppnet {command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has closed the pipe (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        print(f"sppnet {command}: interrupted", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        # One line is enough for a RunFailed or an OSError (such as a full disk). Anything else is a bug, which needs a
        # traceback.
        if errors.show_traceback or not isinstance(error, RunFailed | OSError):
            traceback.print_exc()
        name = "" if isinstance(error, RunFailed) else f"{type(error).__name__}: "
        print(f"sppnet {command}: {name}{error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _hydra_errors_as_user_errors() -> Iterator[None]:
    """Turn any error raised inside Hydra, OmegaConf or ANTLR, or inside PyYAML called by them, into a UserError.

    User input can also trigger AssertionErrors and AttributeErrors in these libraries.
    """
    try:
        yield
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
        after_ours = packages[len(packages) - [*reversed(packages), "sppnet"].index("sppnet") :]
        in_file = isinstance(error, yaml.YAMLError | UnicodeError | RecursionError) and "hydra" in after_ours
        if not in_file and packages[-1] not in {"hydra", "omegaconf", "antlr4"}:
            raise
        hint = "; its grammar does not work with python -O or PYTHONOPTIMIZE" if sys.flags.optimize else ""
        if isinstance(error, RecursionError):
            hint = "; files name each other in their defaults"
        paths = [frame.f_locals["full_path"] for frame in frames if "full_path" in frame.f_locals]
        source = paths[-1] if paths and isinstance(error, UnicodeError) else "the command line or a config file"
        raise UserError(f"Hydra cannot read {source}: {' '.join(str(error).split())}{hint}") from error


def _allow_packages(words: list[str]) -> list[str]:
    """Remove `allow=PACKAGE` from the command line and let `_target_` name classes of that package.

    `allow` is not a configuration key, because a configuration file must not be able to allow packages (see
    `sppnet.config.instantiate`).

    Raises:
        UserError: the value is not a package name or a list of package names.
    """
    typed = [word for word in words if re.match(r"\+*allow=", word)]
    packages: list[str] = []
    for word in typed:
        match = re.fullmatch(r"\[(.*)\]|([^\[\]]*)", word.partition("=")[2].strip())
        names = [name.strip(" '\"") for name in (match[1] or match[2] or "").split(",")] if match else [""]
        if not all(part.isidentifier() for name in names for part in name.rstrip(".").split(".")):
            raise UserError(
                f"{word} is not allowed: must be one or more package names, as in allow=mine or allow=mine,yours"
            )
        packages += names
    if packages:
        os.environ["SPPNET_ALLOW"] = ",".join(filter(None, [os.environ.get("SPPNET_ALLOW", ""), *packages]))
    if os.environ.get("SPPNET_ALLOW"):
        sys.path.insert(0, str(Path.cwd()))  # the console script leaves the working directory out of sys.path
    return [word for word in words if word not in typed]


def _complete() -> bool:
    """Answer a shell's request for completions (`-sc`); Hydra's shell script passes the command line in COMP_LINE."""
    if sys.argv[1:2] != ["-sc"]:
        return False
    command = "train"
    if sys.argv[2:3] and sys.argv[2].startswith("query="):
        words = os.environ.get("COMP_LINE", "").split(" ")
        if len(words) <= 2 or words[1] not in COMMANDS:
            print(" ".join(COMMANDS))
            return True
        command = words[1]
        if command == "config":
            print("schema")
            return True
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    importlib.import_module(f"sppnet.commands.{command}").main(sys.argv[1:])
    return True


if __name__ == "__main__":
    main()
