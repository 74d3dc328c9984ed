"""One run for each folder: a lock beside it, which the system takes away from a process that dies."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are not told apart
    fcntl = None


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Within, this process alone writes into the folder. The lock is beside it: the folder itself may be set aside."""
    if fcntl is None:
        yield
        return
    folder = folder.absolute()
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    file = take(path, folder)
    try:
        file.seek(0)
        file.truncate()
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(owner))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        for parent in made if not folder.exists() else ():
            if not any(parent.iterdir()):
                parent.rmdir()  # a run that did not begin leaves nothing


def take(path: Path, folder: Path):
    """The lock's file, opened and locked. A process that ends while we wait at its door removes the file that we have
    opened: then there is another one to ask for."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            words = f"output_dir={str(folder)!r} is in use by another run{said_by(path)}: wait, or take another"
            file.close()
            raise ValueError(words) from error
        except OSError:
            return file  # a disk that has no locks
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
        file.close()


def said_by(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {owner['process']} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
