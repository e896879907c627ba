"""The oracle itself: against automatic differentiation, Monte Carlo and numerical integration."""

import pytest
import torch
from conftest import correlated_gaussian, times_of

from score_sde import VPSDE, Gaussian, GaussianMixture

F64 = torch.float64


def test_score_is_the_gradient_of_log_prob(sde, mixture):
    t = times_of(sde, 4)
    x = torch.randn(4, 2, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixture.log_prob(x, sde, t).sum(), x)
    torch.testing.assert_close(mixture.score(sde)(x.detach(), t), gradient)


def test_density_integrates_to_one_and_matches_torch(mixture):
    sde, t = VPSDE(), torch.tensor(0.2, dtype=F64)
    axis = torch.linspace(-6, 6, 601, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    assert abs(float(mixture.log_prob(points, sde, t).exp().sum()) * 0.02**2 - 1) < 1e-6
    components = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances)
    weights = torch.distributions.Categorical(mixture.weights)
    reference = torch.distributions.MixtureSameFamily(weights, components)
    torch.testing.assert_close(mixture.log_prob(points[::997]), reference.log_prob(points[::997]))


def test_samples_have_the_moments_and_follow_the_seed(mixture):
    x = mixture.sample(200_000, seed=0)
    torch.testing.assert_close(x.mean(0), mixture.mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), mixture.covariance(), atol=0.01, rtol=0)
    assert torch.equal(mixture.sample(5, seed=3), mixture.sample(5, seed=3))
    assert abs(mixture.std() ** 2 - float(mixture.covariance().diagonal().mean())) < 1e-12


def test_denoiser_is_the_posterior_mean_by_monte_carlo(mixture):
    sde, t = VPSDE(), torch.tensor(0.3, dtype=F64)
    x0 = mixture.sample(400_000, seed=1)
    x = torch.tensor([[0.5, 0.2], [-0.4, -0.6]], dtype=F64)
    for point in x:
        offset = (point - sde.alpha(t) * x0) / sde.sigma(t)
        weight = torch.softmax(-0.5 * offset.square().sum(1), 0)
        got = mixture.denoiser(sde)(point[None], t)[0]
        torch.testing.assert_close(got, weight @ x0, atol=5e-3, rtol=0)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)])
def test_any_state_shape(shape, sde):
    data = correlated_gaussian(shape)
    x, t = torch.randn(3, *shape), times_of(sde, 3)
    score = data.score(sde)(x, t)
    flat = Gaussian(data.means.flatten(), data.covariances[0]).score(sde)(x.flatten(1), t)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score.flatten(1), flat)
    with pytest.raises(ValueError, match="states must have shape"):
        data.score(sde)(torch.zeros(3, 7), t)


def test_flow_carries_marginals_and_is_a_group(sde):
    data = correlated_gaussian((4,))
    s, u, t = times_of(sde, 3)
    x = torch.randn(6, 4, dtype=F64)
    direct = data.flow(sde, x, t, s)
    torch.testing.assert_close(data.flow(sde, data.flow(sde, x, t, u), u, s), direct)
    torch.testing.assert_close(data.flow(sde, direct, s, t), x)
    # The change of density along the flow is what the two Gaussians say it is.
    jacobian = torch.func.jacfwd(lambda y: data.flow(sde, y[None], t, s)[0])(x[0])
    change = data.log_prob(x[:1], sde, t) - data.log_prob(direct[:1], sde, s)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], change[0])


def test_flow_solves_the_probability_flow_ode(sde):
    data = correlated_gaussian((2,))
    flow, x = sde.reverse(data.score(sde), 0.0), torch.randn(3, 2, dtype=F64)
    t = times_of(sde, 5)[2] + 1.3e-4
    h = 1e-5 * float(t)
    slope = (data.flow(sde, x, t, t + h) - data.flow(sde, x, t, t - h)) / (2 * h)
    torch.testing.assert_close(flow.drift(x, t), slope, rtol=1e-6, atol=1e-7)


def test_flow_of_a_mixture_on_the_line_solves_the_ode(sde):
    data = GaussianMixture([0.7, 0.3], [[-1.0], [0.5]], [0.1, 0.02])
    x = sde.prior_std() * torch.tensor([[-6.0], [-0.5], [0.1], [2.0], [6.0]], dtype=F64)
    t = torch.tensor(sde.t_max, dtype=F64)
    for u in times_of(sde, 7)[1:-1]:
        h = 1e-4 * float(u)
        before, here, after = (data.flow(sde, x, t, v) for v in (u - h, u, u + h))
        slope = sde.reverse(data.score(sde), 0.0).drift(here, u)
        torch.testing.assert_close(slope, (after - before) / (2 * h), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(data.flow(sde, here, u, t), x)
    plane = GaussianMixture([0.7, 0.3], torch.eye(2), 0.1)
    with pytest.raises(ValueError, match="on the line only; D is 2"):
        plane.flow(sde, torch.zeros(1, 2), t, u)


def test_covariances_in_all_forms():
    means = torch.zeros(2, 3)
    variances = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=F64)
    diagonal = GaussianMixture([1, 1], means, variances)
    full = GaussianMixture([0.5, 0.5], means, torch.diag_embed(variances))
    x = torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(diagonal.log_prob(x), full.log_prob(x))
    per_component = GaussianMixture([1, 1], means, torch.tensor([2.0, 2.0]))
    number = GaussianMixture([1, 1], means, 2.0)
    torch.testing.assert_close(per_component.log_prob(x), number.log_prob(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 1.0], torch.zeros(3, 2), 1.0), "must share K"),
        (([1.0, -1.0], torch.zeros(2, 2), 1.0), "positive"),
        (([1.0], torch.zeros(1, 2), torch.zeros(3, 3)), "covariances must be"),
        (([1.0], torch.zeros(1, 2), -torch.eye(2)[None]), "negative eigenvalue"),
    ],
)
def test_bad_mixtures_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)
