"""One process at a time in a working folder."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from stat_prune.errors import SettingsError

try:
    import fcntl
except ImportError:  # Windows: whoever starts two runs in one folder is not told
    fcntl = None  # type: ignore[assignment]

_LOCK_FILE = "lock.json"


class Lock:
    """Held until it is closed, or its process ends, however it ends.

    The system's own lock on a file: nothing is left of that of a process that was killed.

    Parameters
    ----------
    folder : Path
        Of which it is the lock; a file in it says whose it is.

    Raises
    ------
    SettingsError
        If another run holds it, naming its process.
    FileNotFoundError
        If the folder is gone, or goes meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / _LOCK_FILE
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not self._acquired():
                raise SettingsError(
                    f"{str(folder)!r} is in use by {_holder(path)}, which is still running. Wait "
                    "until it has ended, or choose another working folder."
                )
            # A folder that was deleted just then, by the process that held the lock, has none.
            if not os.path.samestat(os.fstat(self._descriptor), os.stat(path)):
                raise FileNotFoundError(str(path))
            own = {"pid": os.getpid(), "host": socket.gethostname(), "command": sys.argv}
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(own).encode())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others in; done twice, it does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _acquired(self) -> bool:
        if fcntl is None or self._descriptor is None:
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        return True


def _holder(path: Path) -> str:
    """Whose lock it is, as far as that is known."""
    try:
        owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        command = " ".join(map(str, owner["command"]))
        where = "" if owner["host"] == socket.gethostname() else f" on {owner['host']}"
        return f"process {owner['pid']}{where} ({command})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
