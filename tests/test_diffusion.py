import math
import time

import numpy as np
import pytest
import torch

from helpers import augmentation, batches, classifiers, diffusion, interpolation, results, solvers, unet
from helpers.unet import UNet

# --- schedules ------------------------------------------------------------------------------------------------------


def test_sigmas_have_one_level_more_than_steps_and_fall_to_zero():
    for path in (diffusion.ddpm_sigmas(1000), diffusion.ddpm_sigmas(50), diffusion.karras_sigmas(18)):
        assert path[-1] == 0
        assert (path.diff() < 0).all()
    assert len(diffusion.ddpm_sigmas(50)) == 51
    assert len(diffusion.karras_sigmas(18)) == 19
    assert float(diffusion.karras_sigmas(18)[0]) == pytest.approx(80)
    assert float(diffusion.karras_sigmas(18)[-2]) == pytest.approx(0.002)


@pytest.mark.parametrize(("steps", "below"), [(501, 500), (600, 500), (750, 500), (999, 500), (334, 333), (13, 10)])
def test_ddpm_sigmas_starts_high_also_where_steps_do_not_divide(steps, below):
    """At least as near the last level as the next smaller number of steps that divides the thousand, or nearly."""
    first = diffusion.ddpm_sigmas(steps)[0]
    assert diffusion.ddpm_sigmas(below)[0] <= first <= diffusion.ddpm_sigmas(1000)[0]
    levels = diffusion.ddpm_schedule()
    for steps in (8, 10, 50, 500, 1000):  # these divide: every (1000 / steps)-th level, as ever
        assert torch.equal(diffusion.ddpm_sigmas(steps)[:-1].flip(0), levels[:: 1000 // steps])


@pytest.mark.parametrize("bad", [0, 1, 6, 1001])
def test_ddpm_sigmas_refuses(bad):
    with pytest.raises(ValueError, match="7…1000"):
        diffusion.ddpm_sigmas(bad)


def test_the_fewest_steps_of_ddpm_begin_where_noise_drowns_an_image():
    """An image's brightness, ±0.3, is as good as lost: the mean of its 3,072 numbers has a noise of σ / 55."""
    assert float(diffusion.ddpm_sigmas(7)[0]) > 40
    assert float(diffusion.ddpm_schedule()[1000 * 5 // 6]) < 40


# --- denoiser and loss ----------------------------------------------------------------------------------------------


def test_preconditioning_identities():
    edm = diffusion.Denoiser(UNet((8, 8), (1, 1), 2))
    sigma = torch.logspace(-4, 4, 41, dtype=torch.float64)
    skip, out, c_in = edm.scaling(sigma)
    torch.testing.assert_close(c_in**2 * (sigma**2 + 0.25), torch.ones_like(sigma))  # unit variance in
    torch.testing.assert_close((1 - skip) ** 2 * 0.25 + skip**2 * sigma**2, out**2)  # target of unit variance
    assert float(skip[0]) == pytest.approx(1, abs=1e-6)
    assert float(out[0]) == pytest.approx(0, abs=1e-3)
    assert float(skip[-1]) == pytest.approx(0, abs=1e-6)
    assert float(out[-1]) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("prediction", ["edm", "epsilon"])
def test_noise_levels_are_drawn_where_the_network_is(prediction):
    denoiser = unet.build_denoiser(results.load_card("diffusion")["settings"] | {"prediction": prediction}, "meta")
    assert denoiser.training_sigmas(3).device.type == "meta"


def test_an_untrained_net_costs_one(rng):
    """The head starts at zero, so D = c_skip·x, whose weighted error is 1 for data of variance 0.25."""
    torch.manual_seed(0)
    images = batches.to_uint8(0.5 * torch.randn(256, 3, 8, 8, generator=rng))
    denoiser = diffusion.Denoiser(UNet((8, 8), (1, 1), 2))
    sigma = denoiser.training_sigmas(256)
    losses = diffusion.loss(denoiser, images, torch.zeros(256).long(), sigma)
    assert losses.shape == sigma.shape == (256,)
    assert losses.mean().item() == pytest.approx(1, abs=0.05)


def test_epsilon_loss_is_the_plain_error_of_the_noise(denoiser):
    images, labels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 5
    epsilon = diffusion.Denoiser(denoiser.net, "epsilon")
    torch.manual_seed(3)
    sigma = epsilon.training_sigmas(6)
    losses = diffusion.loss(epsilon, images, labels, sigma)
    torch.manual_seed(3)
    t = torch.randint(1000, (6,))
    noise = torch.randn(6, 3, 8, 8)
    assert torch.equal(sigma, diffusion.ddpm_schedule().float()[t])
    alpha_bar = (1 / (1 + sigma**2))[:, None, None, None]
    x_t = alpha_bar.sqrt() * batches.to_float(images) + (1 - alpha_bar).sqrt() * noise
    error = (epsilon.net(x_t, sigma.log() / 4, labels) - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, error, rtol=2e-3, atol=1e-4)


def test_edm_loss_is_the_textbooks(denoiser):
    """Karras et al. 2022, table 1, at the same random numbers, written out."""
    images, labels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 5
    torch.manual_seed(3)
    sigma = denoiser.training_sigmas(6)
    losses = diffusion.loss(denoiser, images, labels, sigma)
    torch.manual_seed(3)
    expected = torch.exp(-1.2 + 1.2 * torch.randn(6))
    torch.testing.assert_close(sigma, expected)
    y, s = images.float() / 127.5 - 1, expected[:, None, None, None]
    noisy = y + s * torch.randn(6, 3, 8, 8)
    total = s**2 + 0.5**2
    skip, out, c_in = 0.5**2 / total, s * 0.5 / total.sqrt(), 1 / total.sqrt()
    estimate = skip * noisy + out * denoiser.net(c_in * noisy, expected.log() / 4, labels)
    weight = (total / (s * 0.5) ** 2).flatten()
    torch.testing.assert_close(losses, weight * (estimate - y).square().mean(dim=(1, 2, 3)))


def test_noise_levels_to_train_at_have_the_mean_and_spread_that_are_asked_for(denoiser):
    torch.manual_seed(0)
    logs = denoiser.training_sigmas(20_000, -0.4, 0.7).log()
    assert float(logs.mean()) == pytest.approx(-0.4, abs=0.02)
    assert float(logs.std()) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_as_many_labels_are_hidden_as_said(share):
    seen = []

    class Net(torch.nn.Module):
        classes = 5

        def forward(self, x, noise, labels):
            seen.append(labels)
            return x

    labels = torch.arange(20_000) % 5
    torch.manual_seed(0)
    images = torch.zeros(20_000, 3, 1, 1, dtype=torch.uint8)
    diffusion.loss(diffusion.Denoiser(Net()), images, labels, torch.ones(20_000), label_dropout=share)
    hidden = seen[0] == 5
    assert float(hidden.float().mean()) == pytest.approx(share, abs=0.01)
    assert torch.equal(seen[0][~hidden], labels[~hidden])


@pytest.mark.parametrize("prediction", ["edm", "epsilon"])
def test_every_parameter_gets_a_gradient(prediction):
    torch.manual_seed(0)
    net = UNet((8, 16), (1, 1), 5)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    images, labels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40) % 5
    denoiser = diffusion.Denoiser(net, prediction)
    diffusion.loss(denoiser, images, labels, denoiser.training_sigmas(40), label_dropout=0.2).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert (net.class_embedding.weight.grad.abs().sum(dim=1) > 0).all()  # the null label's too


def test_one_batch_overfits():
    torch.manual_seed(0)
    denoiser = diffusion.Denoiser(UNet((16, 32), (1, 1), 4))
    images, labels = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8), torch.arange(4)
    images = torch.nn.functional.interpolate(images.float(), size=(8, 8)).to(torch.uint8).repeat(8, 1, 1, 1)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    values = []
    for _ in range(150):
        loss = diffusion.loss(denoiser, images, labels.repeat(8), denoiser.training_sigmas(32)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-20:]) / 20 < 0.25 * values[0]


# --- samplers -------------------------------------------------------------------------------------------------------

SHORT = diffusion.karras_sigmas(3)


def test_samples_are_uint8_and_repeat_bit_for_bit(denoiser):
    labels = torch.arange(5)
    first = diffusion.sample(denoiser, labels, seed=1, sigmas=SHORT)
    assert first.shape == (5, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, diffusion.sample(denoiser, labels, seed=1, sigmas=SHORT))
    assert not torch.equal(first, diffusion.sample(denoiser, labels, seed=2, sigmas=SHORT))


@pytest.mark.parametrize("options", [{}, {"solver": solvers.ddpm_steps, "sigmas": diffusion.ddpm_sigmas(7)}])
def test_batching_does_not_change_the_samples(denoiser, options):
    options = {"sigmas": SHORT} | options
    together = diffusion.sample(denoiser, torch.arange(5), **options)
    said = []
    apart = diffusion.sample(denoiser, torch.arange(5), batch_size=2, progress=lambda *of: said.append(of), **options)
    assert said == [(2, 5), (4, 5), (5, 5)]
    assert (together.int() - apart.int()).abs().max() <= 1


def test_label_changes_the_output_and_embedding_equals_label(denoiser):
    same = torch.zeros(2, 3, 32, 32) + diffusion.starting_noise(1, 0)
    a, b = diffusion.sample(denoiser, torch.tensor([0, 1]), noise=same, sigmas=SHORT)
    assert not torch.equal(a, b)
    embedded = diffusion.sample(denoiser, denoiser.net.class_embedding(torch.tensor([0, 1])), noise=same, sigmas=SHORT)
    assert torch.equal(embedded[0], a)


def test_sample_draws_by_its_own_defaults(denoiser):
    """Eighteen steps of DPM-Solver++ along Karras' levels, no guidance, noise of seed 0; images in -1…1 to bytes."""
    labels = torch.tensor([3, 1])
    levels = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18, dtype=torch.float64) ** 7
    torch.testing.assert_close(diffusion.karras_sigmas()[:-1], levels)
    with torch.no_grad():
        x = diffusion.starting_noise(2, 0) * 80
        last = None
        for sigma, following in zip(levels.tolist(), [*levels.tolist()[1:], 0.0], strict=True):
            clean = target = denoiser(x, sigma, labels)
            if last is not None and following > 0:  # Lu et al. 2022, algorithm 2, in σ
                h, h_last = math.log(sigma / following), math.log(last[1] / sigma)
                target = (1 + h / (2 * h_last)) * clean - h / (2 * h_last) * last[0]
            x = following / sigma * x + (1 - following / sigma) * target
            last = clean, sigma
    expected = ((x.clamp(-1, 1) + 1) / 2 * 255).round()
    assert (diffusion.sample(denoiser, labels).float() - expected).abs().max() <= 1


