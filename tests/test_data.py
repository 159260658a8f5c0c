import colorsys
import hashlib
import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import batches, data, files, results
from helpers import demo as demo_sets


@pytest.fixture(scope="module")
def demo():
    return {split: data.addnist("", split, "demo") for split in ("train", "valid", "test")}


def test_demo_addnist_has_the_official_shapes_and_types(demo):
    assert [len(demo[split][0]) for split in ("train", "valid", "test")] == [6000, 2000, 1200]
    for images, labels in demo.values():
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 28, 28)
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(20))
    both = torch.cat([demo["train"][1], demo["valid"][1]]).bincount()
    assert (both == 400).all()
    assert (demo["test"][1].bincount() == 60).all()


def test_cifar100s_test_set_is_read_and_verified_once_for_images_and_classes(tmp_path, monkeypatch):
    read = []

    class Verified:
        classes, targets = ["aquarium_fish", "oak_tree"], [1, 0]
        data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)

        def __init__(self, root, train, download):
            read.append((root, train, download))

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Verified)
    for _ in range(2):
        assert data.cifar100_classes(tmp_path) == ["aquarium fish", "oak tree"]
        images, labels = data.cifar100(tmp_path, "test")
        assert images.tolist() == Verified.data.transpose(0, 3, 1, 2).tolist()
        assert labels.tolist() == [1, 0]
        images.zero_()  # the caller's to change
        labels.zero_()
    assert read == [(str(tmp_path), False, True)]
    data.cifar100(tmp_path, "train")
    assert read[1:] == [(str(tmp_path), True, True)]


def test_what_is_handed_out_of_the_demo_is_the_callers_to_change():
    images, labels = data.digits("", "test", "demo")
    kept = images.clone()
    images.zero_()
    labels.zero_()
    data.cifar100_classes("", "demo")[0] = "changed"
    assert torch.equal(data.digits("", "test", "demo")[0], kept)
    assert data.digits("", "test", "demo")[1].any()
    assert data.cifar100_classes("", "demo")[0] == "red disc"


def test_label_is_the_sum_less_one():
    """Over a pool whose digit d is an image of the constant d, the pixels themselves say the digits."""
    pool = torch.arange(10, dtype=torch.uint8)[:, None, None].expand(10, 28, 28), torch.arange(10)
    for split in ("train", "valid", "test"):
        images, labels = data._addnist_from_digits(pool, split, per_class=(300, 50))
        digits = images[:, :, 0, 0].long()
        assert torch.equal(digits.sum(dim=1) - 1, labels)


def test_every_triple_of_a_class_is_equally_likely():
    pool = torch.arange(10, dtype=torch.uint8)[:, None, None].expand(10, 28, 28), torch.arange(10)
    images, labels = data._addnist_from_digits(pool, "train", per_class=(4000, 50))
    of_two = images[labels == 1][:, :, 0, 0]  # sums of 2: three with a 2, three with two 1s
    _, counts = of_two.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 0.8 * counts.max()


def test_digits_are_what_addnist_adds_up(demo):
    """Every channel of every test image is one of the test digits, and the digits' labels add up to the label + 1."""
    images, labels = data.digits("", "test", "demo")
    train = {digit.tobytes() for digit in data.digits("", "train", "demo")[0].numpy()}
    assert (len(images), len(train)) == (500, 2_000)
    assert not [digit for digit in images.numpy() if digit.tobytes() in train]  # nobody is tested on what he learnt
    names = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    x, y = demo["test"]
    sums = [sum(names[channel.numpy().tobytes()] for channel in image) for image in x]
    assert torch.equal(torch.tensor(sums) - 1, y)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifars_images_are_the_callers_to_change(tmp_path, monkeypatch, split):
    """Also where torchvision hands out a view of what it read once, channels first."""
    read = np.arange(2 * 3 * 32 * 32, dtype=np.uint8).reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    monkeypatch.setattr("torchvision.datasets.CIFAR100", lambda *_, **__: SimpleNamespace(data=read, targets=[0, 1]))
    images, labels = data.cifar100(tmp_path, split)
    kept = images.clone()
    images.zero_()
    labels.zero_()
    again = data.cifar100(tmp_path, split)
    assert torch.equal(again[0], kept)
    assert again[1].tolist() == [0, 1]


