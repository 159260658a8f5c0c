import copy

import pytest
import torch
from torch import nn

from helpers import muon


class _Mixed(nn.Module):
    """A tall, a wide and a thin matrix, a convolution, biases and an embedding."""

    def __init__(self):
        super().__init__()
        self.tall, self.wide, self.thin = nn.Linear(12, 40), nn.Linear(40, 16), nn.Linear(16, 3)
        self.conv, self.table = nn.Conv2d(9, 10, 3), nn.Embedding(20, 12)


def _steps(net, optimizer, steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_muon_equals_adam_and_torchs_own_muon_on_their_shares():
    torch.manual_seed(0)
    nets = [_Mixed() for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    start = {name: value.clone() for name, value in nets[0].state_dict().items()}
    _steps(nets[0], muon.Muon(nets[0], lr=0.01))
    _steps(nets[1], torch.optim.Adam(nets[1].parameters(), lr=0.01, betas=(0.9, 0.99)))
    matrices = {"tall.weight", "wide.weight", "conv.weight"}
    for name, value in nets[0].state_dict().items():
        same_as_adam = torch.allclose(value, nets[1].state_dict()[name], atol=1e-6)
        assert same_as_adam == (name not in matrices), name
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon of its own to compare with")
    options = {"lr": 0.01, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    theirs = nets[2]
    theirs.conv = nn.Linear(81, 10)  # torch's takes matrices only
    theirs.conv.weight.data = start["conv.weight"].flatten(1).clone()
    reference = torch.optim.Muon([theirs.tall.weight, theirs.wide.weight, theirs.conv.weight], **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for name, parameter in nets[0].named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            theirs.get_parameter(name).grad = gradient.flatten(1) if name == "conv.weight" else gradient
        reference.step()
    for name in matrices:
        moved = nets[0].get_parameter(name).detach().flatten(1) - start[name].flatten(1)
        expected = theirs.get_parameter(name).detach() - start[name].flatten(1)
        assert float((moved - expected).norm() / expected.norm()) < 0.02, name  # theirs computes in bfloat16


def test_weights_of_one_shape_take_each_its_own_step():
    torch.manual_seed(0)
    both = nn.ModuleList([nn.Linear(12, 20, bias=False) for _ in range(2)])
    start, gradients = [layer.weight.detach().clone() for layer in both], torch.randn(2, 20, 12)
    for layer, gradient in zip(both, gradients, strict=True):
        layer.weight.grad = gradient.clone()
    muon.Muon(both, lr=0.01).step()
    for layer, before, gradient in zip(both, start, gradients, strict=True):
        alone = nn.Linear(12, 20, bias=False)
        alone.weight.data.copy_(before)
        alone.weight.grad = gradient.clone()
        muon.Muon(alone, lr=0.01).step()
        torch.testing.assert_close(layer.weight, alone.weight)


def test_orthogonalise_brings_the_singular_values_near_one():
    torch.manual_seed(0)
    two = [torch.randn(2, *shape) for shape in ((12, 30), (30, 12), (12, 20), (9, 40))]
    for matrix, found in ((pair[i], muon.orthogonalise(pair)[i]) for pair in two for i in (0, 1)):
        assert found.shape == matrix.shape
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6
        assert values.max() < 1.3
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        assert float(((left.T @ found @ right.T).diagonal()).min()) > 0.6  # same directions


def test_a_net_without_matrices_is_left_to_adam():
    torch.manual_seed(0)
    nets = [nn.Linear(2, 3), nn.Linear(2, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    _steps(nets[0], muon.Muon(nets[0], lr=0.01))
    _steps(nets[1], torch.optim.Adam(nets[1].parameters(), lr=0.01, betas=(0.9, 0.99)))
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


def test_a_net_of_matrices_only_leaves_nothing_to_adam():
    net = nn.Linear(12, 12, bias=False)
    before = net.weight.detach().clone()
    _steps(net, muon.Muon(net, lr=0.01))
    assert not torch.equal(net.weight, before)


def test_a_weight_of_two_layers_takes_one_step():
    moved = []
    for tied in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False))
        if tied:
            net[1].weight = net[0].weight
        before = net[0].weight.detach().clone()
        optimizer = muon.Muon(net, lr=0.01)
        for weight in net.parameters():
            weight.grad = torch.ones(12, 12) + torch.eye(12)
        optimizer.step()
        moved.append(net[0].weight.detach() - before)
    torch.testing.assert_close(*moved)


def test_rate_and_count_are_tensors_beside_the_weights_as_a_recorded_step_needs_them():
    net = nn.Linear(16, 16).to("meta")
    optimizer = muon.Muon(net, lr=0.5)
    state = optimizer.state_dict()
    assert all(group["lr"].is_meta and group["steps"].is_meta for group in optimizer.param_groups)
    for group in state["param_groups"]:
        group |= {"lr": 0.25, "steps": 3.0}
    optimizer = muon.Muon(nn.Linear(16, 16), lr=0.5)
    optimizer.load_state_dict(state)
    assert [(float(g["lr"]), float(g["steps"])) for g in optimizer.param_groups] == [(0.25, 3.0)] * 2
    assert all(isinstance(group[name], torch.Tensor) for group in optimizer.param_groups for name in ("lr", "steps"))


def test_a_closure_computes_the_loss_and_the_gradients_first():
    """As of any optimiser of torch's, also where gradients are switched off around it."""
    torch.manual_seed(0)
    net, x = nn.Linear(12, 12), torch.randn(4, 12)
    other = copy.deepcopy(net)
    optimizer, plain = muon.Muon(net, 0.01), muon.Muon(other, 0.01)

    def closure():
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    other(x).square().mean().backward()
    expected = other(x).square().mean().item()
    plain.step()
    assert optimizer.step(closure).item() == pytest.approx(expected)
    assert torch.equal(net.weight, other.weight)
    assert plain.step() is None


@pytest.mark.parametrize(("rows", "columns", "by_muon"), [(8, 20, False), (20, 8, False), (9, 20, True), (20, 9, True)])
def test_matrices_of_more_than_eight_rows_and_columns_move_orthogonally_and_smaller_ones_as_adam_says(
    rows, columns, by_muon
):
    layer = nn.Linear(columns, rows, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    muon.Muon(layer, 0.01).step()
    moved = (before - layer.weight.detach()) / 0.01
    if by_muon:
        values = torch.linalg.svdvals(moved) / (0.2 * max(rows, columns) ** 0.5)
        assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    else:
        torch.testing.assert_close(moved, layer.weight.grad.sign(), rtol=1e-4, atol=1e-4)


def test_gradients_near_nothing_move_a_bias_by_less_than_the_rate():
    """Adam's epsilon, 1e-8 as in torch's own, is what keeps noise of the last digit from moving weights."""
    for size in (1e-9, 1e-8, 1e-7):
        ours, theirs = nn.Linear(1, 1), nn.Linear(1, 1)
        theirs.load_state_dict(ours.state_dict())
        optimizers = muon.Muon(ours, 0.1), torch.optim.Adam(theirs.parameters(), 0.1, betas=(0.9, 0.99))
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            net.bias.grad = torch.full((1,), size)
            optimizer.step()
        torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-6)
