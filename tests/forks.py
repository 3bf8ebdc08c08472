"""Processes of their own without the seconds that torch and transformers take to import."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import stat_prune

ROOT = Path(stat_prune.__file__).parents[1]

#: Imports once what takes seconds. What is asked for is done by forks, which have done nothing yet;
#: the answer is their exit codes.
SERVER = """
import json, os, runpy, signal, sys, traceback
import datasets, torch, transformers
from transformers import AutoModel, AutoTokenizer, BertModel, LlamaForCausalLM
import IPython, matplotlib.pyplot, stat_prune.cli.prune_command, stat_prune.pruning

def become(arguments, environment, folder, files):
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below background jobs
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    how, *sys.argv = arguments if arguments[0] in ("-c", "-m") else ("", *arguments)
    if how == "-m":
        sys.path.insert(0, folder)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.path.insert(0, folder)
        exec(sys.argv[0], {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")

def fork(*task):
    if child := os.fork():
        return child
    code = 1
    try:
        become(*task)
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    arguments, environments, *places = json.loads(line)
    children = [fork(arguments, one, *places) for one in environments]
    print(children, file=answers, flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(codes, file=answers, flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    """For all tests of this process, with which it ends."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )


class Fork:
    """Python with some arguments, as ``subprocess.Popen([sys.executable, *arguments])`` is.

    One server has one at a time.

    Parameters
    ----------
    arguments : sequence of str
        ``-m`` and a module or ``-c`` and a program or a file, and what these are called with.
    processes : int
        That many with the variables that torchrun gives to each, if more than one.
    cwd : Path, optional
    environment : mapping of str to str
        Beside that of this process.

    Attributes
    ----------
    ids : list of int
        Of the processes.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        processes: int = 1,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.arguments = list(arguments)
        self._place = TemporaryDirectory(prefix="forks_")
        self._files = [Path(self._place.name, name) for name in ("stdout", "stderr")]
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
        each = [variables] if processes == 1 else [variables | one for one in _ranks(processes)]
        server = _server()
        assert server.stdin is not None
        request = [self.arguments, each, str(cwd), list(map(str, self._files))]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        self.ids: list[int] = self._answer()

    def is_running(self) -> bool:
        """Whether the first of them is; the server waits for it from the start."""
        try:
            os.kill(self.ids[0], 0)
        except ProcessLookupError:
            return False
        return True

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Wait for all; the exit code is the first that is not 0."""
        code = next((one for one in self._answer() if one), 0)
        out, error = (file.read_text() for file in self._files)
        self._place.cleanup()
        return subprocess.CompletedProcess(self.arguments, code, out, error)

    def _answer(self) -> list[int]:
        server = _server()
        assert server.stdout is not None
        return json.loads(server.stdout.readline())


def _ranks(processes: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(one), "LOCAL_RANK": str(one)} for one in range(processes)]