def test_the_demos_digits_stand_upright():
    """A 6 on its head would be a 9; a 1 says which way is up."""
    images, labels = data.digits("", "train", "demo")
    ones = images[labels == 1] > 64
    assert (ones.any(dim=2).sum(dim=1) > ones.any(dim=1).sum(dim=1)).all()  # higher than wide


def test_data_sets_are_the_same_every_time(demo):
    again = data.addnist("", "test", "demo")
    assert data.fingerprint(*again) == data.fingerprint(*demo["test"])
    assert torch.equal(data.cifar100("", "test", "demo")[0], data.cifar100("", "test", "demo")[0])


def test_demo_shapes():
    images, labels = data.cifar100("", "train", "demo")
    assert images.shape == (5000, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert (labels.bincount() == 50).all()
    assert len(set(demo_sets.CLASSES)) == 100
    reds = images[labels == demo_sets.CLASSES.index("red square")].float().mean(dim=(0, 2, 3))
    assert reds[0] > reds[1] + 50
    assert reds[0] > reds[2] + 50


def test_many_rebuilt_valid_images_also_occur_in_train(demo):
    """The official recipe draws with replacement; about 42% of its validation images are training images too."""
    seen = {image.numpy().tobytes() for image in demo["train"][0]}
    share = sum(image.numpy().tobytes() in seen for image in demo["valid"][0]) / len(demo["valid"][0])
    assert 0.38 < share < 0.48


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
        files[f"{split}_x"] = _npy(((pixels / 255 - batches.MEAN) / batches.STD).astype(np.float32))
        files[f"{split}_y"] = _npy(rng.integers(0, 20, 4))
    monkeypatch.setattr(data, "ADDNIST_SHA256", {n: hashlib.sha256(b).hexdigest() for n, b in files.items()})
    return files


def _zip(path, members, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)


def test_official_zip_is_unpacked_by_name_and_only_inside_the_folder(tmp_path, official):
    members = {f"../../{name}.npy": content for name, content in official.items()} | {"../../evil.sh": b"boo"}
    root = tmp_path / "my data, données"
    _zip(root / "AddNIST" / "addnist.zip", members)
    images, labels = data.addnist(root, "valid")
    assert images.dtype == torch.uint8
    expected = np.load(io.BytesIO(official["valid_x"]))
    np.testing.assert_allclose(batches.normalise(images).numpy(), expected, atol=1e-5)
    assert labels.tolist() == np.load(io.BytesIO(official["valid_y"])).tolist()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(f"{n}.npy" for n in official)
    assert {p.parent.name for p in tmp_path.rglob("*.npy")} == {"AddNIST"}


def test_unseen_images_hold_no_digit_of_the_others(tmp_path, official, monkeypatch):
    """Of a pool with all the digits of train and valid and 200 others: only these, evenly; sums by their labels."""
    for name, content in official.items():
        (tmp_path / "AddNIST").mkdir(exist_ok=True)
        (tmp_path / "AddNIST" / f"{name}.npy").write_bytes(content)
    known = torch.cat([data.addnist(tmp_path, split)[0].flatten(0, 1) for split in ("train", "valid")])  # 24
    fresh = torch.arange(200, dtype=torch.uint8)[:, None, None].expand(200, 28, 28)  # an image of its number
    pool = torch.cat([fresh, known.repeat(10, 1, 1)]), torch.arange(440) % 10
    monkeypatch.setattr(data, "digits", lambda root, split, source: pool if (root, split) == (tmp_path, "train") else 0)
    images, labels = data.addnist(tmp_path, "unseen")
    assert (images == images[:, :, :1, :1]).all()
    counts = images[:, :, 0, 0].flatten().bincount()
    assert len(counts) == 200
    assert counts.max() <= 5
    assert (counts > 0).all()
    assert torch.equal((images[:, :, 0, 0] % 10).long().sum(dim=1) - 1, labels)
    assert (int(labels.min()), int(labels.max())) == (1, 19)  # sums of 2 and of 20; the only way to 1 did not come
    monkeypatch.setattr(data, "digits", lambda *_: (fresh, torch.arange(200) % 10))
    with pytest.raises(files.DataError, match="not those of AddNIST's images"):
        data.addnist(tmp_path, "unseen")


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

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(data.DataError, match="No space left.*free some space"):
        data.addnist(tmp_path, "train")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and p.parent.name == "AddNIST"] == ["addnist.zip"]


