"""The command line: plan, prune, trim, finish, finetune, inspect, evaluate, export, demo.

A command imports torch and transformers, which take seconds, only when it runs.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from stat_prune.cli.demo_command import demo
from stat_prune.cli.evaluate_command import evaluate
from stat_prune.cli.export_command import export
from stat_prune.cli.finetune_command import finetune
from stat_prune.cli.finish_command import finish
from stat_prune.cli.inspect_command import inspect
from stat_prune.cli.interrupts import Interrupted, interruptible
from stat_prune.cli.plan_command import plan
from stat_prune.cli.prune_command import prune
from stat_prune.cli.trim_command import trim
from stat_prune.errors import StatPruneError

#: Of an error's line; a path is shorter.
LONGEST_WORD = 1000

app = typer.Typer(
    name="stat-prune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
EXIT_CODES = (
    "Exit codes: 0 done, 1 an error (one line on stderr says which), 2 wrong usage, 130 stopped "
    "with Ctrl-C (one line says whether --resume can go on)."
)
for command in (plan, prune, trim, finish, finetune, inspect, evaluate, export, demo):
    app.command(epilog=EXIT_CODES)(interruptible(command))


def main() -> None:
    """Entry point: exit code 0, 1 (an error) or 130 (Ctrl-C) with one line on stderr, 2 (usage)."""
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"stat-prune: warning: {message}\n"
    # for transformers, once a command imports it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except StatPruneError as error:
        _fail(str(error))
    except (Interrupted, KeyboardInterrupt) as interrupt:
        typer.echo(f"stat-prune: interrupted. {interrupt}".rstrip(), err=True)
        sys.exit(130)
    except OSError as error:  # of the system: a full disk, a name that is too long
        _fail(f"{error.strerror or error}: {error.filename}." if error.filename else f"{error}.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        _fail(
            f"There is not enough memory ({error or 'of this machine'}). A smaller --batch-size or "
            "--max-seq-length takes less, and `stat-prune prune --layer-at-a-time` the least."
        )


def _fail(message: str) -> NoReturn:
    # a text that was taken for a name is not shown whole
    words = (f"{word[:80]}..." if len(word) > LONGEST_WORD else word for word in message.split())
    typer.echo(f"stat-prune: error: {' '.join(words)}", err=True)
    sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stat-prune {version('stat-prune')}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def common(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Make trained transformers smaller and faster without retraining.

    \b
    See what it is worth on this machine, without a hub (two minutes):
      stat-prune demo

    \b
    Prune a model of your own to 60 % of its computation, calibrated on your texts:
      stat-prune prune path/to/model --dataset texts.txt --macs 0.6 --output out
      stat-prune inspect out
      stat-prune evaluate out --task sst2

    \b
    Leave out the tokens that your texts never need:
      stat-prune trim path/to/model --dataset texts.txt --output out

    \b
    Fit what is left to the dense model's outputs:
      stat-prune finish out --dataset texts.txt --teacher path/to/model --output finished

    \b
    Train what is left, on labels or towards the dense model:
      stat-prune finetune out --task sst2 --macs 1 --teacher path/to/model --output run

    \b
    Take it to llama.cpp:
      stat-prune export out --to gguf -o out.gguf
    """
