"""Where AddNIST and CIFAR-100 come from: official files, a rebuilt set, a demo; what travels along; uint8 tensors."""

import hashlib
import io
import itertools
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers import demo
from helpers.batches import MEAN, STD
from helpers.files import DataError, clear_errors, download, verified, write_atomically

ADDNIST_URL = "https://data.ncl.ac.uk/ndownloader/articles/24574354/versions/1"
ADDNIST_SHA256 = {
    "train_x": "90fe9fd55c0b8639e9ff4bac2e745ccfedeab07d9a2a058e0ec8b2dacd6f0b0c",
    "valid_x": "46a42261e6c4a0f7b137b1e143383b2b6e7840b5e36c573ad30f4d7797b1f80f",
    "test_x": "c6d8ee91c5c1fcccb0f7ed7ab91e14c02095bf14d85f0acb9e493777bb872ef1",
    "train_y": "7e04aebb9299f3db58487433fc033fdd73b555f8c3b41ae1f951f37753c47dc8",
    "valid_y": "51066b7a3643593bcb13acdc54eadc27e1768ccc4ea6a6af0d4bf4d49ed6b6c6",
    "test_y": "3515838c2ecd948a76dc56ce471e46cbdb7f7ada58d7f41b660135e416a537bf",
}
TRAVEL = Path(__file__).resolve().parent.parent / "weights"  # what travels with the bundle: real images, to test on
TRAVEL_SHA256 = {
    "mnist_test": "af5595f05f0cc260498196e07655cfa443d2d96874d5ba0dcfeaea06defbda81",
    "photographs": "aae32d57f0306040ddfd37ac4216b385e7442bcaf62e7a19a29f804ed58d9d19",
}
ADDNIST = {"official": "AddNIST", "rebuilt": "AddNIST rebuilt from MNIST"}  # a card's word for each source
OTHER_WAYS = "set DATA = 'rebuilt', which rebuilds it from MNIST, or DATA = 'demo'"


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of a data set's bytes, first 16 digits: says in a result card which samples a result used."""
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in (images, labels))).hexdigest()[:16]