@pytest.mark.parametrize("damage", ["page", "empty", "deflated bytes overwritten", "another file"])
def test_what_comes_in_place_of_the_zip_is_removed_and_the_way_out_named(tmp_path, official, damage):
    archive = tmp_path / "AddNIST" / "addnist.zip"
    members = {f"{n}.npy": c for n, c in official.items()}
    if damage == "another file":
        members["test_y.npy"] = members["train_y.npy"]
    _zip(archive, members, zipfile.ZIP_DEFLATED)
    content = bytearray(archive.read_bytes())
    if damage == "deflated bytes overwritten":
        content[2000:2064] = bytes(64)
    whole = {"page": b"<!doctype html><title>Please log in</title>", "empty": b""}
    archive.write_bytes(whole.get(damage, bytes(content)))
    with pytest.raises(data.DataError, match="deleted: run this again.*'rebuilt'.*'demo'"):
        data.addnist(tmp_path, "train")
    assert not archive.exists()
    assert not list(tmp_path.rglob("*.part"))


def test_a_rebuilt_set_has_the_official_sizes(monkeypatch):
    monkeypatch.setattr(data, "digits", lambda root, split, source: demo_sets.digits(int(split == "test")))
    for split, count in {"train": 45_000, "valid": 15_000, "test": 10_000}.items():
        images, labels = data.addnist("", split, "rebuilt")
        assert images.shape == (count, 3, 28, 28)
        assert labels.dtype == torch.int64
        if split == "test":
            assert (labels.bincount() == 500).all()


@pytest.mark.parametrize(
    ("library", "load", "advice"),
    [("CIFAR100", data.cifar100, "put cifar-100-python/ into DATA_ROOT"),
     ("MNIST", data.digits, "put its four files into DATA_ROOT/MNIST/raw")],
)  # fmt: skip
def test_what_goes_wrong_in_torchvision_becomes_advice(tmp_path, monkeypatch, library, load, advice):
    def fail(*_, **__):
        raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr(f"torchvision.datasets.{library}", fail)
    with pytest.raises(data.DataError, match=f"Dataset not found.*or {advice}"):
        load(tmp_path, "train")


def test_mnists_digits_are_handed_on_as_they_are(tmp_path, monkeypatch):
    mnist = SimpleNamespace(data=torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8), targets=torch.arange(5))
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda *_, **__: mnist)
    images, labels = data.digits(tmp_path, "train")
    assert images.dtype == torch.uint8
    assert torch.equal(images, mnist.data)
    assert torch.equal(labels, mnist.targets)


def test_the_demos_shapes_lie_within_their_pictures():
    images, _ = data.cifar100("", "train", "demo")
    edges = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2)
    assert edges.max() < 128  # the ground is dark, the shapes are not


# --- what travels along -----------------------------------------------------------------------------------------


