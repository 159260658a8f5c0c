import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers import augmentation, batches, classifiers, data, results
from helpers.budget import count_parameters
from helpers.classifiers import DigitSumClassifier, PaperClassifier, log_sum_distribution

COMPARED = [classifiers.LearnedSum, classifiers.SeparateReaders, classifiers.no_batch_norm]
NETS = [PaperClassifier, DigitSumClassifier, *COMPARED]


@pytest.mark.parametrize("make", NETS)
def test_twenty_outputs_and_a_gradient_for_every_parameter(make):
    net = make()
    out = net(torch.randn(4, 3, 28, 28))
    assert out.shape == (4, 20)
    F.cross_entropy(out, torch.tensor([0, 5, 10, 19])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize(
    ("bad", "error"), [(torch.zeros(2, 1, 28, 28), ValueError), (torch.zeros(3, 28, 28), ValueError),
                       *((torch.zeros(2, 3, 28, 28, dtype=of), TypeError) for of in (torch.uint8, torch.int64))]
)  # fmt: skip
def test_wrong_input_is_refused_with_advice(make, bad, error):
    got = bad.dtype if error is TypeError else tuple(bad.shape)
    with pytest.raises(error, match=rf"expected .*got {re.escape(str(got))}"):
        make()(bad)


def test_sum_head_is_bayes_rule_over_all_1000_triples():
    """With each label as frequent as another, and so each triple of a label as another of it, as AddNIST has them."""
    net = DigitSumClassifier().eval()
    x = torch.randn(3, 3, 28, 28)
    ways = Counter(map(sum, itertools.product(range(10), repeat=3)))
    with torch.no_grad():
        p = net.digit_log_probabilities(x).double().exp()
        joint = torch.zeros(3, 20, dtype=torch.float64)
        for r, g, b in itertools.product(range(10), repeat=3):
            if 1 <= r + g + b <= 20:
                joint[:, r + g + b - 1] += p[:, 0, r] * p[:, 1, g] * p[:, 2, b] / (20 * ways[r + g + b])
        expected = joint / joint.sum(dim=1, keepdim=True)
        torch.testing.assert_close(net(x).double().exp(), expected, atol=1e-6, rtol=1e-5)


def test_the_sums_distribution_is_the_plain_convolution_of_the_three_distributions():
    net, x = DigitSumClassifier().eval(), torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        read = net.digit_log_probabilities(x)
        found = log_sum_distribution(read).exp()
    for three, sums in zip(read.double().exp().numpy(), found, strict=True):
        np.testing.assert_allclose(sums, np.convolve(np.convolve(three[0], three[1]), three[2]), rtol=1e-4)


def test_digits_that_say_nothing_leave_every_label_as_likely():
    nothing = torch.full((2, 3, 10), 0.1).log()
    torch.testing.assert_close(classifiers.label_log_probabilities(nothing).exp(), torch.full((2, 20), 0.05))
    sums = log_sum_distribution(nothing).exp()  # while of three dice's sums the middle ones are the likely
    assert sums.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert float(sums[0, 13] / sums[0, 0]) == pytest.approx(75)


def test_sums_survive_where_probabilities_underflow():
    sure = torch.full((1, 10), -200.0)
    sure[0, 4] = 0.0
    sums = log_sum_distribution(sure[:, None].expand(1, 2, 10))
    assert sums.argmax() == 8
    assert sums.isfinite().all()
    assert sums[0, 0] == pytest.approx(-400.0)  # exp(-400) is 0 in float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_same_answers(dtype):
    torch.manual_seed(0)
    net = DigitSumClassifier().eval()
    x = 1000 * torch.randn(8, 3, 28, 28)  # logits of tens, where products of half-precision probabilities vanish
    with torch.no_grad():
        expected = net(x)
        with torch.autocast("cpu", dtype):
            out = net(x)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert expected.amin() < -10  # so this is a case where it matters
    torch.testing.assert_close(out, expected, atol=0.5, rtol=0.05)


def test_channel_order_does_not_matter_to_the_sum():
    net = DigitSumClassifier().eval()
    x = torch.randn(5, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(x[:, [2, 0, 1]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [PaperClassifier, DigitSumClassifier])
def test_one_batch_can_be_overfitted(make):
    torch.manual_seed(0)
    images, labels = (part[:16] for part in data.addnist("", "train", "demo"))
    net, x = make(), batches.normalise(images)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    net.train()
    assert (net(x).argmax(dim=1) == labels).all()


def test_digits_other_than_three_have_no_label():
    with pytest.raises(ValueError, match=r"expected digits \(B, 3, 10\)"):
        classifiers.label_log_probabilities(torch.zeros(2, 2, 10).log_softmax(dim=2))


def test_200_steps_teach_it_to_read_from_sums_alone():
    images, labels = data.addnist("", "train", "demo")
    torch.manual_seed(0)
    net = DigitSumClassifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for step in range(200):
        x, y = batches.batch(images, labels, 32, 0, step)
        optimizer.zero_grad()
        F.cross_entropy(net(batches.normalise(x)), y).backward()
        optimizer.step()
    x, y = data.addnist("", "test", "demo")
    digits, names = data.digits("", "test", "demo")
    net.eval()
    right = (classifiers.predict(net, x).argmax(dim=1) == y).float().mean()
    read = classifiers.predict(net.reader, digits[:498, None]).argmax(dim=1)
    assert right > 0.9
    assert (read == names[:498]).float().mean() > 0.97


def test_the_nets_to_compare_with_differ_in_what_their_names_say():
    published = results.load_card("classifier_ingredients")["rows"]
    for title, make in zip(("learned sum", "separate readers", "no batch norm"), COMPARED, strict=True):
        assert count_parameters(make()) == published[title]["parameters"] <= 100_000
    x, net = torch.randn(5, 3, 28, 28), classifiers.LearnedSum().eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x), net.sum(net.digits.digit_log_probabilities(x).flatten(1)))

    kinds = [type(layer) for layer in DigitSumClassifier().reader if not isinstance(layer, torch.nn.BatchNorm2d)]
    assert [type(layer) for layer in classifiers.no_batch_norm().reader] == kinds

    separate = classifiers.SeparateReaders().eval()
    with torch.no_grad():
        own = [reader.digit_log_probabilities(x)[:, i] for i, reader in enumerate(separate.readers)]
        torch.testing.assert_close(separate(x), classifiers.label_log_probabilities(torch.stack(own, dim=1)))
    assert len({id(reader) for reader in separate.readers}) == 3


def test_predictions_are_those_of_the_net_image_by_image():
    torch.manual_seed(0)
    images = data.addnist("", "train", "demo")[0][:70]  # more than a batch
    for net in (DigitSumClassifier().eval(), PaperClassifier().eval()):  # log-probabilities, and logits
        with torch.no_grad():
            expected = net(batches.normalise(images)).log_softmax(dim=1)
        before = torch.get_rng_state()
        torch.testing.assert_close(classifiers.predict(net, images), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(before, torch.get_rng_state())  # at one look nothing is drawn
    assert classifiers.predict(PaperClassifier().bfloat16().eval(), images).dtype == torch.float32


def test_predictions_over_several_views_are_the_mean_over_jittered_ones():
    torch.manual_seed(0)
    images, net = data.addnist("", "train", "demo")[0][:5], DigitSumClassifier().eval()
    net.reader[-1].weight.data *= 5_000  # so sure that a mean of probabilities would be another
    found = classifiers.predict(net, images, views=3, jitter={"shift": 3.0})
    batches.seed_step(0, 0)
    with torch.no_grad():
        views = [net(augmentation.jitter(batches.normalise(images), shift=3.0)) for _ in range(3)]
    torch.testing.assert_close(found, torch.stack(views).mean(dim=0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, torch.stack(views).exp().mean(dim=0).log(), atol=0.1)
    assert not torch.allclose(views[0], views[1], atol=1e-3)
    torch.manual_seed(1)
    assert torch.equal(found, classifiers.predict(net, images, views=3, jitter={"shift": 3.0}))


def test_one_view_is_the_image_as_it_is():
    net, images = DigitSumClassifier().eval(), torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    strong = {"degrees": 90.0, "shift": 9.0}
    assert torch.equal(classifiers.predict(net, images, jitter=strong), classifiers.predict(net, images))


def test_predictions_that_would_mean_something_else_are_refused():
    images, net = data.addnist("", "train", "demo")[0][:5], DigitSumClassifier()
    with pytest.raises(ValueError, match="training mode"):
        classifiers.predict(net, images)
    for views in (0, 2):
        with pytest.raises(ValueError, match=f"need a jitter, got {views}"):
            classifiers.predict(net.eval(), images, views=views)
    net.reader[1].train()
    with pytest.raises(ValueError, match="training mode"):
        classifiers.predict(net, images)
    net.eval()
    with pytest.raises(TypeError, match="uint8"):
        classifiers.predict(net, images.float())


def test_several_views_leave_the_global_random_numbers_as_they_were():
    net, images = DigitSumClassifier().eval(), data.addnist("", "test", "demo")[0][:3]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = classifiers.predict(net, images, views=2, jitter={"shift": 2.0})
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(classifiers.predict(net, images, views=2, jitter={"shift": 2.0}), first)


def test_a_net_whose_parts_are_compiled_answers_as_it_did():
    x = torch.randn(2, 3, 28, 28)
    for net, part in ((DigitSumClassifier().eval(), "reader"), (PaperClassifier().eval(), "linear")):
        expected = net(x)
        setattr(net, part, torch.compile(getattr(net, part), backend="eager"))
        torch.testing.assert_close(net(x), expected)


def test_log_probabilities_are_float32_whatever_the_net_computes_in():
    x = torch.randn(2, 3, 28, 28)
    for net in (DigitSumClassifier().bfloat16().eval(), DigitSumClassifier().double().eval()):
        assert net.digit_log_probabilities(x).dtype == net(x).dtype == torch.float32
        torch.testing.assert_close(net.digit_log_probabilities(x).exp().sum(dim=2), torch.ones(2, 3))


def test_the_deeper_paper_net_has_a_nonlinearity_after_every_convolution():
    layers = classifiers.DeeperPaperClassifier().convolutions
    following = [layers[i + 1] for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Conv2d)]
    assert len(following) == 8
    assert [type(layer) for layer in layers if "Pool" in type(layer).__name__] == [torch.nn.MaxPool2d] * 3
    assert all(isinstance(layer, torch.nn.ReLU) for layer in following)
