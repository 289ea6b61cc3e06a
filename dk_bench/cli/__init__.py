"""The command ``dk-bench``: a module a subcommand, imported when it is asked for. Begin with train.py."""

import argparse
import contextlib
import importlib
import io
import os
import sys
from contextlib import AbstractContextManager

from dk_bench.errors import UserError
from dk_bench.files import cannot_write
from dk_bench.processes.interrupts import Interrupted, interrupts, wind_down
from dk_bench.processes.launchers import ordinary_environment
from dk_bench.processes.ranks import this_rank
from dk_bench.processes.requeue import requeue

COMMANDS = {
    "train": "train a classifier or a detector from a config; resumes by itself",
    "eval": "evaluate a checkpoint",
    "predict": "say what a trained model finds in images: classes or boxes",
    "export": "write a trained model for timm, mmdet, ONNX or torch.export; push it to a hub",
    "models": "list the models with parameters and multiply-adds",
    "plan": "tell what a sweep will take: hours, memory, disk, price",
    "sweep": "run a W&B sweep file on this machine, without an account",
    "watch": "show how the runs of a sweep stand, on whatever machines they are",
    "tables": "turn run records into the paper's tables",
    "claims": "say what records tell of each of the paper's claims",
    "power": "plan how many seeds a difference takes",
    "replay": "show what a run was made with; train it again and compare",
    "bench": "time the operators",
    "erf": "measure and draw effective receptive fields",
    "report": "put the records of a folder into one HTML page",
    "dynamics": "what the learned offsets know of objects: t-SNE and linear probes",
    "kernels": "where the taps of deformable kernels go on an image",
    "picture": "draw a sheet of the procedural data set",
}
OF_RANKS = ("train", "eval")  # what a launcher may start in several processes that are to be one run
AFTER_INTERRUPT = {
    "train": "; the same command goes on from the run's last checkpoint",
    "sweep": "; the same command goes on from here",
}


class _Version(argparse.Action):
    """Prints what a report of a fault should hold, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import torch

        import dk_bench
        from dk_bench.functional.loading import describe_operators

        print(f"dk_bench {dk_bench.__version__}, torch {torch.__version__}, operators: {describe_operators()}")
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status: 0, 1 for a failed run and a full disk, 2 for bad usage or input,
    75 for a run that another process is at, 128 and the signal's number where one asked to stop.

    Launchers' variables are taken away meanwhile: what a command starts is no rank of anybody's job.
    """
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show shall not stop a command
        sys.stdout.reconfigure(errors="backslashreplace")
    chosen = next((a for a in argv if not a.startswith("-")), None)
    try:
        with ordinary_environment(), interrupts():
            try:
                with _in_company(chosen):
                    return _run(argv, chosen)
            except Interrupted as error:
                wind_down()  # a second signal shall not end us before all is said and done
                return _stopped(error, chosen)
    except UserError as error:
        if not error.told:
            print(f"dk-bench {chosen}: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        if not cannot_write(error):
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"dk-bench {chosen}: {place}{error.strerror}{AFTER_INTERRUPT.get(chosen, '')}", file=sys.stderr)
        return 1


def _stopped(error: Interrupted, chosen: str | None) -> int:
    """Says that a signal has stopped a command, and puts a job back into SLURM's queue where that is due. Returns the
    exit status."""
    if this_rank().number and chosen in OF_RANKS:
        return 0 if error.in_order else error.status  # a launcher that saw a failure would end the first process
    goes_on = AFTER_INTERRUPT.get(chosen)
    _say(f"dk-bench {chosen}: {error}{goes_on or ''}")
    if goes_on and (said := requeue(error)):
        _say(f"dk-bench {chosen}: {said}")
    return error.status


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(sentence, file=sys.stderr, flush=True)


def _in_company(chosen: str | None) -> AbstractContextManager:
    """Returns what holds the ranks of a launcher together, in which only the first speaks."""
    if chosen not in OF_RANKS or this_rank().place is None:
        return contextlib.nullcontext()
    from dk_bench.processes.world import own_world  # seconds, that other commands need not

    return own_world().met()


def _run(argv: list[str], chosen: str | None) -> int:
    parser = argparse.ArgumentParser(
        prog="dk-bench", description="Deformable Kernels: benchmark and ablations.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="versions, and the operators that were built")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name == chosen:
            module = importlib.import_module(f"dk_bench.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        hint = "; key=value has no dashes before it" if hasattr(args, "overrides") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    try:
        return args.run(args) or 0
    except BrokenPipeError:  # the reader, `head` say, has enough; what the exit would flush has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