def test_mnists_test_digits_travel_along_and_the_rebuilt_test_set_needs_nothing_else(tmp_path):
    images, labels = data.digits(tmp_path / "nowhere", "test")
    assert images.shape == (10_000, 28, 28)
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # MNIST's
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    x, y = data.addnist(tmp_path / "nowhere", "test", "rebuilt")
    assert data.fingerprint(x, y) == results.load_card("classifier_best")["data_sha256"]["test"]
    assert torch.equal(data.digit_names(x, (images, labels)).sum(dim=1) - 1, y)
    assert not list(tmp_path.iterdir())


def test_the_photographs_are_cifar100s_first_test_images():
    images, labels = data.photographs()
    assert (images.shape, images.dtype, labels.dtype) == ((8, 3, 32, 32), torch.uint8, torch.int64)
    assert data.digits("", "test")[1].dtype == torch.int64
    classes = results.load_card("diffusion")["classes"]
    named = ["mountain", "forest", "seal", "mushroom", "sea", "tulip", "camel", "butterfly"]
    assert [classes[label] for label in labels] == named


@pytest.mark.parametrize("damage", ["bit", "missing"])
def test_what_travels_along_is_verified(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(data, "TRAVEL", tmp_path)
    if damage == "bit":
        content = bytearray((results.WEIGHTS / "photographs.npz").read_bytes())
        content[-100] ^= 1
        (tmp_path / "photographs.npz").write_bytes(content)
    with pytest.raises(data.DataError, match=r"photographs.npz is missing or damaged.*restore it with git"):
        data.photographs()


def test_digits_that_are_nobodys_have_no_names():
    pool = torch.arange(3, dtype=torch.uint8)[:, None, None].expand(3, 28, 28), torch.tensor([4, 0, 9])
    images = pool[0][torch.tensor([[0, 1, 2], [2, 2, 0]])]
    assert data.digit_names(images, pool).tolist() == [[4, 0, 9], [9, 9, 4]]
    with pytest.raises(data.DataError, match="not made of MNIST's digits"):
        data.digit_names(images + 5, pool)


def test_official_values_a_little_beyond_black_and_white_are_black_and_white(tmp_path, official, monkeypatch):
    """Rounded in float32 they may be; as bytes, 256 would be 0 and -1 would be 255."""
    values = np.zeros((1, 3, 28, 28), dtype=np.float32)
    values[0, :, 0, :4] = -0.01, 0.0, 1.0, 1.01
    official |= {"test_x": _npy((values - batches.MEAN) / batches.STD), "test_y": _npy(np.array([3]))}
    monkeypatch.setattr(data, "ADDNIST_SHA256", {n: hashlib.sha256(b).hexdigest() for n, b in official.items()})
    _zip(tmp_path / "AddNIST" / "addnist.zip", {f"{n}.npy": c for n, c in official.items()})
    assert data.addnist(tmp_path, "test")[0][0, :, 0, :4].tolist() == [[0, 0, 255, 255]] * 3


def test_demo_shapes_are_of_the_colours_that_they_are_called():
    hues = {
        "red": 0,
        "orange": 40,
        "yellow": 80,
        "lime": 120,
        "green": 160,
        "teal": 200,
        "blue": 240,
        "violet": 280,
        "pink": 320,
    }
    images, labels = data.cifar100("", "test", "demo")
    assert images.shape == (1000, 3, 32, 32)
    for colour in demo_sets.COLOURS:
        for label in (demo_sets.CLASSES.index(f"{colour} {shape}") for shape in ("square", "disc")):
            middle = images[labels == label][:, :, 14:18, 14:18].float().mean(dim=(0, 2, 3)) / 255
            hue, saturation, value = colorsys.rgb_to_hsv(*middle.tolist())
            assert value > 0.8
            assert saturation == pytest.approx(0.0 if colour == "white" else 0.9, abs=0.05)
            if colour != "white":
                assert 360 * hue == pytest.approx(hues[colour], abs=3) or (colour == "red" and hue > 0.99)