def test_fresh_noise_is_another_than_the_starting_noise(denoiser):
    """Image i starts from noise (seed, i) and gets noise of a stream of its own after each step."""
    path = torch.tensor([3.0, 0.5, 0.0])
    start = diffusion.starting_noise(1, 3)
    once = diffusion.sample(denoiser, torch.tensor([1]), seed=3, sigmas=path, solver=solvers.ddpm_steps)
    guided = solvers.Guided(denoiser, torch.tensor([1]))
    with torch.no_grad():
        same, other = (
            batches.to_uint8([*solvers.ddpm_steps(guided, start * float(path[0]), path, lambda n=n: n)][-1][0])
            for n in (start, diffusion.starting_noise(1, 4))
        )
    assert not torch.equal(once, same)
    assert not torch.equal(once, other)
    assert torch.equal(diffusion.starting_noise(3, 3)[:1], start)


def test_noise_is_a_function_of_purpose_seed_and_row_alone():
    """By numpy's own SeedSequence, with seeds of any size; no row of one seed is a row of another."""
    sequence = np.random.SeedSequence(7, spawn_key=(int.from_bytes(b"start", "big"), 2))
    expected = np.random.Generator(np.random.PCG64(sequence)).standard_normal((3, 32, 32), dtype=np.float32)
    assert torch.equal(diffusion.starting_noise(3, 7)[2], torch.from_numpy(expected))
    for a, b in ((0, 2**31), (0, 2**32), (1, 2**32 + 1), (time.time_ns(), time.time_ns() + 1)):
        assert not torch.equal(diffusion.starting_noise(1, a), diffusion.starting_noise(1, b))
    assert not torch.equal(diffusion.starting_noise(1, 94489)[0], diffusion.starting_noise(5911, 0)[5910])
    rows = diffusion.starting_noise(2000, np.int64(1)).flatten(1)
    assert len(rows[:, :2].unique(dim=0)) == 2000
    assert (float(rows.mean()), float(rows.std())) == pytest.approx((0, 1), abs=2e-3)
    torch.manual_seed(batches.generator(0, 3).initial_seed())  # what step 3 of a training draws
    assert not torch.equal(torch.randn(3, 32, 32), diffusion.starting_noise(4, 0)[3])
    assert diffusion.starting_noise(0, 0, size=8).shape == (0, 3, 8, 8)


