import hashlib
import io
import pickle
import socket
import threading
import zipfile
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch

from helpers import data, diffusion


@pytest.fixture(scope="module")
def demo():
    return {split: data.addnist("", split, "demo") for split in ("train", "valid", "test")}


def test_demo_addnist_has_the_official_shapes_and_types(demo):
    assert [len(demo[split][0]) for split in ("train", "valid", "test")] == [9000, 3000, 2000]
    for images, labels in demo.values():
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 28, 28)
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(20))
    both = torch.cat([demo["train"][1], demo["valid"][1]]).bincount()
    assert (both == 600).all()
    assert (demo["test"][1].bincount() == 100).all()


def test_superclasses_are_read_from_the_verified_files(tmp_path, monkeypatch):
    """Labels in any order, a class's superclass at the class's place; the demo's are its shapes."""

    class Verified:
        base_folder = "cifar-100-python"

        def __init__(self, root, train):
            assert root == str(tmp_path)

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Verified)
    (tmp_path / "cifar-100-python").mkdir()
    fine = list(reversed(range(100))) * 2
    files = {
        "test": {"fine_labels": fine, "coarse_labels": [label // 5 for label in fine]},
        "meta": {"coarse_label_names": [f"group_{i}" for i in range(20)]},
    }
    for name, content in files.items():
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(content))
    assert data.cifar100_superclasses(tmp_path) == [f"group_{label // 5}" for label in range(100)]
    assert data.cifar100_superclasses("", "demo")[10:12] == ["ring", "ring"]


def test_label_is_the_sum_less_one():
    """Over a pool whose digit d is an image of the constant d, the pixels themselves say the digits."""
    pool = torch.arange(10, dtype=torch.uint8)[:, None, None].expand(10, 28, 28), torch.arange(10)
    for split in ("train", "valid", "test"):
        images, labels = data._addnist_from_digits(pool, pool, split, per_class=(300, 50))
        digits = images[:, :, 0, 0].long()
        assert torch.equal(digits.sum(dim=1) - 1, labels)


def test_every_triple_of_a_class_is_equally_likely():
    pool = torch.arange(10, dtype=torch.uint8)[:, None, None].expand(10, 28, 28), torch.arange(10)
    images, labels = data._addnist_from_digits(pool, pool, "train", per_class=(4000, 50))
    of_two = images[labels == 1][:, :, 0, 0]  # sums of 2: three with a 2, three with two 1s
    _, counts = of_two.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 0.8 * counts.max()


def test_digits_are_what_addnist_adds_up(demo):
    """Every channel of every test image is one of the test digits, and the digits' labels add up to the label + 1."""
    images, labels = data.digits("", "test", "demo")
    names = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    x, y = demo["test"]
    sums = [sum(names[channel.numpy().tobytes()] for channel in image) for image in x]
    assert torch.equal(torch.tensor(sums) - 1, y)


def test_data_sets_are_the_same_every_time(demo):
    again = data.addnist("", "test", "demo")
    assert data.fingerprint(*again) == data.fingerprint(*demo["test"])
    assert torch.equal(data.cifar100("", "test", "demo")[0], data.cifar100("", "test", "demo")[0])


def test_demo_shapes():
    images, labels = data.cifar100("", "train", "demo")
    assert images.shape == (5000, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert (labels.bincount() == 50).all()
    assert len(set(data.DEMO_CLASSES)) == 100
    reds = images[labels == data.DEMO_CLASSES.index("red square")].float().mean(dim=(0, 2, 3))
    assert reds[0] > reds[1] + 50
    assert reds[0] > reds[2] + 50


def test_batch_is_a_function_of_seed_and_step():
    images, labels = torch.arange(10), torch.arange(10)
    epoch = torch.cat([data.batch(images, labels, 3, 7, step)[0] for step in range(3)])
    assert len(epoch.unique()) == 9  # each at most once an epoch
    assert torch.equal(data.batch(images, labels, 3, 7, 1)[0], epoch[3:6])
    following = torch.cat([data.batch(images, labels, 3, 7, step)[0] for step in range(3, 6)])
    assert not torch.equal(epoch, following)
    assert not torch.equal(data.batch(images, labels, 3, 8, 1)[0], epoch[3:6])
    with pytest.raises(ValueError, match="1…10"):
        data.batch(images, labels, 11, 0, 0)


def test_seed_step_repeats_the_noise():
    data.seed_step(3, 14)
    first = torch.randn(4)
    data.seed_step(3, 15)
    other = torch.randn(4)
    data.seed_step(3, 14)
    assert torch.equal(first, torch.randn(4))
    assert not torch.equal(first, other)


def test_jitter_moves_each_channel_on_its_own_and_no_more_than_said():
    blob = torch.exp(-((torch.arange(28) - 13.5) ** 2) / 8)
    images = (2.4 * blob[:, None] * blob - 0.4).expand(50, 3, 28, 28)
    torch.testing.assert_close(data.jitter(images), images)
    torch.manual_seed(0)
    moved = data.jitter(images, shift=3.0) + 0.4
    assert float(moved.amin()) == pytest.approx(0, abs=1e-5)
    mass = moved.sum(dim=(2, 3))
    torch.testing.assert_close(mass, torch.full_like(mass, 2.4 * blob.sum() ** 2), rtol=5e-3, atol=0)
    centre = (moved.sum(dim=2) * torch.arange(28)).sum(dim=2) / mass - 13.5  # (50, 3): how far right
    assert 2.5 < float(centre.abs().amax()) <= 3.001
    assert float((centre[:, 0] - centre[:, 1]).abs().mean()) > 1
    turned = data.jitter(images, degrees=20, scale=0.2)
    assert not torch.allclose(turned, images)
    torch.testing.assert_close(turned.flip(2, 3), turned)  # about the centre


def test_jitter_keeps_strokes_sharp():
    images = data.normalise(data.addnist("", "test", "demo")[0][:50])
    torch.manual_seed(0)
    moved = data.jitter(images, shift=2.0)
    edges = [float((x[..., 1:] - x[..., :-1]).square().mean()) for x in (moved, images)]
    assert edges[0] / edges[1] > 0.8  # interpolated bilinearly, they lose more than that


def test_bending_is_smooth_and_as_large_as_said():
    ramp = torch.arange(28.0).expand(200, 3, 28, 28)  # its value says where a pixel came from
    torch.manual_seed(0)
    moved = (data.jitter(ramp, bend=0.5) - ramp)[:, :, 6:22, 6:22]
    assert 0.3 < float(moved.std()) <= 0.5
    assert float((moved[..., 1:] - moved[..., :-1]).std()) < 0.12
    assert abs(float(torch.corrcoef(moved[:, :2, 8, 8].T)[0, 1])) < 0.25  # each channel on its own


def test_shuffled_channels_are_the_same_three_and_every_order_occurs():
    images = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(6000, 3, 2, 2)
    torch.manual_seed(0)
    orders, counts = data.shuffle_channels(images)[:, :, 0, 0].unique(dim=0, return_counts=True)
    assert orders.tolist() == [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    assert counts.min() > 850


def test_many_rebuilt_valid_images_also_occur_in_train(demo):
    """The official recipe draws with replacement; about 42% of its validation images are training images too."""
    seen = {image.numpy().tobytes() for image in demo["train"][0]}
    share = sum(image.numpy().tobytes() in seen for image in demo["valid"][0]) / len(demo["valid"][0])
    assert 0.38 < share < 0.48


def test_normalise_is_the_official_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert data.normalise(images).flatten().tolist() == pytest.approx([-0.1307 / 0.3081, (1 - 0.1307) / 0.3081])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: data.addnist("", "dev", "demo"), "split"),
        (lambda: data.addnist("", "train", "mnist"), "source"),
        (lambda: data.digits("", "valid", "demo"), "split"),
        (lambda: data.digits("", "train", "mnist"), "source"),
        (lambda: data.cifar100("", "valid", "demo"), "split"),
        (lambda: data.cifar100("", "train", "mnist"), "source"),
    ],
)
def test_misspelt_choices_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- official files ---------------------------------------------------------------------------------------------


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.fixture
def official(monkeypatch):
    """Six small stand-in files, with their hashes in place of the official ones."""
    rng = np.random.default_rng(0)
    files = {}
    for split in ("train", "valid", "test"):
        pixels = rng.integers(0, 256, (4, 3, 28, 28))
        files[f"{split}_x"] = _npy(((pixels / 255 - data.MEAN) / data.STD).astype(np.float32))
        files[f"{split}_y"] = _npy(rng.integers(0, 20, 4))
    monkeypatch.setattr(data, "ADDNIST_SHA256", {n: hashlib.sha256(b).hexdigest() for n, b in files.items()})
    return files


