import hashlib
import socket
import threading
from contextlib import contextmanager, suppress

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

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    for connection in (listener, *kept):
        connection.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"], ids=["silent", "half"]
)
def test_a_host_that_falls_silent_is_not_waited_for_for_ever(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    with _host_that_sends(answer) as port, pytest.raises(files.DataError, match="timed out.*skip it"):
        files.download(f"http://127.0.0.1:{port}/file", tmp_path / "target.bin", hint="skip it")
    assert not list(tmp_path.iterdir())
    assert socket.getdefaulttimeout() is None
