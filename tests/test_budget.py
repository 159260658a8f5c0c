import pytest
import torch
from torch import nn

from helpers.budget import Budget, BudgetError, count_parameters
from helpers.classifiers import DigitSumClassifier, PaperClassifier
from helpers.unet import UNet, plain


def test_counts_of_the_nets():
    assert count_parameters(PaperClassifier()) == 98_740
    assert count_parameters(DigitSumClassifier()) <= 100_000
    assert count_parameters(UNet()) == 937_283 <= 948_856
    assert count_parameters(plain()) == 936_275 <= 948_856


@pytest.mark.parametrize("make", [PaperClassifier, DigitSumClassifier, UNet, plain])
def test_count_is_the_courseworks(make):
    net = make()
    assert count_parameters(net) == len(nn.utils.parameters_to_vector(net.parameters()))


def test_shared_once_frozen_included_buffers_not():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    assert count_parameters(net) == 9 + 3 + 3 + 6


def test_refuses_a_model_over_the_limit():
    assert Budget(parameters=12, steps=1).check(nn.Linear(3, 3)) == 12
    with pytest.raises(BudgetError, match="1 over the limit of 11"):
        Budget(parameters=11, steps=1).check(nn.Linear(3, 3))


@pytest.mark.parametrize("limits", [{"parameters": 0, "steps": 1}, {"parameters": 1, "steps": 0}])
def test_refuses_senseless_limits(limits):
    with pytest.raises(ValueError, match="positive"):
        Budget(**limits)


def _one_weight():
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    return weight, torch.optim.SGD([weight], lr=0.1)


def test_stops_the_step_that_would_be_one_too_many_across_a_resume():
    weight, optimizer = _one_weight()
    first = Budget(parameters=1, steps=3)
    first.step(optimizer)
    first.step(optimizer)
    resumed = Budget(parameters=1, steps=3)
    resumed.load_state_dict(first.state_dict())
    resumed.step(optimizer)
    before = weight.detach().clone()
    with pytest.raises(BudgetError, match="one too many"):
        resumed.step(optimizer)
    assert torch.equal(weight, before)
    assert resumed.steps_used == 3


def test_a_step_the_scaler_skips_is_not_counted():
    weight, optimizer = _one_weight()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    budget = Budget(parameters=1, steps=5)
    for factor, taken in ((1.0, True), (float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(weight.sum() * factor).backward()
        before = weight.detach().clone()
        assert budget.step(optimizer, scaler) is taken
        assert torch.equal(weight, before) is not taken
    assert budget.steps_used == 2
    assert budget.certificate(nn.Linear(1, 1, bias=False)) == {
        "parameters": 1, "parameter_limit": 1, "steps": 2, "step_limit": 5,
    }  # fmt: skip


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        Budget(parameters=float("nan"), steps=1)


def test_the_courseworks_line_counts_a_channels_last_net_as_the_docstring_says():
    net = UNet().to(memory_format=torch.channels_last)
    count = count_parameters(net)
    vector = torch.nn.utils.parameters_to_vector(net.to(memory_format=torch.contiguous_format).parameters())
    assert count == len(vector)


def test_steps_of_a_scale_that_has_fallen_to_nothing_are_not_counted():
    weight, optimizer = _one_weight()
    scaler, budget = torch.amp.GradScaler("cpu", init_scale=2e-45), Budget(parameters=1, steps=5)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(weight.sum() * float("inf")).backward()
        assert budget.step(optimizer, scaler) is False
    assert scaler.get_scale() == 0
    assert budget.steps_used == 0
    assert torch.equal(weight, torch.ones(1))


def test_a_budget_holds_what_it_loads_and_nothing_of_its_own():
    budget = Budget(parameters=1, steps=10)
    budget.steps_used = 3
    budget.load_state_dict({"steps_used": 5})
    assert budget.state_dict() == {"steps_used": 5}