def test_a_default_type_of_double_changes_no_random_number(denoiser):
    """Whoever sets it, for a calculation of his own, gets the noise and the batches that he would have got."""
    images = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).to(torch.uint8)
    classifier = classifiers.DigitSumClassifier().eval()

    def all_numbers():
        batches.seed_step(0, 1)
        seen = augmentation.jitter(
            batches.normalise(augmentation.shuffle_channels(augmentation.mirror(images))), bend=1
        )
        sigmas = denoiser.training_sigmas(2)
        loss = diffusion.loss(denoiser, images, torch.tensor([0, 1]), sigmas, label_dropout=0.5)
        drawn = diffusion.sample(denoiser, torch.tensor([0, 1]), sigmas=SHORT, guidance=2.0)
        added = diffusion.sample(denoiser, torch.tensor([0, 1]), sigmas=SHORT, solver=solvers.ddpm_steps)
        way = interpolation.between(
            denoiser, 2 * (torch.tensor([1]),), (added[:1] / 255, drawn[:1] / 255), [0.5], sigmas=SHORT
        )
        read = classifiers.predict(classifier, images[:, :, 2:30, 2:30], views=2, jitter={"shift": 1.0})
        return seen, sigmas, loss, drawn, added, way, read

    before = all_numbers()
    torch.set_default_dtype(torch.float64)
    try:
        after = all_numbers()
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(before, after, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_network_made_without_memory_is_whole_once_its_weights_are_loaded():
    empty = unet.build_denoiser(results.load_card("diffusion_paper")["settings"], "meta").to_empty(device="cpu")
    results.load_weights("diffusion_paper", empty)
    whole = unet.build_denoiser(results.load_card("diffusion_paper")["settings"])
    results.load_weights("diffusion_paper", whole)
    path = {"sigmas": SHORT, "seed": 1}
    assert torch.equal(diffusion.sample(empty, [3], **path), diffusion.sample(whole, [3], **path))
    torch.manual_seed(0)
    levels = empty.training_sigmas(1000)  # those of DDPM, which no weights hold
    assert torch.isin(levels, diffusion.ddpm_schedule().float()).all()
    assert len(levels.unique()) > 500
    assert not [name for net in (whole, classifiers.PaperClassifier()) for name, _ in net.named_buffers()]


def test_a_network_can_be_exported_with_any_number_of_images(denoiser):
    count = torch.export.Dim("count", min=2, max=64)
    dynamic = {0: count}
    inputs = torch.randn(4, 3, 16, 16), torch.rand(4) + 0.5, torch.tensor([0, 1, 2, 3])
    program = torch.export.export(denoiser, inputs, dynamic_shapes=(dynamic, dynamic, dynamic)).module()
    x = torch.randn(4, 1, 28, 28).expand(-1, 3, -1, -1).contiguous()
    for net in (classifiers.DigitSumClassifier().eval(), classifiers.PaperClassifier().eval()):
        exported = torch.export.export(net, (x,), dynamic_shapes=(dynamic,)).module()
        more = torch.randn(7, 3, 28, 28)
        torch.testing.assert_close(exported(more), net(more))
    more = torch.randn(7, 3, 16, 16), torch.rand(7) + 0.5, torch.arange(7) % 5
    torch.testing.assert_close(program(*more), denoiser(*more))


def test_sample_takes_the_solver_it_is_given(denoiser):
    labels, noise = torch.tensor([3, 1]), diffusion.starting_noise(2, 5)
    guided = solvers.Guided(denoiser, labels, 2.0, (0.1, 5.0))
    options = {"seed": 5, "sigmas": SHORT, "guidance": 2.0, "interval": (0.1, 5.0)}
    drawn = []
    for solver in (solvers.dpm_solver_steps, solvers.heun_steps, solvers.ddim_steps):
        with torch.no_grad():
            *_, (end, _) = solver(guided, noise * 80, SHORT)
        drawn.append(diffusion.sample(denoiser, labels, solver=solver, **options))
        assert torch.equal(drawn[-1], batches.to_uint8(end))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"guidance": 1.0}, 20),
        ({"guidance": 2.5, "interval": (0.05, 6.0)}, 28),
        ({"guidance": 2.5}, 40),
        ({"guidance": 2.5, "interval": (0.0, 6.0)}, 32),
        ({"solver": solvers.heun_steps}, 39),
        ({"solver": solvers.ddpm_steps, "sigmas": diffusion.ddpm_sigmas(50)}, 50),
    ],
)
def test_evaluations_are_those_that_a_sample_takes(denoiser, monkeypatch, options, expected):
    options = {"sigmas": diffusion.karras_sigmas(20)} | options
    asked, forward = [], denoiser.forward
    monkeypatch.setattr(denoiser, "forward", lambda *inputs: asked.append(1) or forward(*inputs))
    diffusion.sample(denoiser, torch.tensor([1]), **options)
    assert diffusion.evaluations(**options) == len(asked)
    assert len(asked) == expected