def _check(split: str, source: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    if split not in splits:
        raise ValueError(f"split must be one of {splits}, got {split!r}")
    if source not in ("official", "rebuilt", "demo"):
        raise ValueError(f"source must be 'official', 'rebuilt' or 'demo', got {source!r}")


def addnist(root: str | Path, split: str, source: str = "official") -> tuple[Tensor, Tensor]:
    """AddNIST (Geada et al. 2024): three digits, one per colour channel; label = their sum - 1.

    split: "train" (45,000), "valid" (15,000), "test" (10,000), or "unseen" (some 10,000), which is not AddNIST's: it is
        made of those of MNIST's training digits that neither of the first two holds, each in at most five images.
    source: "official" takes root/AddNIST/*.npy, downloaded on first use and verified; "rebuilt" draws from MNIST by the
        authors' recipe, with a fixed seed (other samples than the official ones); "demo" from printed digits, fewer.
        The rebuilt test set needs no download: MNIST's test digits travel with the bundle.
    Returns uint8 images (N, 3, 28, 28) and int64 labels (N,) in 0…19. Raises ValueError and DataError.
    """
    _check(split, source, ("train", "valid", "test", "unseen"))
    if split == "unseen":
        return _addnist_of_unseen_digits(root, source)
    if source == "official":
        return _addnist_official(Path(root) / "AddNIST", split)
    pool = digits(root, "test" if split == "test" else "train", source)
    return _addnist_from_digits(pool, split, per_class=(400, 60) if source == "demo" else (3000, 500))


def _addnist_of_unseen_digits(root: str | Path, source: str) -> tuple[Tensor, Tensor]:
    images, labels = digits(root, "train", source)
    sets = (addnist(root, split, source)[0] for split in ("train", "valid"))
    seen = {digit.tobytes() for of in sets for digit in of.view(-1, 784).numpy()}
    unseen = torch.tensor([digit.tobytes() not in seen for digit in images.view(-1, 784).numpy()])
    if unseen.float().mean() > 0.5:
        raise DataError(f"MNIST's digits are not those of AddNIST's images: {OTHER_WAYS}.")
    images, labels = images[unseen], labels[unseen]
    # Five times all digits in a random order, three by three; what does not add up to one of AddNIST's labels is left.
    rng, some = np.random.default_rng(0), len(labels) // 3 * 3
    rows = torch.from_numpy(np.concatenate([rng.permutation(len(labels))[:some].reshape(-1, 3) for _ in range(5)]))
    sums = labels[rows].sum(dim=1)
    fits = (sums >= 1) & (sums <= 20)
    return images[rows[fits]], sums[fits] - 1


def digits(root: str | Path, split: str, source: str = "official") -> tuple[Tensor, Tensor]:
    """The single digits that AddNIST adds up, with labels of their own: MNIST; or, source "demo", printed digits.

    split: "train" (60,000; demo 2,000) or "test" (10,000; demo 500); source as in `addnist`. MNIST's training digits
    come through torchvision, downloaded on first use; its test digits travel with the bundle. Returns uint8 images
    (N, 28, 28) and int64 labels (N,). Raises DataError.
    """
    _check(split, source)
    if source == "demo":
        return tuple(part.clone() for part in demo.digits(int(split == "test")))  # drawn once, and nobody's to change
    if split == "test":
        return _travelling("mnist_test")
    from torchvision.datasets import MNIST

    hint = "put its four files into DATA_ROOT/MNIST/raw (delete half a file that a kill left), or set DATA = 'demo'"
    with clear_errors("MNIST", hint):
        mnist = MNIST(str(root), train=True, download=True)
    return mnist.data, mnist.targets


def photographs() -> tuple[Tensor, Tensor]:
    """The first eight test images of CIFAR-100, which travel with the bundle, and their labels; as in `cifar100`."""
    return _travelling("photographs")


def _travelling(name: str) -> tuple[Tensor, Tensor]:
    path = TRAVEL / f"{name}.npz"
    content = path.read_bytes() if path.exists() else b""
    arrays = np.load(io.BytesIO(verified(content, TRAVEL_SHA256[name], path.name, "restore it with git")))
    return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"].astype(np.int64))


def digit_names(images: Tensor, pool: tuple[Tensor, Tensor]) -> Tensor:
    """Which digit each channel of AddNIST images uint8 (N, 3, 28, 28) shows: int64 (N, 3), looked up in `pool`.

    pool: (uint8 images (M, 28, 28), labels (M,)), such as `digits` returns. Raises DataError where a channel is none.
    """
    known = {digit.tobytes(): label for digit, label in zip(pool[0].numpy(), pool[1].tolist(), strict=True)}
    try:
        names = [known[digit.tobytes()] for digit in images.cpu().flatten(0, 1).numpy()]
    except KeyError as error:
        raise DataError("these images are not made of MNIST's digits, so nobody can name them.") from error
    return torch.tensor(names).view(-1, 3)


def _addnist_official(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    files = {name: folder / f"{name}.npy" for name in ADDNIST_SHA256}
    if not all(path.exists() for path in files.values()):
        archive = folder / "addnist.zip"
        if not archive.exists():
            download(ADDNIST_URL, archive, hint=OTHER_WAYS)
        _unpack_addnist(archive, files)
    x, y = (_read_npy(files[f"{split}_{part}"].read_bytes(), f"{split}_{part}") for part in "xy")
    images = torch.from_numpy(np.rint((x * STD + MEAN).clip(0, 1) * 255).astype(np.uint8))
    return images, torch.from_numpy(y.astype(np.int64))


def _unpack_addnist(archive: Path, files: dict[str, Path]) -> None:
    """Take the six arrays out of the zip by name, verify each, and write them where `files` says, nowhere else."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = {Path(name).name: name for name in bundle.namelist()}
            arrays = {name: bundle.read(members[f"{name}.npy"]) for name in files}
        for name, array in arrays.items():
            _read_npy(array, name)
    except Exception as error:  # a page in place of a zip, bytes overwritten, a file missing or another in its place
        archive.unlink()
        raise DataError(
            "what came as the AddNIST zip is damaged or something else, and was deleted: run this again to download it "
            f"anew; if it comes again, {OTHER_WAYS}."
        ) from error
    for name, array in arrays.items():
        write_atomically(files[name], array)
    archive.unlink()


def _read_npy(data: bytes, name: str) -> np.ndarray:
    advice = f"delete the AddNIST folder to download the official file again, or {OTHER_WAYS}"
    return np.load(io.BytesIO(verified(data, ADDNIST_SHA256[name], f"{name}.npy", advice)), allow_pickle=False)


def _addnist_from_digits(pool: tuple[Tensor, Tensor], split: str, per_class: tuple[int, int], seed: int = 0):
    """AddNIST's own recipe over any digits: pool is (uint8 images (N, 28, 28), labels (N,)), those of the split.

    Every triple of a class is drawn equally often, then exactly per_class = (train and valid, test) examples of each
    class are taken with replacement, shuffled, and the first part split 3 : 1 into train and valid. So many valid
    examples also occur in train, as in the official files.
    """
    # Triples: three quarters of a class's share go to train and valid, the rest to test.
    triples = np.array([t for t in itertools.product(range(10), repeat=3) if 1 <= sum(t) <= 20])
    members = [triples[triples.sum(axis=1) - 1 == label] for label in range(20)]
    # Draw: for each example three rows of the pool. Test comes second, from the same stream of random numbers, of which
    # the first draw uses as many whatever the pool.
    rng, (images, digit_labels) = np.random.default_rng(seed), pool
    rows, labels = _draw(rng, digit_labels, members, [int(0.75 * len(of)) for of in members], per_class[0])
    if split == "test":
        rest = [len(of) - int(0.75 * len(of)) for of in members]
        rows, labels = _draw(rng, digit_labels, members, rest, per_class[1])
    # Split.
    cut = {"train": slice(0, len(rows) * 3 // 4), "valid": slice(len(rows) * 3 // 4, None), "test": slice(None)}[split]
    return images[torch.from_numpy(rows[cut])], torch.from_numpy(labels[cut])


def _draw(rng: np.random.Generator, digits: Tensor, members: list[np.ndarray], shares: list[int], keep: int):
    """`keep` examples of each class -> rows of the pool (20 · keep, 3) and labels (20 · keep,), shuffled."""
    sizes, by_digit = digits.bincount(minlength=10).numpy(), digits.argsort(stable=True).numpy()
    first = sizes.cumsum() - sizes  # where in `by_digit` the images of a digit begin
    chosen = []
    for triples, share in zip(members, shares, strict=True):
        drawn = triples.repeat(max(keep // share, 1), axis=0)  # (n, 3)
        places = [(rng.random(len(drawn)) * sizes[of]).astype(np.int64) for of in drawn.T]  # among images of a digit
        rows = by_digit[first[drawn] + np.stack(places, axis=1)]
        chosen.append(rows[rng.integers(len(rows), size=keep)])  # with replacement: some examples come twice
    order = rng.permutation(len(members) * keep)
    return np.concatenate(chosen)[order], np.arange(len(members), dtype=np.int64).repeat(keep)[order]


def cifar100(root: str | Path, split: str, source: str = "official") -> tuple[Tensor, Tensor]:
    """CIFAR-100 (Krizhevsky 2009) through torchvision, downloaded on first use; or, source "demo", drawn shapes.

    source "rebuilt" concerns AddNIST alone and means "official" here, so that one setting serves every notebook.
    split: "train" (50,000; demo 5,000) or "test" (10,000; demo 1,000). Returns uint8 images (N, 3, 32, 32) and
    int64 labels (N,) in 0…99. Raises DataError.
    """
    _check(split, source)
    if source == "demo":
        return demo.shapes(50 if split == "train" else 10, seed=int(split == "test"))
    cifar = _cifar100_test(root) if split == "test" else _cifar100(root, split)
    images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2)
    return images.clone(memory_format=torch.contiguous_format), torch.tensor(cifar.targets)  # the caller's to change


def _cifar100(root: str | Path, split: str):
    from torchvision.datasets import CIFAR100

    with clear_errors("CIFAR-100", "put cifar-100-python/ into DATA_ROOT, or set DATA = 'demo'"):
        return CIFAR100(str(root), train=split == "train", download=True)


@lru_cache(maxsize=1)  # read and verified once, for images and classes
def _cifar100_test(root: str | Path):
    return _cifar100(root, "test")


def cifar100_classes(root: str | Path, source: str = "official") -> list[str]:
    """The 100 class names in label order, as one reads them ("aquarium fish"); of a demo, "red disc" …"""
    if source == "demo":
        return [*demo.CLASSES]
    return [name.replace("_", " ") for name in _cifar100_test(root).classes]