def _zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)


def test_official_zip_is_unpacked_by_name_and_only_inside_the_folder(tmp_path, official):
    members = {f"../../{name}.npy": content for name, content in official.items()} | {"../../evil.sh": b"boo"}
    root = tmp_path / "my data, données"
    _zip(root / "AddNIST" / "addnist.zip", members)
    images, labels = data.addnist(root, "valid")
    assert images.dtype == torch.uint8
    expected = np.load(io.BytesIO(official["valid_x"]))
    np.testing.assert_allclose(data.normalise(images).numpy(), expected, atol=1e-5)
    assert labels.tolist() == np.load(io.BytesIO(official["valid_y"])).tolist()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(f"{n}.npy" for n in official)
    assert {p.parent.name for p in tmp_path.rglob("*.npy")} == {"AddNIST"}


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_zip_is_said_and_removed(tmp_path, official, damage):
    archive = tmp_path / "AddNIST" / "addnist.zip"
    _zip(archive, {f"{n}.npy": c for n, c in official.items() if damage != "missing" or n != "test_y"})
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(data.DataError, match="damaged"):
        data.addnist(tmp_path, "train")
    assert not archive.exists()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("damage", ["bit", "truncated", "pickle"])
def test_a_file_that_is_not_the_official_one_is_refused_unopened(tmp_path, official, damage):
    folder = tmp_path / "AddNIST"
    folder.mkdir()
    for name, content in official.items():
        (folder / f"{name}.npy").write_bytes(content)
    content = bytearray(official["test_x"])
    content[-1] ^= 1
    bad = {"bit": bytes(content), "truncated": bytes(content[:99]), "pickle": _npy(np.array([print], dtype=object))}
    (folder / "test_x.npy").write_bytes(bad[damage])
    with pytest.raises(data.DataError, match="rebuilt"):
        data.addnist(tmp_path, "test")
    assert len(data.addnist(tmp_path, "train")[0]) == 4  # the others still serve


