"""poa-ds: finds the command, imports the one module that carries it out, and reports mistakes.

Arguments belong to the modules; a command's help therefore costs one import, `poa-ds --help` none.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from poa_ds.commands import COMMANDS, Command
from poa_ds.run.exit_status import INTERRUPTED
from poa_ds.system import limits
from poa_ds.system.allocator import prepare_allocator
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError

READER_GONE = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except UserError as error:
        say(f"poa-ds: error: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        say("poa-ds: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `poa-ds sizes RUN | head`: the interpreter would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except Exception as error:
        cause = limits.explained(error)
        if not cause:
            raise
        say(f"poa-ds: error: {cause}")
        return UserError.exit_status


def _dispatch(arguments: list[str]) -> int:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return _run(name, arguments[words:])
    if arguments[:1] == ["--version"]:
        print(f"poa-ds {importlib.metadata.version('poa_ds')}")
        return 0
    first = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    listed = {name: command for name, command in COMMANDS.items() if name.startswith(f"{first} ")}
    given = arguments[1:] if listed else arguments
    if not given or given[0] in ("-h", "--help"):
        print(_overview(listed or COMMANDS), file=sys.stdout if given else sys.stderr)
        return 0 if given else UsageError.exit_status
    near = difflib.get_close_matches(" ".join(arguments[:2]), COMMANDS, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(COMMANDS)}"
    raise UsageError(f"unknown command `{' '.join(arguments[:2])}`; {hint}")


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    prepare_allocator(os.environ)
    module = importlib.import_module(command.module)
    parser = argparse.ArgumentParser(
        prog=f"poa-ds {name}",
        description=command.summary,
        epilog=f"example:\n  {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    getattr(module, command.arguments)(parser)
    words: list[str] = []
    if command.hands_on and "--" in arguments:
        cut = arguments.index("--")
        arguments, words = arguments[:cut], arguments[cut + 1 :]
    # overrides may stand before and behind options
    args = parser.parse_intermixed_args(arguments)
    if command.hands_on:
        if not words:
            parser.error("nothing stands behind `--`")
        args.words = words
    status = getattr(module, command.run)(args)
    if command.scores and status in (0, UserError.exit_status):
        sync = importlib.import_module("poa_ds.track.mlflow_sync")
        sync.after_evaluation(args)
    return status


def _overview(commands: dict[str, Command]) -> str:
    lines = [f"  {name:<20}{command.summary}" for name, command in commands.items()]
    example = next(iter(commands.values())).example
    return "\n".join(
        [
            "usage: poa-ds COMMAND [arguments]",
            "",
            *lines,
            "",
            "`poa-ds COMMAND --help` shows its arguments. Training is started by a launcher:",
            "  deepspeed --module poa_ds.train --config ds_configs/photos.yaml output_dir=RUN",
            "",
            f"example:\n  {example}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
