import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid import fid as cleanfid
from cleanfid.resize import build_resizer
from PIL import Image

from helpers import data, fid


@pytest.fixture(scope="module")
def network():
    """A small stand-in for Inception: any function of 299×299 images in 0…255 will do to compare two pipelines."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 12, 7, stride=16)
    return lambda x: layer(x / 128 - 1).relu().mean(dim=(2, 3)).detach() * 20


@pytest.fixture
def two_folders(tmp_path):
    sets = [part[:60] for part in (data.cifar100("", "test", "demo")[0], data.cifar100("", "train", "demo")[0])]
    for name, images in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:03}.png")
    return tmp_path, sets


def test_agrees_with_clean_fid_itself(two_folders, network, monkeypatch):
    folder, sets = two_folders
    # clean-fid 0.1.35 asks scipy.linalg.sqrtm for two values, which SciPy 1.18 no longer returns.
    sqrtm = scipy.linalg.sqrtm
    monkeypatch.setattr(
        scipy.linalg, "sqrtm", lambda matrix, disp=True: sqrtm(matrix) if disp else (sqrtm(matrix), 0.0)
    )
    theirs = cleanfid.compute_fid(
        str(folder / "a"), str(folder / "b"), mode="clean", custom_feat_extractor=network, num_workers=0,
        device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    ours = fid.frechet_distance(*(fid.features(images, network) for images in sets))
    assert theirs > 1
    assert ours == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize("shape", [(32, 32), (64, 20), (400, 299)])
def test_resizing_by_matrices_equals_clean_fid(shape, rng):
    image = 255 * torch.randint(0, 2, (*shape, 3), generator=rng, dtype=torch.uint8)  # overshoots, so it is clipped
    resized = []
    fid.features(image.permute(2, 0, 1)[None], lambda x: resized.append(x) or x.flatten(1))
    theirs = torch.from_numpy(build_resizer("clean")(image.numpy())).permute(2, 0, 1)
    assert theirs.min() == 0
    assert theirs.max() == 255
    torch.testing.assert_close(resized[0][0], theirs, rtol=0, atol=1e-3)


def test_frechet_distance_of_known_gaussians(rng):
    a = torch.randn(5000, 4, generator=rng, dtype=torch.float64)
    assert fid.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    shift = torch.tensor([3.0, 0, 0, -1])
    assert fid.frechet_distance(a, a + shift) == pytest.approx(10, abs=1e-6)
    scaled = fid.frechet_distance(a, 3 * a)  # Σ → 9Σ: tr(Σ + 9Σ - 6Σ) = 4 tr Σ, and the mean moves too
    assert scaled == pytest.approx(float(4 * a.T.cov().trace() + 4 * a.mean(0).square().sum()), rel=1e-9)


def test_frechet_distance_equals_the_textbook_formula(rng):
    a, b = torch.randn(2, 300, 6, generator=rng, dtype=torch.float64)
    b = b @ torch.randn(6, 6, generator=rng, dtype=torch.float64) + 1
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    expected = np.square((a.mean(0) - b.mean(0)).numpy()).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert fid.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
    assert fid.frechet_distance(a, b) == pytest.approx(fid.frechet_distance(b, a), rel=1e-8)


def test_mean_distance_is_free_of_chance(rng):
    a, b = torch.randn(2, 50, 1000, generator=rng)
    chance = float((a.mean(0) - b.mean(0)).norm())  # about √(2·1000 / 50) = 6.3, though the true means are one
    assert fid.mean_distance(a, b) < 2 < 6 < chance
    assert fid.mean_distance(a, b + 5 / 1000**0.5) == pytest.approx(5, rel=0.1)  # alone, chance would make it 8.1
    assert fid.mean_distance(a, a) == 0


def test_judge_says_it_all(rng):
    a, b = torch.randn(2, 60, 4, generator=rng)
    precision, recall = fid.precision_recall(a, b)
    found = fid.judge(a, b)
    assert found["fid"] == round(fid.frechet_distance(a, b), 2)
    assert found["kid"] == round(1000 * fid.kernel_distance(a, b), 3)
    assert (found["precision"], found["recall"]) == (round(precision, 4), round(recall, 4))


def test_kernel_distance_is_the_mean_over_all_pairs(rng):
    a, b = torch.randn(5, 3, generator=rng).double(), torch.randn(4, 3, generator=rng).double() + 1

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within = [sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
              for x in (a, b)]  # fmt: skip
    across = sum(k(p, q) for p in a for q in b) / 20
    assert fid.kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    x, y = torch.randn(2, 2000, 3, generator=rng)
    assert fid.kernel_distance(x, y) == pytest.approx(0, abs=0.05)  # unbiased: 0 for the same distribution
    assert fid.kernel_distance(x[:50], y[:50]) == pytest.approx(0, abs=0.5)


def test_precision_and_recall(rng):
    real = torch.cat([torch.zeros(50, 2), torch.full((50, 2), 100.0)]) + torch.randn(100, 2, generator=rng)
    one = torch.randn(40, 2, generator=rng) / 4  # one of two modes, in its midst
    precision, recall = fid.precision_recall(one, real)
    assert precision == 1.0
    assert recall < 0.5
    precision, recall = fid.precision_recall(real, one)
    assert recall == 1.0
    assert fid.precision_recall(real, real) == (1.0, 1.0)
    assert fid.precision_recall(real + 1000, real) == (0.0, 0.0)
    with pytest.raises(ValueError, match="more than 3 rows"):
        fid.precision_recall(real[:3], real)


def test_precision_counts_who_lies_within_the_third_neighbour():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])  # third neighbours: 3, 2, 2, 2, 3 away
    for x, inside in ((-2.9, 1.0), (-3.1, 0.0)):
        assert fid.precision_recall(torch.full((4, 1), x), real)[0] == inside


def test_fewer_samples_than_features(rng):
    a, b = torch.randn(2, 10, 64, generator=rng)
    assert np.isfinite(fid.frechet_distance(a, b))
    assert fid.frechet_distance(a, a) == pytest.approx(0, abs=1e-4)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="uint8"):
        fid.features(torch.rand(2, 3, 32, 32))
    with pytest.raises(TypeError, match="expected a tensor, got ndarray.*torch.as_tensor"):
        fid.features(np.zeros((2, 3, 32, 32), dtype=np.uint8))
    for distance in (fid.frechet_distance, fid.mean_distance, fid.kernel_distance, fid.precision_recall):
        with pytest.raises(ValueError, match="NaN"):
            distance(torch.full((4, 2), float("nan")), torch.zeros(4, 2))
        for bad in (torch.zeros(4), torch.zeros(1, 2), torch.zeros(4, 3)):
            with pytest.raises(ValueError, match="expected features"):
                distance(bad, torch.zeros(4, 2))


def test_a_damaged_network_file_is_not_opened(tmp_path):
    (tmp_path / "inception_pool3.pt").write_bytes(b"half a download")
    with pytest.raises(data.DataError, match="delete it"):
        fid.load_network(tmp_path)


def test_network_host_down(tmp_path, monkeypatch):
    monkeypatch.setattr(fid, "inception_url", "http://127.0.0.1:9/none")
    with pytest.raises(data.DataError, match="inception-2015-12-05.pt could not be loaded"):
        fid.load_network(tmp_path)
    assert not list(tmp_path.iterdir())


class _Scripted(torch.nn.Module):
    """A network of one convolution, written as a file in place of the published one; the first of two as a whole."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Conv2d(3, 5, 1, bias=False)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("name", list(fid.NETWORKS))
