"""The command line as data: what a mode takes, how words are read, what errors say."""

import inspect
import json
import re

import pytest

from score_sde import cli
from score_sde.checks import UserError
from score_sde.cli import MODES, modes, understand
from score_sde.sampling import change_sampling, make_sampler, options_from_text


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        understand(words)
    return str(caught.value)


def test_a_flag_never_means_two_things():
    meanings: dict = {}
    for mode in MODES.values():
        for flag in mode.flags:
            assert meanings.setdefault(flag.name, flag) == flag, flag.name


@pytest.mark.parametrize("name", MODES)
def test_every_flag_is_a_parameter_and_every_parameter_without_default_a_flag(name):
    mode = MODES[name]
    parameters = inspect.signature(mode.function).parameters
    taken = {flag.parameter for flag in mode.flags}
    assert taken - set(parameters) <= {"config"}
    needed = {p.name for p in parameters.values() if p.default is p.empty}
    assert needed <= taken
    assert not {p.kind for p in parameters.values()} & {inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_takes_its_flags_and_no_others_and_its_help_shows_them(name):
    mode, base = MODES[name], ["--mode", name, "--config", "toy2d", "--workdir", "w"]
    base = base if name != "verify" else base[:4]
    base = base if name not in ("suggest", "distill") else base[:2]
    own = {flag.name for flag in mode.flags}
    text = understand(["--mode", name, "--help"])
    assert set(re.findall(r"^  --(\w+)", text, re.M)) == own
    every = {flag.name: flag for other in MODES.values() for flag in other.flags}
    for flag in every.values():
        if flag.name in own or flag.name in ("config", "workdir"):
            continue
        word = {bool: "", int: "=1", float: "=1", list: "=a=1", str: "=x", tuple: "=1,"}.get(
            flag.kind
        )
        word = f"={flag.kind[0]}" if word is None else word
        said = refused(*base, f"--{flag.name}{word}")
        assert f"--mode {name} takes no --{flag.name}, only" in said
        takers = [other for other, m in MODES.items() if flag in m.flags]
        assert ", ".join(takers) in said


def test_words_become_values_of_the_types_that_flags_and_fields_have():
    command = understand(
        ["--config=toy2d", "--mode=sample", "--nfe", "0", "--first_seed", "-3", "--out=x"]
        + ["--option", "a=0.5", "--option=b=false", "--option=c=text", "--option=d=(1, 2)"]
    )
    arguments = command.arguments
    assert (arguments["nfe"], arguments["first_seed"], arguments["out"]) == (0, -3, "x")
    assert arguments["options"] == {"a": "0.5", "b": "false", "c": "text", "d": "(1, 2)"}
    assert arguments["workdir"] == "runs/toy2d"
    options = ["--option=a=0.5", "--option=b=false", "--option=c=text", "--option=d=(1, 2)"]
    command = understand(["--config=toy2d", "--mode=likelihood", *options])
    assert command.arguments["options"] == {"a": 0.5, "b": False, "c": "text", "d": (1, 2)}
    command = understand(["--config=toy2d", "--mode=likelihood", "--option=a=1_0"])
    assert command.arguments["options"] == {"a": "1_0"}  # to be refused where a number is due
    with pytest.raises(UserError, match="eta must be a number .got '0_1'."):
        make_sampler("ddim", **options_from_text("ddim", {"eta": "0_1"}))
    texts = {"predictor": "ddim", "predictor.eta": "0.5", "corrector_steps": "2"}
    changed = change_sampling({"method": "pc"}, {"options": texts})
    assert changed["options"]["corrector_steps"] == 2
    assert changed["options"]["predictor_options"] == {"eta": 0.5}
    command = understand(
        ["--config", "vp_cifar:small", "--config.sampling.steps=10", "--config.data.size=64"]
        + ["--config.data.flip=false", "--config.training.lr=1e-3", "--config.training.steps=1e3"]
        + ["--noconfig.model.learned_variance", "--config.net.attention=4", "--resume"]
    )
    config = command.arguments["config"]
    assert config["sampling"]["steps"] == 10 and config["data"]["flip"] is False
    assert config["training"]["lr"] == 1e-3 and config["training"]["steps"] == 1000
    assert config["net"]["attention"] == (4,) and config["data"]["size"] == (64,)
    assert command.arguments["resume"] == "yes"
    assert understand(["--config=toy2d", "--resume", "auto"]).arguments["resume"] == "auto"
    assert understand(["--config=toy2d", "--noresume"]).arguments["resume"] == "no"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode=sample", "--workdir=w", "--num_sample=3"], "unknown flag --num_sample. Did you"),
        (["--mode=sample", "--workdir=w", "--nfe=many"], "--nfe must be a whole number .got 'many"),
        (["--mode=sample", "--workdir=w", "--nfe=2.5"], "--nfe must be a whole number"),
        (["--mode=sample", "--workdir=w", "--nfe=1_0"], "--nfe must be a whole number .got '1_0'"),
        (["--mode=sample", "--workdir=w", "--nfe=\u0663"], "--nfe must be a whole number"),
        (["--mode=sample", "--workdir=w", "--guidance=1_0"], "--guidance must be a number"),
        (["--config=toy2d", "--config.training.lr=1_0.5"], "config.training.lr must be a number"),
        (["--config=toy2d", "--config.data.size=(1_0, 2)"], "config.data.size must be values like"),
        (["--mode=ema", "--workdir=w", "--sigma_rel=nan"], "--sigma_rel must be a number"),
        (["--mode=ema", "--workdir=w"], "--mode ema needs --sigma_rel: relative width"),
        (["--mode=import", "--workdir=w"], "--mode import needs --checkpoint: file, folder"),
        (["--config=toy2d", "--data="], "--data is empty"),
        (["--config=toy2d", "--data", ""], "--data is empty"),
        (["--config=toy2d", "--data", "--device=cpu"], "--data needs a value"),
        (["--config=toy2d", "--overwrite=perhaps"], "--overwrite must be true or false"),
        (["--config=toy2d", "--config=vp_cifar"], "--config is given twice"),
        (["--config=toy2d", "--config.seed=1", "--config.seed=2"], "config.seed is set twice, to"),
        (["--config=toy2d", "--config.data.size=wide"], "config.data.size must be values like"),
        (["--config=toy2d", "--config.seed"], "--config.seed needs a value"),
        (["--config.seed=1", "--workdir=w"], "--config.seed changes a field of a config: give"),
        (["--config=toy2d", "--option=a=1", "--option=a=2"], "--option a is given twice"),
        (["--config=toy2d", "--option=a"], "must read name=value"),
        (["--config=toy2d", "--resume=perhaps"], "--resume must be one of no, yes, auto"),
        (["--mode=likelihood", "--workdir=w", "--bound=chains"], "Did you mean 'chain'"),
        (["--mode=encode", "--config=toy2d", "--config.sampling.nfe=3"], "no effect in --mode enc"),
        (["--mode=sample", "--workdir=w", "--stepps=3"], "Did you mean 'steps'"),
        (["--config=toy2d", "-nfe"], "--nfe needs a value"),
        (["--list_samplers", "--bound=chain"], "--list_samplers takes no --bound"),
        (["--list_samplers", "--config.seed=1"], "--list_samplers takes no --config.seed"),
    ],
)
def test_what_does_not_fit_is_a_sentence(words, message):
    assert re.search(message, refused(*words)), refused(*words)


