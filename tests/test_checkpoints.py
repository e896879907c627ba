"""Checkpoints: kept, damaged, written in the background, on a full disk."""

import threading

import pytest
import torch
from small_training import small_data, small_trainer, train

from score_sde.training import CheckpointError, Trainer, checkpoints
from score_sde.training.writer import BackgroundWriter, copy_to_host

pytestmark = pytest.mark.usefixtures("one_thread")


def test_checkpoints_keep_the_newest_and_are_plain(tmp_path):
    trainer = small_trainer()
    for step in (1, 2, 3, 4):
        checkpoints.save_checkpoint(tmp_path, step, trainer.checkpoint(), keep=2)
    assert checkpoints.steps_of(tmp_path) == [3, 4]
    folder = tmp_path / "step_00000004"
    assert sorted(p.name for p in folder.iterdir()) == [
        "ema.safetensors", "meta.json", "model.safetensors", "training.pt",
    ]  # fmt: skip
    torch.load(folder / "training.pt", weights_only=True)  # tensors and plain types only


def test_weights_alone_can_be_gone_on_with(tmp_path):
    """What a converted checkpoint has: weights and their average, no optimiser."""
    first = small_trainer(ema_decay=0.9)
    train(first, 5)
    bare = checkpoints.Checkpoint(
        first.model.net.state_dict(), first.ema.net.state_dict(), {}, {"origin": "elsewhere"}
    )
    checkpoints.save_checkpoint(tmp_path, 5, bare)
    second = small_trainer(ema_decay=0.9, ema_halflives=(9.0,))
    second.restore(checkpoints.load_checkpoint(tmp_path))
    assert (second.step, second.ema.updates) == (5, 5)
    for key, value in first.model.net.state_dict().items():
        assert torch.equal(second.averages["ema_halflife_9"].net.state_dict()[key], value)
    batch = next(small_data().batches(8, seed=0, start=5))[0]
    assert second.update(batch)["loss"] == first.update(batch)["loss"]


def test_every_kth_checkpoint_is_kept_for_ever(tmp_path):
    trainer = small_trainer()
    for step in range(1, 8):
        checkpoints.save_checkpoint(tmp_path, step, trainer.checkpoint(), keep=2, keep_every=3)
    assert checkpoints.steps_of(tmp_path) == [3, 6, 7]


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "ema.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_damaged_and_half_written_checkpoints_are_passed_over(tmp_path, capsys, name, damage):
    trainer = small_trainer()
    for step in (1, 2):
        checkpoints.save_checkpoint(tmp_path, step, trainer.checkpoint())
    (tmp_path / ".partial_00000003").mkdir()
    (tmp_path / "step_00000003").mkdir()
    path = tmp_path / "step_00000002" / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "bit" else content[:100])
    assert checkpoints.load_checkpoint(tmp_path).meta["step"] == 1
    printed = capsys.readouterr().out
    assert "checkpoint 3 is damaged" in printed and "step_00000003/meta.json" in printed
    what = "is missing" if damage == "gone" else "checksum"
    assert "checkpoint 2 is damaged" in printed and name in printed and what in printed


def test_a_write_in_the_background_is_of_the_moment_it_was_asked_for(tmp_path):
    """Training goes on while the file is written, and does not show in it."""
    trainer, writer = small_trainer(ema_decay=0.9), BackgroundWriter()
    train(trainer, 3)
    expected = {k: v.clone() for k, v in trainer.model.net.state_dict().items()}
    begin = threading.Event()

    def write(parts):
        begin.wait(10)
        checkpoints.save_checkpoint(tmp_path, 3, checkpoints.Checkpoint(**parts))

    writer.submit("checkpoint", write, vars(trainer.checkpoint()))
    train(trainer, 2)
    begin.set()
    writer.wait()
    saved = checkpoints.load_checkpoint(tmp_path)
    assert all(torch.equal(saved.model[key], value) for key, value in expected.items())
    resumed = small_trainer(ema_decay=0.9)
    resumed.restore(saved)
    assert train(resumed, 2) == train_again(trainer, expected_steps=5)


def train_again(trainer: Trainer, expected_steps: int) -> list[dict[str, float]]:
    """Steps 4 and 5 of a fresh run like ``trainer``."""
    assert trainer.step == expected_steps
    return train(small_trainer(ema_decay=0.9), expected_steps)[-2:]


def test_copies_reuse_their_memory():
    state = {"a": [torch.randn(3, 4), 5], "b": {"c": torch.randn(2, 3, 4, 4)}}
    state["b"]["c"] = state["b"]["c"].to(memory_format=torch.channels_last)
    first = copy_to_host(state)
    pointer = first["b"]["c"].data_ptr()
    state["b"]["c"] += 1
    second = copy_to_host(state, first)
    assert second["b"]["c"].data_ptr() == pointer and second["a"][1] == 5
    assert torch.equal(second["b"]["c"], state["b"]["c"])
    assert second["b"]["c"].stride() == state["b"]["c"].stride()


def test_a_full_disk_keeps_the_previous_checkpoint(small_disk):
    """On a file system with room for one and a half."""
    small, trainer = small_disk(5), small_trainer()
    train(trainer, 1)
    checkpoints.save_checkpoint(small, 1, trainer.checkpoint())
    with pytest.raises(
        CheckpointError, match=r"No space left.*3\.\d MB are needed, .*Previous check"
    ):
        checkpoints.save_checkpoint(small, 2, trainer.checkpoint(), keep=1)
    assert checkpoints.load_checkpoint(small).meta["step"] == 1
    assert [p.name for p in small.iterdir()] == ["step_00000001"]


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    trainer = small_trainer()
    checkpoints.save_checkpoint(tmp_path, 1, trainer.checkpoint())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    writer = BackgroundWriter()

    def write(parts):
        checkpoints.save_checkpoint(tmp_path, 2, checkpoints.Checkpoint(**parts), keep=1)

    writer.submit("checkpoint", write, vars(trainer.checkpoint()))
    with pytest.raises(CheckpointError, match="Save failed .*No space left.*Previous checkpoints"):
        writer.wait()
    writer.wait()  # an error is told once
    assert checkpoints.steps_of(tmp_path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
