"""Models of the diffusers library as scores: ten steps of ours are ten steps of its schedulers."""

import json

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from score_sde import sample  # noqa: E402
from score_sde.conditioning.guidance import guide  # noqa: E402
from score_sde.convert import ConversionError, schedulers  # noqa: E402
from score_sde.nets.codec import Codec  # noqa: E402
from score_sde.processes import TableSDE  # noqa: E402
from score_sde.runs import live  # noqa: E402
from score_sde.runs.live import load_diffusers  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of CLIP's kind that knows the letters a to z."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = ["<|startoftext|>", "<|endoftext|>", *map(chr, range(97, 123))]
    tokens += [f"{chr(i)}</w>" for i in range(97, 123)]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12
    )


def text_encoder(width=32, projected=None):
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=projected or width,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def autoencoder(**more):
    torch.manual_seed(3)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16, **more,
    ).eval()  # fmt: skip


def unet(**more):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=8,
        norm_num_groups=8, **{"cross_attention_dim": 32, **more},
    ).eval()  # fmt: skip


def stable_diffusion(words, scheduler):
    torch.manual_seed(1)
    return diffusers.StableDiffusionPipeline(
        autoencoder(scaling_factor=0.18215), text_encoder(), words, unet(), scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def theirs(pipe, x, call, steps=10):
    """The library's own loop: its scheduler around the network call(x, t)."""
    pipe.scheduler.set_timesteps(steps)
    x = x * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            scaled = getattr(pipe.scheduler, "scale_model_input", lambda x, t: x)(x, t)
            x = pipe.scheduler.step(call(scaled, t), t, x, return_dict=False)[0]
    return x


def gap(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_ddim_of_stable_diffusion_and_its_words(words, predicts, clean):
    ddim = diffusers.DDIMScheduler(**SD, prediction_type=predicts, set_alpha_to_one=clean)
    pipe = stable_diffusion(words, ddim)
    run, x = load_diffusers(pipe), torch.randn(2, 4, 8, 8)
    assert isinstance(run.sde, TableSDE) and run.shape == (4, 8, 8)
    told = run.condition(["a b", "c"], 2)
    want = theirs(pipe, x, lambda x, t: pipe.unet(x, t, encoder_hidden_states=told["text"]).sample)
    score = run.score.bind(**told)
    got = sample(run.sde, score, x_T=x, method="ddim", **run.published(10))
    assert gap(got, want) < 1e-5
    parts = sample(run.sde, score, x_T=x, method="ddim", **run.published(10), batch_size=1)
    assert gap(parts, want) < 1e-5
    pixels = run.sample(2, prompt="a b", seeds=[1, 2], method="ddim", steps=2)
    assert pixels.shape == (2, 3, 16, 16) and pixels.isfinite().all()


def test_classifier_free_guidance_is_one_doubled_batch(words):
    pipe = stable_diffusion(words, diffusers.DDIMScheduler(**SD, set_alpha_to_one=False))
    run, x = load_diffusers(pipe), torch.randn(2, 4, 8, 8)
    told, null = run.condition(["a b", "c"], 2), run.nothing(2)
    sizes = []
    hook = pipe.unet.register_forward_pre_hook(lambda net, inputs: sizes.append(len(inputs[0])))

    def guided(x, t):
        text = torch.cat([null["text"], told["text"]])
        free, known = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(2)
        return free + 7.5 * (known - free)

    want = theirs(pipe, x, guided)
    del sizes[:]
    score = guide(run.score.bind(**told), run.score.bind(**null), 7.5)
    got = sample(run.sde, score, x_T=x, method="ddim", **run.published(10))
    hook.remove()
    assert gap(got, want) < 1e-5 and sizes == [4] * 10
    seeds = {"seeds": [1, 2], "method": "ddim", "steps": 2, "pixels": False}
    led = run.sample(2, prompt=["a b", "c"], guidance=7.5, **seeds)
    assert gap(led, run.sample(2, prompt=["a b", "c"], **seeds)) > 1e-3
    away = run.sample(2, prompt=["a b", "c"], guidance=7.5, negative_prompt="d", **seeds)
    assert gap(led, away) > 1e-3


def test_euler_and_dpm_solver(words):
    euler = diffusers.EulerDiscreteScheduler(**{k: v for k, v in SD.items() if k != "clip_sample"},
                                             timestep_spacing="leading")  # fmt: skip
    pipe = stable_diffusion(words, euler)
    run, x = load_diffusers(pipe), torch.randn(2, 4, 8, 8)
    told = run.condition("a", 2)
    call = lambda x, t: pipe.unet(x, t, encoder_hidden_states=told["text"]).sample  # noqa: E731
    score = run.score.bind(**told)
    start = x * (pipe.scheduler.sigmas.max() ** 2 + 1) ** 0.5 / pipe.scheduler.init_noise_sigma
    want = theirs(pipe, start, call)
    got = sample(run.sde, score, x_T=x, method="ddim", **run.published(10))
    assert gap(got, want) < 1e-5
    heun = diffusers.DPMSolverMultistepScheduler(
        **{k: v for k, v in SD.items() if k != "clip_sample"}, solver_type="heun",
        lower_order_final=False, euler_at_final=False,
    )  # fmt: skip
    pipe = stable_diffusion(words, heun)
    run = load_diffusers(pipe)
    want = theirs(pipe, x, call)
    got = sample(run.sde, score, x_T=x, method="dpmpp_2m", **run.published(10))
    assert gap(got, want) < 1e-5


def test_stable_diffusion_xl(words):
    torch.manual_seed(1)
    net = unet(
        cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        autoencoder(scaling_factor=0.13025), text_encoder(), text_encoder(projected=32), words,
        words, net, diffusers.DDIMScheduler(**SD), add_watermarker=False,
    )  # fmt: skip
    run, x = load_diffusers(pipe), torch.randn(2, 4, 8, 8)
    told = run.condition("a b", 2)
    more = {"text_embeds": told["pooled"], "time_ids": told["sizes"]}
    want = theirs(pipe, x, lambda x, t: net(x, t, told["text"], added_cond_kwargs=more).sample)
    got = sample(run.sde, run.score.bind(**told), x_T=x, method="ddim", **run.published(10))
    assert gap(got, want) < 1e-5
    assert not run.nothing(2)["text"].any() and run.nothing(2, "c")["text"].any()


def transformer_pipe(kind, scheduler):
    torch.manual_seed(0)
    shared = dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2,
    )  # fmt: skip
    if kind == "dit":
        net = diffusers.DiTTransformer2DModel(**shared, num_embeds_ada_norm=10)
        return diffusers.DiTPipeline(net, autoencoder(), scheduler)
    net = diffusers.PixArtTransformer2DModel(
        **shared, caption_channels=12, cross_attention_dim=32, norm_type="ada_norm_single",
        num_embeds_ada_norm=1000, norm_eps=1e-6, norm_elementwise_affine=False,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(None, None, autoencoder(), net, scheduler)


@pytest.mark.parametrize("kind", ["dit", "pixart"])
def test_transformers_of_latents(kind):
    pipe = transformer_pipe(kind, diffusers.DDIMScheduler(clip_sample=False))
    run, x = load_diffusers(pipe), torch.randn(2, 4, 8, 8)
    assert run.score.learned_variance
    if kind == "dit":
        told = {"class_labels": torch.tensor([3, -1])}
        labels = torch.tensor([3, 10])
        call = lambda x, t: pipe.transformer(x, t[None], class_labels=labels).sample[:, :4]  # noqa: E731
    else:
        told = {"text": torch.randn(2, 5, 12), "text_mask": torch.ones(2, 5)}
        none = {"resolution": None, "aspect_ratio": None}
        call = lambda x, t: pipe.transformer(  # noqa: E731
            x, encoder_hidden_states=told["text"], timestep=t.expand(2), added_cond_kwargs=none,
            encoder_attention_mask=told["text_mask"],
        ).sample[:, :4]  # fmt: skip
    want = theirs(pipe, x, call)
    score = run.score.bind(**told)
    got = sample(run.sde, score, x_T=x, method="ddim", **run.published(10))
    assert gap(got, want) < 1e-5


def flow_pipe(kind):
    torch.manual_seed(0)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    if kind == "sd3":
        net = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
            pooled_projection_dim=24, out_channels=4, pos_embed_max_size=16,
        )  # fmt: skip
        return diffusers.StableDiffusion3Pipeline(net, scheduler, autoencoder(), *[None] * 6)
    net = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=24,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return diffusers.FluxPipeline(scheduler, autoencoder(), None, None, None, None, net)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_flows(kind):
    pipe = flow_pipe(kind)
    run = load_diffusers(pipe)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    told = {"text": torch.randn(2, 5, 32), "pooled": torch.randn(2, 24)}
    net, scheduler = run.score.net, pipe.scheduler
    label = (lambda t: t) if kind == "sd3" else (lambda t: t / 1000)
    want = theirs(pipe, x.float(), lambda x, t: net(x, label(t).expand(2), **told))
    score = run.score.bind(**told)
    got = sample(run.sde, score, x_T=x, method="ddim", **run.published(10)).float()
    grid = run.published(10)["grid"]
    assert grid[0] == run.sde.t_max and scheduler.config.shift == 3.0
    assert gap(got, want) < 1e-5


def test_latents_are_standardised_and_come_back():
    for more in (
        {"scaling_factor": 0.3, "shift_factor": 0.2},
        {"scaling_factor": 0.3, "latents_mean": [1.0, 2, 3, 4], "latents_std": [2.0, 3, 4, 5]},
    ):
        module = autoencoder(**more)
        codec, x = live.codec_of(module), torch.rand(2, 3, 16, 16) * 2 - 1
        raw = module.encode(x).latent_dist.mean
        z = codec.encode(x)
        if "shift_factor" in more:
            torch.testing.assert_close(z, (raw - 0.2) * 0.3)
        else:
            std = torch.tensor([2.0, 3, 4, 5]).view(-1, 1, 1)
            back = z * std / 0.3 + torch.tensor([1.0, 2, 3, 4]).view(-1, 1, 1)
            torch.testing.assert_close(back, raw, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(codec.decode(z), module.decode(raw).sample, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="scale must be positive"):
        Codec(module, scale=0.0)


def test_schedulers_are_applied_or_refused():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    their = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True, prediction_type="v_prediction",
    )  # fmt: skip
    sde, model = schedulers.process_of(dict(their.config), [])
    process = TableSDE(**{k: v for k, v in sde.items() if k != "name"})
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    kept = process.alpha(t) ** 2
    torch.testing.assert_close(kept, their.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)
    assert model["target"] == "v" and not torch.allclose(kept, (1 - betas).cumprod(0), atol=1e-4)
    for said, words in (
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler describes a process"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "CMStochastic"),
        ({"_class_name": "DDIMScheduler", "new_betas": [1]}, "sets new_betas"),
        ({"rescale_betas_zero_snr": True}, "eps says nothing"),
        ({"prediction_type": "score"}, "prediction_type 'score' is unknown"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace' is unknown"),
    ):
        with pytest.raises(ConversionError, match=words):
            schedulers.process_of(said, [])


def test_what_cannot_be_loaded_is_said(words, tmp_path):
    with pytest.raises(ConversionError, match="is not a pipeline of diffusers"):
        load_diffusers(tmp_path)
    pipe = stable_diffusion(words, diffusers.DDIMScheduler(**SD))
    run = load_diffusers(pipe)
    with pytest.raises(ValueError, match="is not told pooled; it takes|takes text"):
        load_diffusers(transformer_pipe("dit", diffusers.DDIMScheduler())).score.bind(
            pooled=torch.zeros(1, 2)
        )(torch.zeros(1, 4, 8, 8), torch.tensor(0.5))
    with pytest.raises(ValueError, match="2 prompts do not fit 3 samples"):
        run.condition(["a", "b"], 3)
    pipe.unet.half()
    with pytest.raises(ConversionError, match="float16, in which a CPU"):
        load_diffusers(pipe)
    pipe.unet = torch.nn.Linear(1, 1)
    with pytest.raises(ConversionError, match="has a Linear; known are UNet2DModel"):
        load_diffusers(pipe)


def test_a_folder_is_loaded_by_the_library(words, tmp_path):
    pipe = transformer_pipe("dit", diffusers.DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(tmp_path)
    a, b = load_diffusers(pipe), load_diffusers(tmp_path)
    labels = torch.tensor([1, 2])
    seeds = {"seeds": [1, 2], "method": "ddim", "steps": 2, "pixels": False}
    torch.testing.assert_close(
        a.sample(2, class_labels=labels, **seeds), b.sample(2, class_labels=labels, **seeds)
    )
