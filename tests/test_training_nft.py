"""What an independent implementation of DiffusionNFT must satisfy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training import nft

SETTINGS = {"nft_beta": 0.1, "advantage_clip": 5.0, "kl_coef": 0.0}


def batch(seed=0, size=4, width=6, dtype=torch.float64):
    """x0, x_t, t, target velocity, and an old policy's velocity."""
    g = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, size, 3, width, generator=g, dtype=dtype)
    t = torch.rand(size, generator=g, dtype=dtype) * 0.9 + 0.05
    x_t = torch.lerp(x0, noise, t.view(-1, 1, 1))
    return x0, x_t, t, noise - x0, torch.randn(x0.shape, generator=g, dtype=dtype)


def evaluate(v, v_old, adv, x0, x_t, t, v_ref=None, **settings):
    settings = {**SETTINGS, **settings}
    r = nft.optimality(adv, settings["advantage_clip"])
    told = nft.loss(v, v_old, v_old if v_ref is None else v_ref, x0=x0, x_t=x_t, t=t, r=r, **settings)
    return nft.NFTLoss(told.total.mean(), told.policy.mean(), told.kl.mean())


def gradient(v_old, adv, x0, x_t, t, **settings):
    v = v_old.clone().requires_grad_()
    evaluate(v, v_old, adv, x0, x_t, t, **settings).total.backward()
    return v.grad


def test_the_loss_and_its_gradient_are_those_of_the_authors_code():
    """The numbers are those that scripts/train_nft_sd3.py of NVlabs/DiffusionNFT gives for these tensors."""

    def wave(turns):
        return torch.sin(torch.arange(18, dtype=torch.float64).view(3, 2, 3) * turns)

    x0, noise, v, v_old, v_ref = map(wave, (0.3, 0.7, 1.1, 1.3, 1.7))
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    adv = torch.tensor([1.5, -7.0, 0.25], dtype=torch.float64)
    v.requires_grad_()
    told = evaluate(v, v_old, adv, x0, torch.lerp(x0, noise, t.view(-1, 1, 1)), t, v_ref, kl_coef=0.01).total
    told.backward()
    assert float(told.detach()) == pytest.approx(41.2541559223479, rel=1e-12)
    assert v.grad.flatten(1).norm(dim=1).tolist() == pytest.approx(
        [0.10502606038646553, 1.0413749657555322, 0.10872417427280316], rel=1e-12
    )


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("clip", [2.0, 5.0])
def test_on_policy_the_gradient_is_the_advantage_times_the_error_whatever_beta_and_clip(beta, clip):
    x0, x_t, t, target, v_old = batch()
    adv = torch.tensor([1.5, -0.3, 0.0, -1.9], dtype=torch.float64)
    found = gradient(v_old, adv, x0, x_t, t, nft_beta=beta, advantage_clip=clip)
    size = (v_old - target).abs().flatten(1).mean(1)
    scale = 2 * t * adv / (v_old[0].numel() * len(v_old) * size)
    torch.testing.assert_close(found, scale.view(-1, 1, 1) * (v_old - target))


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_on_policy_the_value_does_not_depend_on_the_advantages(adv):
    x0, x_t, t, _, v_old = batch()
    told = evaluate(v_old, v_old, torch.tensor(adv, dtype=torch.float64), x0, x_t, t)
    silent = evaluate(v_old, v_old, torch.zeros(4, dtype=torch.float64), x0, x_t, t)
    torch.testing.assert_close(told.policy, silent.policy)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_without_adaptive_weights_the_minimum_is_old_plus_the_weighted_error_over_beta(beta):
    g = torch.Generator().manual_seed(3)
    x_t, v_old = torch.randn(2, 1, 5, generator=g, dtype=torch.float64)
    t = torch.full((64,), 0.4, dtype=torch.float64)
    target = torch.randn(64, 5, generator=g, dtype=torch.float64)
    x0 = x_t - t[:, None] * target
    r = torch.rand(64, generator=g, dtype=torch.float64)
    best = v_old + ((2 * r - 1)[:, None] * (target - v_old)).mean(0, keepdim=True) / beta
    v = best.clone().requires_grad_()
    found = nft.loss(
        v.expand(64, 5), v_old.expand(64, 5), v_old.expand(64, 5),
        x0=x0, x_t=x_t.expand(64, 5), t=t, r=r, nft_beta=beta, advantage_clip=5.0, kl_coef=0.0, adaptive=False,
    )  # fmt: skip
    found.total.mean().backward()
    assert v.grad.abs().max() < 1e-12
    assert best.sub(v_old).abs().max() > 0.05


def test_an_even_chance_pulls_back_to_the_old_policy():
    x0, x_t, t, _, v_old = batch()
    v = (v_old + 0.3 * torch.randn_like(v_old)).requires_grad_()
    evaluate(v, v_old, torch.zeros(4), x0, x_t, t, adaptive=False).total.backward()
    direction = (v_old - v).detach()
    cosines = nn.functional.cosine_similarity(-v.grad.flatten(1), direction.flatten(1))
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_a_group_of_equal_rewards_moves_nothing():
    x0, x_t, t, _, v_old = batch()
    adv = nft.advantages(torch.full((4,), 0.7, dtype=torch.float64))
    assert not adv.any()
    assert gradient(v_old, adv, x0, x_t, t).abs().max() < 1e-12


