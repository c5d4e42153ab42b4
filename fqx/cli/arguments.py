"""The arguments of every command, and their help; nothing heavy is imported for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable

EPILOG = """\
exit codes: 0 done, 1 a check did not hold (--min-int8, --min-sqnr, diff, verify),
2 wrong arguments, 3 a fault, 130 interrupted.
"""


def parser(version: str) -> argparse.ArgumentParser:
    """The parser of the whole command line; the chosen command is in `command`."""
    made = argparse.ArgumentParser(
        "fqx",
        description="Static int8 quantization of PyTorch models, every step a value.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"fqx {version}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    for add in (
        _demo,
        _advise,
        _quantize,
        _show,
        _diff,
        _compare,
        _bench,
        _verify,
        _explain,
        _probe,
    ):
        add(_adder(commands))
    return made


Add = Callable[[str, str, str], argparse.ArgumentParser]


def _adder(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Add:
    def add(name: str, summary: str, more: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {more}",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    return add


def _demo(add: Add) -> None:
    made = add(
        "demo",
        "quantize a model on real data and show every number",
        "`digits` trains a small CNN on scikit-learn's digits and quantizes it through both\n"
        "captures and all targets; `minilm` quantizes the real MiniLM sentence encoder.",
    )
    made.add_argument("which", nargs="?", choices=("digits", "minilm"), default="digits")
    made.add_argument(
        "--out", metavar="FOLDER", help="where to save the trail (a temporary folder)"
    )


def _quantize(add: Add) -> None:
    made = add(
        "quantize",
        "quantize a model to an artefact",
        "MODEL is MODULE:NAME or FILE.py:NAME of a torch module or of a\n"
        "function that returns one. The model is only read, never changed.\n\n"
        "  fqx quantize net.py:build --calibration net.py:batches --out net.fqx",
    )
    made.add_argument("model", metavar="MODEL", help="the float model or its factory")
    made.add_argument(
        "--calibration",
        metavar="BATCHES",
        required=True,
        help="MODULE:NAME of an iterable of batches, or of a function that returns one",
    )
    made.add_argument(
        "--inputs", metavar="FUNCTION", help="MODULE:NAME picking the inputs out of a batch"
    )
    made.add_argument(
        "--example",
        metavar="INPUTS",
        help="MODULE:NAME of the example inputs (the first calibration batch)",
    )
    made.add_argument(
        "--evaluate",
        metavar="BATCHES",
        help="batches to measure SQNR on (the first calibration batches)",
    )
    made.add_argument(
        "--target", metavar="TARGET", help="onednn, native, native/ENGINE or reference"
    )
    made.add_argument("--how", choices=("export", "symbolic"), default="export", help="front end")
    made.add_argument("--recipe", metavar="RECIPE", help="MODULE:NAME of a recipe (int8_static())")
    made.add_argument(
        "--float",
        metavar="PATH",
        action="append",
        default=[],
        dest="keep_float",
        help="leave everything below this module path in float; may be given again",
    )
    made.add_argument(
        "--leaf",
        metavar="PATH",
        action="append",
        default=[],
        help="keep this submodule whole and float; may be given again",
    )
    made.add_argument(
        "--objective", choices=("speed", "balanced", "accuracy", "coverage"), default="speed"
    )
    made.add_argument("--out", metavar="FILE", help="save the model artefact here")
    made.add_argument("--trail", metavar="FILE", help="save the trail artefact here")
    made.add_argument(
        "--detached", action="store_true", help="leave the float weights out of the trail"
    )
    made.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    made.add_argument(
        "--min-int8",
        type=_share,
        metavar="SHARE",
        help="exit with 1 if less than this part (0..1) of the executed MACs runs in int8",
    )
    made.add_argument(
        "--min-sqnr", type=float, metavar="DB", help="exit with 1 if the SQNR is lower than this"
    )


def _show(add: Add) -> None:
    made = add(
        "show",
        "print what an artefact holds",
        "Without options: where it comes from, its steps, and\n"
        "a summary. Nothing in the file is run.",
    )
    made.add_argument("artefact", metavar="FILE")
    made.add_argument(
        "--graph",
        metavar="STEP",
        nargs="?",
        const="-1",
        help="print the program after this step (a number, 0 is the captured one, or a pass)",
    )
    made.add_argument("--diff", metavar="STEP", help="print what this step changed")
    made.add_argument("--verdicts", action="store_true", help="print the verdict table")
    made.add_argument("--json", action="store_true", help="print a summary as JSON")


def _diff(add: Add) -> None:
    made = add(
        "diff",
        "compare the programs of two artefacts",
        "Prints the edits that lead from A to B; exits with 1 if\nthere are any.",
    )
    made.add_argument("a", metavar="A")
    made.add_argument("b", metavar="B")
    made.add_argument("--base", action="store_true", help="compare the captured programs instead")
    made.add_argument("--stat", action="store_true", help="count the edits only")


def _compare(add: Add) -> None:
    made = add(
        "compare",
        "run two programs side by side, value by value",
        "Of a trail, the program before convert with the last one; of two\n"
        "artefacts, their last programs. Prints SQNR, l2 and cosine, the worst first.\n\n"
        "  fqx compare net.trail --batches net.py:batches --isolated",
    )
    made.add_argument("a", metavar="A", help="a trail artefact, or any with B")
    made.add_argument("b", metavar="B", nargs="?")
    made.add_argument(
        "--batches", metavar="BATCHES", required=True, help="MODULE:NAME as in quantize"
    )
    made.add_argument("--inputs", metavar="FUNCTION", help="MODULE:NAME as in quantize")
    made.add_argument("--step", metavar="STEP", help="take A after this step, as show --graph does")
    made.add_argument(
        "--isolated", action="store_true", help="show what each unit adds, not what it inherits"
    )
    made.add_argument("--worst", type=int, default=20, metavar="N", help="how many values (20)")
    made.add_argument("--json", action="store_true", help="print all of it as JSON")
    made.add_argument(
        "--min-sqnr", type=float, metavar="DB", help="exit with 1 if any value's SQNR is lower"
    )


def _bench(add: Add) -> None:
    made = add(
        "bench",
        "measure latency and accuracy beside other ways to run a model",
        "Every contestant runs in a process of its own; they take\n"
        "turns, one at a time. Without MODEL the bundled models are measured, with it your own.\n\n"
        "  fqx bench --models resnet18,minilm --threads 1,2 --plot bench.svg\n"
        "  fqx bench net.py:build --calibration net.py:batches --profile",
    )
    made.add_argument("model", metavar="MODEL", nargs="?", help="the float model or its factory")
    made.add_argument("--calibration", metavar="BATCHES", help="MODULE:NAME as in quantize")
    made.add_argument("--inputs", metavar="FUNCTION", help="MODULE:NAME as in quantize")
    made.add_argument(
        "--evaluate",
        metavar="BATCHES",
        help="batches to compare outputs on (the first calibration batches)",
    )
    made.add_argument(
        "--example", metavar="INPUTS", help="the inputs that are timed (the first batch)"
    )
    made.add_argument(
        "--models", type=_names, metavar="NAME,…", help="bundled models (all of them)"
    )
    made.add_argument(
        "--contestants", type=_names, metavar="NAME,…", help="who takes part (all that can)"
    )
    made.add_argument("--threads", type=_counts, default=(1,), metavar="N,…", help="threads (1)")
    made.add_argument(
        "--batch", type=_counts, metavar="N,…", help="batch sizes (1; of MODEL as given)"
    )
    made.add_argument("--rounds", type=_count, default=10, metavar="N", help="turns of each (10)")
    made.add_argument(
        "--budget", type=float, default=0.2, metavar="SECONDS", help="of one turn (0.2)"
    )
    made.add_argument(
        "--profile",
        action="store_true",
        help="attribute the time of fqx (its first contestant) to kernels and nodes",
    )
    made.add_argument("--json", metavar="FILE", help="write everything as JSON")
    made.add_argument(
        "--markdown", metavar="FILE", help="write the tables, between the marks of a page"
    )
    made.add_argument("--plot", metavar="FILE", help="draw latency against SQNR (.png, .svg)")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names:
        raise argparse.ArgumentTypeError("names nothing")
    return names


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(item) for item in text.split(","))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _advise(add: Add) -> None:
    made = add(
        "advise",
        "say how a float model wants to be int8",
        "Runs MODEL on the batches and prints what its statistics advise,\n"
        "and a recipe to paste.\n\n"
        "  fqx advise net.py:build --batches net.py:batches",
    )
    made.add_argument("model", metavar="MODEL", help="the float model or its factory")
    made.add_argument(
        "--batches", metavar="BATCHES", required=True, help="MODULE:NAME as in quantize"
    )
    made.add_argument("--inputs", metavar="FUNCTION", help="MODULE:NAME as in quantize")
    made.add_argument("--how", choices=("export", "symbolic"), default="export", help="front end")
    made.add_argument("--json", action="store_true", help="print all of it as JSON")


def _verify(add: Add) -> None:
    made = add(
        "verify",
        "replay a trail and prove its digest",
        "Every portable pass is run again from the float weights and the\n"
        "recorded statistics; works on any machine.",
    )
    made.add_argument("artefact", metavar="FILE")
    made.add_argument(
        "--state-dict", metavar="FILE", help="float weights: .safetensors, or .pt read weights-only"
    )
    made.add_argument("--model", metavar="MODEL", help="MODULE:NAME to capture again and compare")
    made.add_argument(
        "--calibration", metavar="BATCHES", help="MODULE:NAME to measure again and compare"
    )
    made.add_argument("--inputs", metavar="FUNCTION", help="MODULE:NAME as in quantize")
    made.add_argument("--digest", metavar="SHA256", help="the digest the file must have")


def _explain(add: Add) -> None:
    made = add(
        "explain",
        "say why a node is, or is not, int8",
        "NODE is a node id, a module's path or a weight's path;\n"
        "without it every verdict is listed.",
    )
    made.add_argument("artefact", metavar="FILE")
    made.add_argument("node", metavar="NODE", nargs="?")


def _probe(add: Add) -> None:
    made = add(
        "probe",
        "try each target's kernels on this machine",
        "Prints the integer ranges the kernels compute exactly here; x86\n"
        "without VNNI saturates silently and is narrowed.",
    )
    made.add_argument("target", metavar="TARGET", nargs="?", help="one target (all of them)")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
