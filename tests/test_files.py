import gc
import hashlib
import os
import socket
import threading
import warnings
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from helpers import files


def test_download_is_verified(tmp_path):
    served = tmp_path / "served.bin"
    served.write_bytes(b"content")
    good = hashlib.sha256(b"content").hexdigest()
    target = tmp_path / "target.bin"
    with pytest.raises(files.DataError, match="target.bin"):
        files.download(served.as_uri(), target, hint="skip it", sha256="0" * 64)
    assert not target.exists()
    files.download(served.as_uri(), target, hint="skip it", sha256=good)
    assert target.read_bytes() == b"content"


@contextmanager
def _host_that_sends(answer):
    """The port of a host that sends these bytes to every request and then falls silent."""
    listener, kept = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        with suppress(OSError):  # until the listener is closed
            while True:
                kept.append(listener.accept()[0])
                kept[-1].recv(4096)
                kept[-1].sendall(answer)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield listener.getsockname()[1]
    for each in (listener, *kept):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)  # wakes the server, which then ends
    server.join(timeout=5)
    for each in (listener, *kept):
        each.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"], ids=["silent", "half"]
)
def test_a_host_that_falls_silent_is_not_waited_for_for_ever(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    with _host_that_sends(answer) as port, pytest.raises(files.DataError, match="timed out.*skip it"):
        files.download(f"http://127.0.0.1:{port}/file", tmp_path / "target.bin", hint="skip it")
    assert not list(tmp_path.iterdir())
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"this is no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nhalf a chunk\r\nno length\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ],
    ids=["empty", "not HTTP", "broken chunk", "not found"],
)
def test_whatever_a_host_answers_becomes_one_sentence_with_a_way_out(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    with _host_that_sends(answer) as port, pytest.raises(files.DataError, match="target.bin.*skip it") as caught:
        files.download(f"http://127.0.0.1:{port}/file", tmp_path / "target.bin", hint="skip it")
    assert "()" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    with warnings.catch_warnings():  # urllib leaves its end of what is no HTTP to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        del caught
        gc.collect()


def test_an_error_without_words_still_says_what_it_was():
    with pytest.raises(files.DataError, match=r"the set could not be loaded \(EOFError: no reason was given\)"):
        with files.clear_errors("the set", "skip it"):
            raise EOFError


def test_a_keyboard_interrupt_stays_one():
    with pytest.raises(KeyboardInterrupt), files.clear_errors("the set", "skip it"):
        raise KeyboardInterrupt


def test_nothing_but_the_whole_file_is_ever_in_its_place(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file"
    files.write_atomically(target, b"first")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(files.DataError, match="No space left on device.*choose another folder .*or free some space"):
        files.write_atomically(target, b"second")
    assert target.read_bytes() == b"first"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_what_is_made_plain_keeps_its_kind():
    """Tuples and lists, dictionaries in them, and numpy's numbers as Python's."""
    state = {"a": (np.float64(0.5), [np.int64(2), {"b": (np.bool_(True),)}]), np.int64(3): None}
    plain = files.plain(state)
    assert plain == {"a": (0.5, [2, {"b": (True,)}]), 3: None}
    assert [type(of) for of in (plain["a"], plain["a"][0], plain["a"][1][0], [*plain][1])] == [tuple, float, int, int]


@pytest.mark.parametrize("wrong", ["", "0" * 64, hashlib.sha256(b"other").hexdigest()])
def test_bytes_of_another_hash_or_of_none_are_refused(wrong):
    with pytest.raises(files.DataError, match="name is missing or damaged .*: do this"):
        files.verified(b"bytes", wrong, "name", "do this")
    assert files.verified(b"bytes", hashlib.sha256(b"bytes").hexdigest(), "name", "") == b"bytes"


def test_what_is_written_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Out of Python's own buffer, too, when the system is asked to write."""
    moments, replace = [], os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: moments.append(os.fstat(handle).st_size))
    monkeypatch.setattr(files.os, "replace", lambda *where: moments.append("named") or replace(*where))
    files.write_atomically(tmp_path / "few", b"12345")
    assert moments == [5, "named"]


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_the_time_that_others_wait_for_a_host_stays_theirs(goes_wrong):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7.0)
    try:
        with suppress(files.DataError), files.clear_errors("it", "do this"):
            assert socket.getdefaulttimeout() == files.PATIENCE
            if goes_wrong:
                raise OSError
        assert socket.getdefaulttimeout() == 7.0
    finally:
        socket.setdefaulttimeout(before)
