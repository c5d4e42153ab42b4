"""`fqx`: the command line; each command is a file of its own, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fqx.cli.arguments import parser

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
