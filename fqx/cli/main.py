"""`fqx`: the command line; each command is a file of its own, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fqx.cli.arguments import parser
from fqx.cli.console import fail
from fqx.ir.trail import Halt

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give the exit code: 0 done, 1 a check failed, 2 usage, 3 a fault."""
    made = parser(_version())
    args = made.parse_args(argv)
    if args.command is None:
        made.print_help()
        return 0
    try:
        return _run(args)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has gone, as `fqx show … | head` does
        sys.stderr.close()
        return 0

    except Exception as error:
        # what `unwrap` raises carries the halt as its cause; anything else is a defect, and shown
        if isinstance(error.__cause__, Halt):
            return fail(error.__cause__.fault)
        raise


def _run(args: argparse.Namespace) -> int:
    command = importlib.import_module(f"fqx.cli.{args.command}")
    if args.command == "demo":
        folder = Path(args.out) if args.out else None
        done: int = command.run_demo(args.which, folder)
        return done
    code: int = command.run(args)
    return code


def _version() -> str:
    try:
        return version("fqx")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
