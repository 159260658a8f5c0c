"""The lock of a run, so that no two processes write one checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, where every file system has locks
    fcntl = None


class Lock:
    """Held by one process at a time, and free again when that ends, however it ends.

    A file system without locks (some network drives, some clusters) refuses nobody: two runs into one folder are the
    user's to avoid there, and a file that only says "locked" would outlive a killed job.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lock = FileLock(path, timeout=0)

    def acquire(self) -> bool:
        """Whether it is ours. Makes the folder; raises OSError where that cannot be written to."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not _has_locks(self.path.parent):
            return True
        try:
            self.lock.acquire()
        except Timeout:
            return False
        return True

    def release(self) -> None:
        self.lock.release()


def _has_locks(folder: Path) -> bool:
    """Whether files in this folder can be locked; tried on a file that nobody else knows."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            if fcntl:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # ENOLCK, EOPNOTSUPP, ENOSYS
            return False
    return True
