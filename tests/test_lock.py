import errno
import os

import pytest

from helpers import lock


@pytest.mark.skipif(lock.fcntl is None, reason="every file system has locks here")
@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_refuses_nobody(tmp_path, monkeypatch, reason):
    def flock(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    locks = [lock.Lock(tmp_path / "runs" / ".run.lock") for _ in range(2)]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".run.lock").write_text("12345\nanother-host\n")  # as a killed job leaves it behind
    assert [held.acquire() for held in locks] == [True, True]
    for held in locks:
        held.release()


def test_a_lock_is_held_by_one_and_free_again_afterwards(tmp_path):
    first, second = (lock.Lock(tmp_path / ".run.lock") for _ in range(2))
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
