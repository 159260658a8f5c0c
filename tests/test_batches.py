import numpy as np
import pytest
import torch

from helpers import batches, diffusion


def test_batch_is_a_function_of_seed_and_step():
    images, labels = torch.arange(10), torch.arange(10)
    epoch = torch.cat([batches.batch(images, labels, 3, 7, step)[0] for step in range(3)])
    assert len(epoch.unique()) == 9  # each at most once an epoch
    assert torch.equal(batches.batch(images, labels, 3, 7, 1)[0], epoch[3:6])
    following = torch.cat([batches.batch(images, labels, 3, 7, step)[0] for step in range(3, 6)])
    assert not torch.equal(epoch, following)
    assert not torch.equal(batches.batch(images, labels, 3, 8, 1)[0], epoch[3:6])
    with pytest.raises(ValueError, match="1…10"):
        batches.batch(images, labels, 11, 0, 0)


def test_seed_step_repeats_the_noise():
    batches.seed_step(3, 14)
    first = torch.randn(4)
    batches.seed_step(3, 15)
    other = torch.randn(4)
    batches.seed_step(3, 14)
    assert torch.equal(first, torch.randn(4))
    assert not torch.equal(first, other)


def test_normalise_is_the_official_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert batches.normalise(images).flatten().tolist() == pytest.approx([-0.1307 / 0.3081, (1 - 0.1307) / 0.3081])


def test_pixels_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(batches.to_uint8(batches.to_float(pixels)), pixels)
    assert batches.to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="NaN"):
        batches.to_uint8(torch.tensor([0.0, torch.nan]))


def test_floats_are_refused_where_bytes_are_meant():
    with pytest.raises(TypeError, match="uint8"):
        batches.normalise(torch.rand(1, 3, 28, 28))
    with pytest.raises(TypeError, match="uint8"):
        batches.to_float(torch.rand(1, 3, 32, 32))
    with pytest.raises(TypeError, match="expected float images"):
        batches.to_uint8(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_generators_differ_wherever_seed_or_index_do():
    seen = {batches.generator(seed, index).initial_seed() for seed in range(30) for index in range(30)}
    assert len(seen) == 900
    batches.seed_step(3, 5)
    assert torch.equal(torch.rand(4), torch.rand(4, generator=batches.generator(3, 5)))


def test_seeds_may_be_numpys_numbers():
    assert batches.generator(np.int32(10**9), np.int64(3)).initial_seed() == 10**9 * 1_000_003 + 3


def test_a_batch_of_other_labels_or_an_earlier_step_is_refused():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for labels, step in ((torch.arange(9), 0), (torch.arange(4), -1)):
        with pytest.raises(ValueError, match="a label for each of 4 images and a step from 0"):
            batches.batch(images, labels, 2, 0, step)


def test_a_seed_that_is_no_whole_number_is_refused_not_cut_off():
    for of in (lambda: batches.generator(0.7, 0), lambda: diffusion.starting_noise(1, 0.7)):
        with pytest.raises(TypeError):
            of()


def test_what_happens_inside_seeded_does_not_change_the_random_numbers_after_it():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with batches.seeded(1, 2):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    batches.seed_step(1, 2)
    assert torch.equal(torch.rand(2), inside)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (9, 3), (10, 10), (7, 1), (11, 6)])
def test_every_batch_is_whole_and_no_epoch_shows_an_example_twice(count, size):
    images, labels = torch.arange(count), torch.arange(count)
    each = count // size
    for epoch in range(3):
        shown = [batches.batch(images, labels, size, 1, epoch * each + i)[0] for i in range(each)]
        assert [len(of) for of in shown] == [size] * each
        assert len(torch.cat(shown).unique()) == size * each


def test_labels_go_with_their_images():
    images = torch.arange(40)
    for step in range(12):
        shown, labels = batches.batch(images, images % 7, 6, 2, step)
        assert torch.equal(labels, shown % 7)
