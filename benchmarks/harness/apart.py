"""A call in a process of its own, so that the peak of its memory is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from stat_prune.errors import StatPruneError


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or raises, in a fresh process.

    Parameters
    ----------
    function : callable
        It, its arguments and what it returns can be pickled.

    Raises
    ------
    StatPruneError
        If the process ends without an answer: the system ends those that take too much memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()  # the other end is then closed as soon as the process has ended
    try:
        answer = receiver.recv()
        process.join()
    except EOFError:
        process.join()
        raise StatPruneError(
            f"A process that ran {function.__name__} ended by itself (exit code "
            f"{process.exitcode}); with -9 the memory was probably too small. What was finished "
            "is kept."
        ) from None
    finally:
        process.terminate()  # where this one was interrupted
        receiver.close()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = error
    sender.send(answer)
