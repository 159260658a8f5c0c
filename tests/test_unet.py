import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import unet
from helpers.budget import count_parameters


def _shaken(net):
    """With every parameter away from its start, the zero-initialised layers too."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


def _inputs(size=8):
    return torch.randn(3, 3, size, size), torch.tensor([-1.0, 0.2, 1.5]), torch.tensor([0, 4, 5])


def test_a_looped_block_is_its_textbook_formula_loop_by_loop():
    block = _shaken(unet.Block(16, 16, loops=3))
    x, modulation = torch.randn(2, 16, 4, 4), torch.randn(2, 2, 16)
    for loop in range(3):
        scale, shift = (modulation[:, i, :, None, None] * block.gain[loop, i, :, None, None] for i in range(2))
        h = F.silu(F.group_norm(x, 8, block.norm_in.weight, block.norm_in.bias))
        h = F.conv2d(h, block.conv_in.weight, block.conv_in.bias, padding=1)
        h = F.silu(F.group_norm(h, 8, block.norm_out.weight, block.norm_out.bias) * (1 + scale) + shift)
        h = F.conv2d(h, block.conv_out.weight, block.conv_out.bias, padding=1)
        expected = x + h * block.gain_out[loop]
        torch.testing.assert_close(block(x, modulation, loop), expected)


def test_loops_share_the_convolutions_and_nothing_else():
    once, thrice = (unet.UNet((8, 16), (1, 1), 5, loops=(1, loops)) for loops in (1, 3))
    more = {name: p.numel() for name, p in thrice.named_parameters()}
    for name, parameter in once.named_parameters():
        more[name] -= parameter.numel()
    assert {name: n for name, n in more.items() if n} == {"down.1.0.gain": 2 * 2 * 16, "down.1.0.gain_out": 3 * 16}


def test_each_level_is_used_as_often_as_said():
    net, calls, loops = unet.UNet((8, 16, 24), (1, 2, 1), 5, loops=(1, 2, 3)), [], []
    for name, module in net.named_modules():
        if isinstance(module, unet.Block | unet.Attention):
            module.register_forward_hook(lambda m, inputs, out, name=name: calls.append((name, tuple(out.shape[2:]))))
            if isinstance(module, unet.Block):
                module.register_forward_hook(lambda m, inputs, out, name=name: loops.append((name, inputs[2])))
    net(*_inputs(16))
    first, second = ("down.1.0", (8, 8)), ("down.1.1", (8, 8))
    middle, attention = ("down.2.0", (4, 4)), ("attention", (4, 4))
    up = [("up.1.0", (8, 8)), ("up.1.1", (8, 8))]
    assert calls == [("down.0.0", (16, 16)), *[first, second] * 2, *[middle, attention] * 3, *up * 2,
                     ("up.0.0", (16, 16))]  # fmt: skip
    assert [loop for name, loop in loops if name == "down.1.1"] == [0, 1]  # each loop with gains of its own
    assert [loop for name, loop in loops if name == "down.2.0"] == [0, 1, 2]
    assert [loop for name, loop in loops if name == "up.1.0"] == [0, 1]


def test_levels_are_joined_by_mean_pooling_and_by_repeating_pixels():
    """A network whose blocks add nothing is its 1×1 convolutions, pooling and repeating alone."""
    net = unet.UNet((8, 8), (1, 1), 5, transitions=True)
    nn.init.normal_(net.head.weight)
    x, noise, labels = _inputs()
    seen = {}
    net.enter_up[0].register_forward_hook(lambda m, inputs, out: seen.update(joined=inputs[0]))
    net(x, noise, labels)
    top = net.stem(x)
    below = F.avg_pool2d(top, 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(seen["joined"], torch.cat([below, top], dim=1))


def test_class_embeddings_begin_at_half_the_usual_spread():
    torch.manual_seed(0)
    weight = unet.UNet().class_embedding.weight.detach()
    assert weight.shape == (101, 128)
    assert float(weight.std()) == pytest.approx(0.5, rel=0.03)


def test_the_plain_network_has_no_loops_and_no_transitions():
    net = unet.plain()
    assert net.loops == (1, 1, 1)
    assert not any("enter" in name or "gain_out" in name for name in net.state_dict())
    assert count_parameters(net) == 936_275


@pytest.mark.parametrize("make", [unet.UNet, unet.plain])
def test_noise_level_class_and_embedding_reach_the_output(make):
    net = _shaken(make((16, 24, 32), classes=5))
    x, noise, labels = _inputs()
    with torch.no_grad():
        out = net(x, noise, labels)
        assert out.shape == x.shape
        for changed in (net(x, noise + 0.1, labels), net(x, noise, labels.roll(1))):
            assert (changed - out).flatten(1).abs().amax(dim=1).min() > 1e-4
        torch.testing.assert_close(net(x, noise, net.class_embedding(labels)), out)


def test_the_norm_compiled_for_a_gpu_is_torchs_own(monkeypatch):
    """On a CPU the compiled form never runs, so it is called here as if on a GPU."""

    class OnGPU(torch.Tensor):
        is_cuda = True

    norm = _shaken(unet.GroupNorm(8, 48))
    x = (3 * torch.randn(4, 48, 6, 6) + 2).as_subclass(OnGPU).requires_grad_()
    expected = F.group_norm(x, 8, norm.weight, norm.bias)
    assert torch.equal(norm(x), expected)  # not compiled: torch's own
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    called = []
    monkeypatch.setattr(F, "group_norm", lambda *_: called.append(1))
    found = norm(x)
    assert not called
    torch.testing.assert_close(found, expected)
    weights = torch.randn(4, 48, 6, 6)
    gradients = [torch.autograd.grad((out * weights).sum(), [x, norm.weight, norm.bias]) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_noise_levels_are_told_apart_by_waves_from_a_quarter_to_sixteen_half_turns():
    frequencies = unet.frequencies(torch.zeros(1)) / torch.pi
    assert (len(frequencies), float(frequencies[0]), float(frequencies[-1])) == (32, 0.25, 16.0)
    torch.testing.assert_close(frequencies[1:] / frequencies[:-1], torch.full((31,), 2 ** (6 / 31)))


def test_an_untrained_network_says_nothing_and_each_block_changes_nothing():
    x, noise, labels = torch.randn(2, 3, 8, 8), torch.randn(2), torch.tensor([0, 1])
    assert not unet.UNet((8, 8, 8))(x, noise, labels).any()
    features = torch.randn(2, 8, 4, 4)
    assert torch.equal(unet.Block(8, 8, 2)(features, torch.randn(2, 2, 8), 1), features)


@pytest.mark.parametrize("labels", [torch.tensor([8.0]), torch.tensor([8]), torch.zeros(128), torch.zeros(3, 127)])
def test_labels_that_would_serve_several_images_are_refused(labels):
    x, noise, _ = _inputs()
    with pytest.raises(ValueError, match=r"int64 \(3,\) or class embeddings float \(3, 128\)"):
        unet.UNet((8, 16), (1, 1), 5)(x, noise, labels)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 30, 32), (2, 3, 32, 30)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), H and W multiples of 4"):
        unet.UNet((8, 8, 8))(torch.zeros(shape), torch.zeros(shape[0]), torch.zeros(shape[0], dtype=torch.int64))


def test_widths_that_the_norms_cannot_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        unet.UNet((48, 90, 128))


@pytest.mark.parametrize("wrong", [{"widths": (8, 16), "blocks": (1, 1, 1)}, {"blocks": (1, 1)}, {"loops": (1, 2)}])
def test_levels_of_another_number_and_loops_without_transitions_are_refused(wrong):
    with pytest.raises(ValueError, match="as many as blocks and loops"):
        unet.UNet(**wrong)
    with pytest.raises(ValueError, match="loops need transitions"):
        unet.UNet(transitions=False)
    four = unet.UNet((8, 8, 8, 8), classes=5)  # one block a level, used once more on each
    assert (four.loops, [*map(len, four.down)], [*map(len, four.up)]) == ((1, 2, 3, 4), [1] * 4, [1] * 3)
    assert four(torch.zeros(2, 3, 8, 16), torch.zeros(2), torch.tensor([0, 5])).shape == (2, 3, 8, 16)


@pytest.mark.parametrize("name", ["looped", "plain"])
def test_a_denoiser_is_built_as_its_settings_say(name):
    settings = {"network": name, "widths": [8, 16, 24], "prediction": "epsilon", "batch": 3}  # widths as in a card
    denoiser = unet.build_denoiser(settings)
    assert type(denoiser.net) is unet.UNet
    assert denoiser.net.widths == (8, 16, 24)
    assert max(denoiser.net.loops) == {"looped": 3, "plain": 1}[name]
    assert denoiser.prediction == "epsilon"
    assert denoiser.net.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert denoiser(*unet.PROBE).shape == (1, 3, 32, 32)
    assert next(unet.build_denoiser(settings, "meta").parameters()).device.type == "meta"


def test_attention_is_torchs_own_multi_head_attention():
    """Scale, order of the heads, and where queries, keys and values lie."""
    attention = _shaken(unet.Attention(16, heads=4))
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    reference.in_proj_weight.data = attention.qkv.weight.data.flatten(1)
    reference.in_proj_bias.data = attention.qkv.bias.data
    reference.out_proj.weight.data = attention.project.weight.data.flatten(1)
    reference.out_proj.bias.data = attention.project.bias.data
    x = torch.randn(2, 16, 4, 5)
    tokens = attention.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
    found = reference(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(attention(x), x + found, rtol=1e-4, atol=1e-5)


def test_what_enters_the_modulation_and_the_head_has_gone_through_silu():
    net, seen = _shaken(unet.UNet((8, 16), classes=5)), {}
    for name in ("noise_embedding", "modulation.0", "modulation.1", "norm", "head"):
        part = net.get_submodule(name)
        part.register_forward_hook(lambda _, given, out, name=name: seen.update({name: (given[0], out)}))
    x, noise, labels = torch.randn(3, 3, 8, 8), torch.tensor([-1.0, 0.3, 1.2]), torch.tensor([0, 4, 5])
    net(x, noise, labels)
    embedding = seen["noise_embedding"][1] + net.class_embedding.weight[labels]
    for level in range(2):
        torch.testing.assert_close(seen[f"modulation.{level}"][0], embedding * embedding.sigmoid())
    normed = seen["norm"][1]
    torch.testing.assert_close(seen["head"][0], normed * normed.sigmoid())
    angles = noise[:, None] * torch.pi * 2 ** torch.linspace(-2, 4, 32)
    torch.testing.assert_close(
        seen["noise_embedding"][0], torch.cat([angles.sin(), angles.cos()], 1), atol=1e-4, rtol=1e-4
    )