def test_host_down_is_one_clear_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "ADDNIST_URL", "http://127.0.0.1:9/none")
    with pytest.raises(data.DataError, match="addnist.zip could not be loaded .* DATA = 'rebuilt'"):
        data.addnist(tmp_path, "train")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_folder_one_may_not_write_to_is_said(tmp_path, monkeypatch, official):
    (tmp_path / "data").write_text("a file is in the way")
    with pytest.raises(data.DataError, match="addnist.zip could not be loaded"):
        data.addnist(tmp_path / "data", "train")
    _zip(tmp_path / "AddNIST" / "addnist.zip", {f"{n}.npy": c for n, c in official.items()})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.os, "replace", full)
    with pytest.raises(data.DataError, match="No space left.*free some space"):
        data.addnist(tmp_path, "train")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and p.parent.name == "AddNIST"] == ["addnist.zip"]


def test_download_is_verified(tmp_path):
    served = tmp_path / "served.bin"
    served.write_bytes(b"content")
    good = hashlib.sha256(b"content").hexdigest()
    target = tmp_path / "target.bin"
    with pytest.raises(data.DataError, match="target.bin"):
        data.download(served.as_uri(), target, hint="skip it", sha256="0" * 64)
    assert not target.exists()
    data.download(served.as_uri(), target, hint="skip it", sha256=good)
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
    monkeypatch.setattr(data, "PATIENCE", 0.3)
    with _host_that_sends(answer) as port, pytest.raises(data.DataError, match="timed out.*skip it"):
        data.download(f"http://127.0.0.1:{port}/file", tmp_path / "target.bin", hint="skip it")
    assert not list(tmp_path.iterdir())
    assert socket.getdefaulttimeout() is None


def test_floats_are_refused_where_bytes_are_meant():
    with pytest.raises(TypeError, match="uint8"):
        data.normalise(torch.rand(1, 3, 28, 28))
    with pytest.raises(TypeError, match="uint8"):
        diffusion.to_float(torch.rand(1, 3, 32, 32))