def test_fields_without_a_config_are_of_the_run_in_workdir(tmp_path):
    config = {"sde": {"beta_max": 20.0}, "net": {"size": [1]}, "sampling": {"steps": 5}}
    facts = {"data_spec": {"name": "x", "shape": [2]}, "data_std": 1.0, "config": config}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    flag = f"--workdir={tmp_path}"
    words = ["--config.sde.beta_max=5", "--config.net.size=3,4", "--resume", flag]
    arguments = understand(words).arguments
    assert arguments["changes"] == {"sde.beta_max": 5.0, "net.size": [3, 4]}
    assert "config" not in arguments
    sampling = understand(["--mode=sample", "--config.sampling.steps=9", flag]).arguments
    assert sampling["sampling"] == {"steps": 9}
    assert "no effect in --mode sample" in refused("--mode=sample", words[0], flag)
    assert "Did you mean 'sde.beta_max'" in refused("--config.sde.beta_mix=1", flag)


def test_a_config_of_the_package_goes_before_one_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    mine = "def get_config():\n    raise ValueError('mine')\n"
    (tmp_path / "configs" / "toy2d.py").write_text(mine)
    (tmp_path / "configs" / "own.py").write_text(mine)
    monkeypatch.chdir(tmp_path)
    assert understand(["--config=toy2d"]).arguments["config"]["net"]["name"] == "mlp"
    assert refused("--config=configs/toy2d.py") == "mine" == refused("--config=own")
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    assert "broken.py failed in line 2: ZeroDivisionError" in refused("--config=broken.py")
    (tmp_path / "plain.py").write_text("def get_config(x='a'):\n    return {'sde': {'b': x}}\n")
    config = understand(["--config=plain.py:z", "--config.sde.b=c"])
    assert config.arguments["config"] == {"sde": {"b": "c"}}
    assert config.arguments["workdir"] == "runs/plain_z"


def test_mistakes_of_ours_are_told_apart_from_the_users(monkeypatch, capsys):
    def broken(workdir: str) -> None:
        if workdir == "plain":
            int("x")
        raise {"key": KeyError("x"), "disk": OSError(28, "No space left on device", "f.npz"),
               "room": MemoryError(), "user": UserError("Give more.")}[workdir]  # fmt: skip

    monkeypatch.setitem(MODES, "break", cli.Mode("", (modes.WORKDIR,), broken))
    expected = {
        "key": (1, r"this is a mistake of score_sde \(KeyError: 'x'; test_cli.py line \d+\)"),
        "plain": (1, r"this is a mistake of score_sde \(ValueError: invalid literal"),
        "disk": (2, "error: f.npz: No space left on device"),
        "room": (2, "out of memory. Take fewer at a time"),
        "user": (2, "error: Give more."),
    }
    for workdir, (code, message) in expected.items():
        assert cli.main(["score-sde", "--mode=break", f"--workdir={workdir}"]) == code
        error = capsys.readouterr().err
        assert re.search(message, error) and "Traceback" not in error
    assert cli.main(["score-sde", "--mode=break", "--workdir=key", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err
