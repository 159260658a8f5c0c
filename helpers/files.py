"""All that touches a disk or a host: paths, atomic writes, verified reads, downloads."""

import hashlib
import io
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

PATIENCE = 60.0  # seconds a host may stay silent during a download


class DataError(RuntimeError):
    """A file cannot be had, used or written; the message says what to do."""


def write_atomically(path: Path, data: bytes) -> None:
    """All of `data` or nothing: write beside the target, flush to disk, rename. Raises DataError."""
    part = path.with_name(f"{path.name}.part")  # left behind by a killed process, the next one overwrites it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        advice = "choose another folder (RUNS, DATA_ROOT) or free some space. The previous file is untouched."
        raise DataError(f"could not write {path} ({error.strerror}): {advice}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def verified(data: bytes, sha256: str, name: str, advice: str) -> bytes:
    """The bytes of a file, if they have this SHA-256 in hexadecimal digits; else DataError with advice."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{name} is missing or damaged (its SHA-256 is wrong): {advice}.")
    return data


def load_tensors(data: bytes, name: str) -> dict:
    """What `torch.save` wrote, on the CPU; never runs code that a file brings along. Raises DataError."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{name} is not a file of plain tensors and was not opened: {error}") from error


def plain(state):
    """The same state with numpy's numbers as Python's, which JSON takes and `load_tensors` opens."""
    if isinstance(state, dict):
        return {plain(key): plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(plain, state))
    return state.item() if isinstance(state, np.generic) else state


@contextmanager
def clear_errors(name: str, hint: str) -> Iterator[None]:
    """Turn whatever goes wrong while something is fetched or opened, silence too, into one DataError with advice."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        said = str(error).strip() or "no reason was given"
        advice = f"Check the connection and the free space and run this again; or {hint}."
        raise DataError(f"{name} could not be loaded ({type(error).__name__}: {said}). {advice}") from error
    finally:
        socket.setdefaulttimeout(before)


def download(url: str, path: Path, *, hint: str, sha256: str | None = None) -> None:
    """Fetch a file with a progress bar; verified, and in its place only when whole. Raises DataError."""
    with clear_errors(path.name, hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        if not path.stat().st_size:
            path.unlink()
            raise DataError(f"the host of {path.name} sent nothing: run this again later; or {hint}.")