THUMBNAILS = {
    "diffusion": [
        [[196, 205, 214, 198], [193, 215, 168, 175], [96, 122, 96, 85], [73, 76, 74, 60]],
        [[166, 104, 203, 247], [127, 46, 75, 239], [40, 25, 37, 125], [68, 73, 81, 102]],
    ],
    "diffusion_plain": [
        [[167, 172, 188, 165], [169, 185, 139, 153], [101, 122, 100, 93], [64, 64, 62, 55]],
        [[147, 108, 224, 245], [113, 58, 90, 244], [52, 33, 46, 139], [58, 71, 82, 111]],
    ],
}


@pytest.mark.parametrize("name", THUMBNAILS)
def test_the_shipped_weights_draw_what_they_drew(name):
    """A bicycle and an oak, six steps, as grey 4 × 4 thumbnails: any change of net, weights or solver shows here."""
    denoiser = unet.build_denoiser(results.load_card(name)["settings"])
    card = results.load_weights(name, denoiser)
    assert [card["classes"][label] for label in (8, 52)] == ["bicycle", "oak tree"]
    options = {"sigmas": diffusion.karras_sigmas(6), "guidance": 2.5, "interval": (0.05, 6.0)}
    noise = torch.stack([torch.randn(3, 32, 32, generator=batches.generator(0, i)) for i in range(2)])
    drawn = diffusion.sample(denoiser, torch.tensor([8, 52]), noise=noise, **options)
    thumbnails = torch.nn.functional.avg_pool2d(drawn.float(), 8).mean(dim=1)
    torch.testing.assert_close(thumbnails, torch.tensor(THUMBNAILS[name]).float(), rtol=0, atol=1.5)


