"""Replace a folder as a whole: whoever looks, at any moment, finds the old one or the new one."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# From <fcntl.h> and <linux/fs.h>.
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def replace_directory(
    directory: Path, check: Callable[[], None] | None = None, *, exchange: bool = True
) -> Iterator[Path]:
    """Fill a new folder beside `directory`, and put it in that place once it is complete.

    The new folder, ``<name>.saving-<random>``, is flushed to the disk before one rename puts it in
    place; a folder that was there is exchanged in the same rename (``renameat2`` with
    ``RENAME_EXCHANGE``, Linux) and then removed. A process killed on the way leaves at
    `directory` the old folder or the new one, whole, and perhaps a ``.saving-`` folder that
    can be deleted. Where the system cannot exchange folders (other systems, some network file
    systems), the old folder first steps aside as ``<name>.old-<random>``: a process killed just
    then leaves nothing at `directory`, and both folders whole beside it.

    Parameters
    ----------
    directory : Path
        Its parents are made if they are missing.
    check : callable, optional
        Called when the new folder is complete, to look at what is at `directory` by then. What it
        raises leaves all as it was.
    exchange : bool
        Whether a folder may be there. Without, one that is there, with files in it, is an error.

    Yields
    ------
    Path
        The new, empty folder, to be filled. An exception in the body removes it and leaves
        `directory` as it was.

    Raises
    ------
    OSError
        If the folder cannot be made, flushed or renamed.
    """
    directory = Path(os.path.realpath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f"{directory.name}.saving-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
        if check is not None:
            check()
        if exchange and directory.exists():
            _exchange(temporary, directory)
        else:
            os.rename(temporary, directory)
        _fsync(directory.parent)
    finally:
        # By now this is either a half-made folder or, after an exchange, the old one.
        shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(directory: Path) -> None:
    """Delete a folder that whoever looks finds whole or not at all.

    It first takes a ``.saving-`` name, under which a process killed on the way leaves the rest.
    """
    aside = directory.with_name(f"{directory.name}.saving-{secrets.token_hex(4)}")
    os.rename(directory, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _flush(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))


def _fsync(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders, and flushes no file opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change places, in one step where the system can."""
    try:
        _renameat2(first, second, RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise
        aside = second.with_name(f"{second.name}.old-{secrets.token_hex(4)}")
        os.rename(second, aside)
        os.rename(first, second)
        os.rename(aside, first)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError, OSError):  # no such function, or no C library to ask
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source), None, str(target))