def test_the_network_sees_pixels_less_128_over_128(tmp_path, monkeypatch, name):
    torch.manual_seed(0)
    whole = _Scripted().eval()
    torch.jit.script(whole if name.startswith("inception-") else whole.layers).save(str(tmp_path / name))
    sha256 = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setattr(fid, "NETWORKS", {"inception-2015-12-05.pt": "0" * 64} | {name: sha256})
    pixels = torch.tensor([0.0, 128.0, 255.0]).view(1, 3, 1, 1)
    expected = whole.layers(torch.tensor([-1.0, 0.0, 127 / 128]).view(1, 3, 1, 1)).flatten(1)
    torch.testing.assert_close(fid.load_network(tmp_path)(pixels), expected)


def test_without_a_network_that_of_data_root_is_taken(monkeypatch, network):
    """A ~ in it is the user's folder, as in the pages."""
    asked = []
    monkeypatch.setattr(fid, "load_network", lambda root, device: asked.append(root) or network)
    for given, expected in (("~/there", str(Path.home() / "there")), (None, "data")):
        monkeypatch.delenv("DATA_ROOT", raising=False)
        if given:
            monkeypatch.setenv("DATA_ROOT", given)
        fid.features(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        assert str(asked.pop()) == expected


def test_progress_counts_images(network):
    said = []
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    fid.features(images, network, batch_size=2, progress=lambda *of: said.append(of))
    assert said == [(2, 5), (4, 5), (5, 5)]


def test_images_of_another_shape_are_refused(network):
    for shape in ((4, 32, 32, 3), (4, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"expected images \(N, 3, H, W\)"):
            fid.features(torch.zeros(shape, dtype=torch.uint8), network)


def test_the_nearest_images_are_found_among_more_than_a_block_mirrored_ones_included():
    images = torch.randint(256, (5_003, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([images[5_001], images[7].flip(2), images[42]])  # the image, its mirror, nearly the image
    drawn[2, 0, 0, 0] = 255 - drawn[2, 0, 0, 0]
    found = fid.nearest(drawn, images, 3)
    assert found.shape == (3, 3)
    assert found[:, 0].tolist() == [5_001, 7, 42]
    a, b = drawn[0].float(), images.float()
    distances = torch.minimum(*((way - a).square().sum(dim=(1, 2, 3)) for way in (b, b.flip(3))))
    assert found[0].tolist() == distances.argsort()[:3].tolist()
    nearly = drawn[:1].expand(2_000, -1, -1, -1).clone()  # a copy among images that are off by one grey level
    nearly[:, 0, 0, 0] += torch.where(nearly[:, 0, 0, 0] < 255, 1, -1).to(torch.uint8)
    nearly[1_234] = drawn[0]
    assert fid.nearest(drawn[:1], nearly, 1).item() == 1_234


def test_precision_and_recall_do_not_depend_on_where_the_features_lie(rng):
    """Features of another network may have means of thousands, where float32 cannot tell neighbours apart."""
    a, b = torch.randn(2, 200, 16, generator=rng, dtype=torch.float64)
    near = fid.precision_recall(a, 0.8 * b)
    for far in (1e3, 1e6):
        assert fid.precision_recall(a + far, 0.8 * b + far) == near


def test_one_feature_far_out_does_not_change_who_lies_near_whom(rng):
    a, b = torch.randn(2, 300, 64, generator=rng, dtype=torch.float64)
    exact = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.cdist(b, b, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(4, dim=1).values
    expected = float((exact[:, :-1] <= own[:-1]).any(dim=1).double().mean())  # nobody is near the last one
    b[-1] += 1e6
    assert fid.precision_recall(a, b)[0] == pytest.approx(expected, abs=0.02)


def test_features_are_the_same_inside_autocast(network):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = fid.features(images, network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fid.features(images, network), expected)


def test_mean_distance_takes_off_the_chance_of_either_set(rng):
    """Sets of other sizes and spreads, by the formula."""
    a, b = torch.randn(20, 8, generator=rng) * 3, torch.randn(500, 8, generator=rng) + 2
    apart = (a.mean(0) - b.mean(0)).square().sum() - a.var(0).sum() / 20 - b.var(0).sum() / 500
    for one, other in ((a, b), (b, a)):
        assert fid.mean_distance(one, other) == pytest.approx(float(apart) ** 0.5, rel=1e-4)


def test_the_nearest_images_are_not_sought_among_floats():
    images = data.photographs()[0]
    with pytest.raises(TypeError, match="uint8"):
        fid.nearest(images.float() / 127.5 - 1, images, 1)
    with pytest.raises(TypeError, match="uint8"):
        fid.nearest(images.float(), images.float(), 1)


def test_a_copy_is_told_from_an_image_that_differs_in_a_single_level(rng):
    """Bright images, whose distances a product of matrices would round away."""
    image = torch.randint(200, 256, (1, 3, 32, 32), generator=rng, dtype=torch.uint8)
    images = image.repeat(40, 1, 1, 1)
    for row in range(40):
        if row != 23:
            images[row, 0, 0, row % 32] -= 1 + row % 3
    assert fid.nearest(image, images, 1).item() == 23