def test_the_reference_costs_nothing_where_nothing_was_learned_and_pulls_where_something_was():
    x0, x_t, t, _, v_old = batch()
    adv = torch.ones(4, dtype=torch.float64)
    assert evaluate(v_old, v_old, adv, x0, x_t, t, kl_coef=3.0).kl == 0
    v = (v_old + 1).requires_grad_()
    told = evaluate(v, v_old, adv, x0, x_t, t, kl_coef=3.0)
    assert told.kl.item() == pytest.approx(1)
    assert told.total.item() == pytest.approx(told.policy.item() + 3)


def test_gradients_flow_into_the_trained_policy_alone():
    x0, x_t, t, _, v_old = batch()
    v, old, ref = (v_old.clone().requires_grad_() for _ in range(3))
    evaluate(v, old, torch.ones(4, dtype=torch.float64), x0, x_t, t, v_ref=ref, kl_coef=1.0).total.backward()
    assert v.grad is not None
    assert old.grad is None
    assert ref.grad is None


def test_the_gradient_is_that_of_finite_differences_with_the_weights_held():
    x0, x_t, t, _, v_old = batch(5, size=2, width=2)
    adv = torch.tensor([2.0, -0.7], dtype=torch.float64)
    v = v_old + 0.2 * (x_t - x0)
    live = v.clone().requires_grad_()
    evaluate(live, v_old, adv, x0, x_t, t, v_ref=v_old + 0.1, kl_coef=0.3).total.backward()
    r = nft.optimality(adv)
    held = [_size(p, x0, x_t, t) for p in nft.implicit_policies(v, v_old, 0.1)]

    def frozen(flat):
        at = flat.view_as(v)
        fits = [
            ((x_t - t.view(-1, 1, 1) * p - x0) ** 2).flatten(1).mean(1) / w
            for p, w in zip(nft.implicit_policies(at, v_old, 0.1), held, strict=True)
        ]
        return 5 * ((r * fits[0] + (1 - r) * fits[1]) / 0.1).mean() + 0.3 * ((at - v_old - 0.1) ** 2).mean()

    flat, h = v.flatten(), 1e-6
    steps = torch.eye(len(flat), dtype=torch.float64) * h
    numeric = torch.stack([(frozen(flat + s) - frozen(flat - s)) / (2 * h) for s in steps])
    torch.testing.assert_close(live.grad.flatten(), numeric, rtol=1e-6, atol=1e-8)


def _size(v, x0, x_t, t):
    return (x_t - t.view(-1, 1, 1) * v - x0).abs().flatten(1).mean(1).clamp_min(1e-5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=16))
def test_advantages_have_mean_zero_and_optimality_lies_between_zero_and_one(rewards):
    adv = nft.advantages(torch.tensor(rewards, dtype=torch.float64))
    assert abs(adv.mean()) < 1e-6
    r = nft.optimality(adv)
    assert ((r >= 0) & (r <= 1)).all()


def test_optimality_is_a_half_at_zero_and_clipped_at_the_limit():
    assert nft.optimality(torch.tensor([-9.0, -5.0, 0.0, 2.5, 5.0, 9.0])).tolist() == [0, 0, 0.5, 0.75, 1, 1]


def test_the_old_policy_follows_fully_at_first_and_by_halves_later():
    assert [nft.old_decay(s) for s in (0, 100, 500, 10_000)] == [0, pytest.approx(0.1), 0.5, 0.5]
    old, new = torch.zeros(3), torch.full((3,), 8.0)
    nft.follow(old, new, 0.75)
    assert old.tolist() == [2, 2, 2]


class Flow(nn.Module):
    """A velocity for points of the plane."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x, t):
        return self.net(torch.cat([x, t[:, None]], 1))


def sampled(model, count, g, steps=10):
    with torch.no_grad():
        x = torch.randn(count, 2, generator=g)
        for k in range(steps):
            x = x - model(x, torch.full((count,), 1 - k / steps)) / steps
    return x


def test_on_a_mixture_in_the_plane_the_reward_rises():
    """Four modes on a circle; the reward wants the one on the right, which a quarter of the samples hits first."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    angles = torch.arange(4) * math.pi / 2
    modes = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    reward = lambda x: torch.exp(-((x - modes[0]) ** 2).sum(1) / 2)  # noqa: E731
    policy = Flow()
    _fit(policy, modes, g)
    old, ref = Flow(), Flow()
    for other in (old, ref):
        other.load_state_dict(policy.state_dict())
    first = reward(sampled(policy, 512, g)).mean()
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    for epoch in range(20):
        x0 = sampled(old, 256, g)
        r = nft.optimality(nft.advantages(reward(x0)))
        for _ in range(4):
            t, noise = torch.rand(256, generator=g) * 0.98 + 0.01, torch.randn(256, 2, generator=g)
            x_t = torch.lerp(x0, noise, t[:, None])
            told = nft.loss(
                policy(x_t, t), old(x_t, t), ref(x_t, t), x0=x0, x_t=x_t, t=t, r=r, **{**SETTINGS, "kl_coef": 1e-3}
            )
            optimizer.zero_grad()
            told.total.mean().backward()
            optimizer.step()
        for a, b in zip(old.parameters(), policy.parameters(), strict=True):
            nft.follow(a, b, nft.old_decay(epoch))
    last = reward(sampled(policy, 512, g)).mean()
    assert first < 0.4
    assert last > first + 0.2


def _fit(model, modes, g):
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        x0 = modes[torch.randint(4, (256,), generator=g)] + 0.2 * torch.randn(256, 2, generator=g)
        t, noise = torch.rand(256, generator=g), torch.randn(256, 2, generator=g)
        error = model(torch.lerp(x0, noise, t[:, None]), t) - (noise - x0)
        optimizer.zero_grad()
        (error**2).mean().backward()
        optimizer.step()
