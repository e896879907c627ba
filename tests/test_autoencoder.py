"""The autoencoder: published sizes, closed forms, and pictures that come back."""

from pathlib import Path

import pytest
import torch

from score_sde.checks import UserError
from score_sde.data.sources import ArrayData
from score_sde.data.spec import make_spec
from score_sde.nets.autoencoder import KLAutoencoder, kl_to_normal, latent_statistics, psnr
from score_sde.nets.codec import Codec, Moments
from score_sde.runs.codecs import fitted, latents_of
from score_sde.training.autoencoding import Reconstruction

pytestmark = pytest.mark.usefixtures("one_thread")


def test_published_sizes():
    """Of Stable Diffusion's: 34 163 592 and 49 490 179 parameters, an eighth of the size."""
    with torch.device("meta"):
        net = KLAutoencoder.preset("kl_f8", channels=3, size=(256, 256))
    sizes = [sum(p.numel() for p in part.parameters()) for part in (net.encoder, net.decoder)]
    assert sizes == [34_163_592, 49_490_179] and net.latent_shape == (4, 32, 32)


def test_the_divergence_is_that_of_torch():
    mean, std = torch.randn(5, 3, 2, 2), torch.rand(5, 3, 2, 2) + 0.1
    law, normal = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    want = torch.distributions.kl_divergence(law, normal).flatten(1).sum(1)
    torch.testing.assert_close(kl_to_normal(Moments(mean, std)), want)


def test_statistics_are_those_of_drawn_latents():
    torch.manual_seed(0)
    mean = torch.randn(40, 2, 3, 3) * torch.tensor([1.0, 5.0])[:, None, None] + 2
    std = torch.rand(40, 2, 3, 3) * 3
    centre, spread = latent_statistics(Moments(mean, std))
    drawn = mean + std * torch.randn(4000, *mean.shape)
    flat = drawn.permute(2, 0, 1, 3, 4).flatten(1)
    torch.testing.assert_close(centre, flat.mean(1), rtol=0, atol=0.02)
    torch.testing.assert_close(spread, flat.std(1), rtol=5e-3, atol=0)
    codec = Codec(KLAutoencoder(1, (4, 4), width=8, patch=2), centre, 1 / spread)
    z = codec.standardise(drawn.flatten(0, 1))
    assert abs(float(z.mean())) < 0.02 and abs(float(z.std()) - 1) < 0.01


def test_psnr_of_a_known_error():
    assert float(psnr(torch.tensor(4.0))) == 0.0
    assert float(psnr(torch.tensor(0.04))) == pytest.approx(20.0)


def test_pictures_come_back_after_a_few_steps():
    torch.manual_seed(0)
    net = KLAutoencoder(1, (8, 8), width=16, multipliers=(1, 2), decoder_blocks=1)
    assert net.latent_shape == (4, 2, 2)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    levels = torch.linspace(-1, 1, 8)
    for step in range(150):
        slopes = torch.rand(32, 2, 1, 1) * 2 - 1
        x = slopes[:, :1] * levels[:, None] / 2 + slopes[:, 1:] * levels / 2
        terms = Reconstruction()(net, x, torch.zeros(32), torch.randn(32, *net.latent_shape))
        optimizer.zero_grad()
        terms.loss.mean().backward()
        optimizer.step()
        if step == 0:
            first = float(terms.error.mean())
    assert float(terms.error.mean()) < 0.05 * first
    codec = Codec(net, 0.3, 2.0)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(codec.encode(x)), net(x)[0])


def test_sizes_that_do_not_divide_are_explained():
    with pytest.raises(UserError, match="30x32 do not divide by 4"):
        KLAutoencoder(3, (30, 32))
    with pytest.raises(UserError, match="was built for states"):
        KLAutoencoder(3, (32, 32)).moments(torch.zeros(1, 1, 32, 32))
    with pytest.raises(UserError, match="the preset 'tiny' is unknown.*small, kl_f8"):
        KLAutoencoder.preset("tiny")


def test_a_codec_standardises_each_channel_by_the_latents_of_its_data(tmp_path):
    """Channels of different means and spreads, the posterior's own spread counted in."""

    class Stripes(torch.nn.Module):
        """Two channels of latents, 3 m + 5 and 0.2 m - 1 of the mean m of each 2 x 2 pixels."""

        factor, offset, own = torch.tensor([3.0, 0.2]), torch.tensor([5.0, -1.0]), 0.4

        def moments(self, x):
            m = torch.nn.functional.avg_pool2d(x, 2)
            mean = m * self.factor[:, None, None] + self.offset[:, None, None]
            return Moments(mean, torch.full_like(mean, self.own))

        def decode(self, latents):
            m = (latents[:, :1] - self.offset[0]) / self.factor[0]
            return torch.nn.functional.interpolate(m, scale_factor=2)

    pixels = torch.randint(0, 256, (150, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    raw = pixels.to(torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    data = ArrayData(raw, {}, make_spec(raw, "stripes", 0.0, 255.0, 256))
    codec = fitted(Stripes(), data, {}, Path())
    m = torch.nn.functional.avg_pool2d(data.spec.to_model(raw), 2).double()
    spread = (m.std(correction=0) ** 2 * Stripes.factor.double() ** 2 + Stripes.own**2).sqrt()
    centre = m.mean() * Stripes.factor + Stripes.offset
    torch.testing.assert_close(codec.codec.shift, centre.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codec.codec.scale, (1 / spread).float(), rtol=1e-5, atol=1e-6)

    latents = latents_of(data, codec, tmp_path)
    mean, std = latents.raw.double().unbind(1)
    axes = (0, 2, 3)
    torch.testing.assert_close(mean.mean(axes), torch.zeros(2).double(), rtol=0, atol=1e-5)
    both = mean.var(axes, correction=0) + std.square().mean(axes)
    torch.testing.assert_close(both, torch.ones(2).double(), rtol=1e-5, atol=0)
    shown = codec.decode(latents.raw[:, 0])
    torch.testing.assert_close(shown, data.spec.to_model(raw), rtol=0, atol=1e-4)