@pytest.mark.parametrize("solver", [solvers.dpm_solver_steps, solvers.heun_steps, solvers.ddpm_steps])
def test_images_are_of_the_noises_size(denoiser, solver):
    for height, width in ((8, 16), (32, 64), (64, 8)):
        noise = torch.randn(2, 3, height, width)
        sampling = {"noise": noise, "sigmas": diffusion.karras_sigmas(3), "solver": solver}
        assert diffusion.sample(denoiser, torch.tensor([0, 1]), **sampling).shape == noise.shape


def test_sample_refuses(denoiser):
    with pytest.raises(ValueError, match="prediction"):
        diffusion.Denoiser(denoiser.net, "velocity")


def test_what_would_be_misread_is_refused_in_words_and_what_is_plain_is_taken():
    denoiser, fall = diffusion.Denoiser(UNet((8, 8, 8))), diffusion.karras_sigmas(2)
    level = "sigmas must be noise levels that fall"
    refused = {
        "labels must be in 0…99": [{"labels": [-1]}, {"labels": torch.tensor([101])}],
        r"labels must be int \(B,\) or float \(B, E\)": [
            {"labels": labels} for labels in ([], 3, torch.tensor([True]), torch.zeros(2, 2, dtype=torch.int64))
        ],
        r"expected noise \(1, 3, H, W\)": [{"noise": torch.zeros(3, 3, 32, 32)}, {"noise": torch.zeros(1, 1, 32, 32)}],
        level: [{"sigmas": sigmas} for sigmas in (fall[:-1], fall.flip(0), fall[-1:], 20, fall * torch.nan, [2, 2, 0])],
        r"interval must be \(low, high\)": [{"guidance": 2.0, "interval": (6.0, 0.05)}],
        "multiples of 4": [{"noise": torch.zeros(1, 3, 30, 32)}],
    }
    for said, options in refused.items():
        for bad in options:
            with pytest.raises(ValueError, match=said):
                diffusion.sample(denoiser, **{"labels": [1], "sigmas": fall} | bad)
    for bad in ({"steps": 1}, {"sigma_min": 0.0}, {"sigma_min": 80.0, "sigma_max": 0.002}):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
            diffusion.karras_sigmas(**bad)
    small = torch.tensor([1], dtype=torch.uint8)
    large = torch.randn(1, 3, 64, 64)
    options = {"noise": large, "solver": solvers.ddpm_steps, "sigmas": [3.0, 1.0, 0.0]}
    assert diffusion.sample(denoiser, small, **options).shape == (1, 3, 64, 64)
    assert diffusion.evaluations(sigmas=[3.0, 1.0, 0.0]) == 2
    plain = diffusion.sample(denoiser, [1, 2], noise=diffusion.starting_noise(2, 0).numpy(), sigmas=fall.tolist())
    assert torch.equal(plain, diffusion.sample(denoiser, torch.tensor([1, 2]), seed=0, sigmas=fall))


def test_the_null_label_draws_what_the_network_says_of_no_class(denoiser):
    """The label after the last class, which guidance compares with."""
    images = diffusion.sample(denoiser, torch.tensor([5, 4]), sigmas=SHORT, seed=2)
    embedded = diffusion.sample(denoiser, denoiser.net.class_embedding.weight[[5, 4]], sigmas=SHORT, seed=2)
    assert torch.equal(images, embedded)
    for beyond in (6, -1):
        with pytest.raises(ValueError, match="labels must be in 0…4"):
            diffusion.sample(denoiser, torch.tensor([beyond]), sigmas=SHORT)


def test_rows_are_one_for_each_image_and_batches_of_one_or_more(denoiser):
    options = {
        "solver": solvers.ddpm_steps,
        "sigmas": SHORT,
        "noise": diffusion.starting_noise(1, 0).expand(2, -1, -1, -1),
    }
    same, other = (diffusion.sample(denoiser, [1, 1], rows=rows, **options) for rows in ([0, 0], [0, 1]))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(other[0], other[1])
    for wrong in ({"rows": [0]}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="a row for each of 2 labels and a batch of 1 or more"):
            diffusion.sample(denoiser, [1, 1], **options | wrong)
