"""Shards of pictures: what is in them, in an order that a resumed run continues."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import DataError, StreamData, load, load_data
from score_sde.data.shards import expanded


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), torch.tensor(pixels).permute(2, 0, 1)


def shard(path, contents):
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample_of(i):
    key = f"{i:06d}"
    return {f"{key}.png": png(i)[0], f"{key}.txt": f"picture {i}".encode(),
            f"{key}.cls": str(i % 3).encode()}  # fmt: skip


@pytest.fixture
def shards(tmp_path):
    """Three shards of four samples."""
    for k in range(3):
        contents = {}
        for i in range(4 * k, 4 * k + 4):
            contents |= sample_of(i)
        shard(tmp_path / f"set-{k:03d}.tar", contents)
    return str(tmp_path / "set-{000..002}.tar")


def test_patterns_of_shards():
    assert expanded("a-{08..11}.tar") == [f"a-{i:02d}.tar" for i in range(8, 12)]
    assert expanded("{a,b}{1..2}.tar") == ["a1.tar", "a2.tar", "b1.tar", "b2.tar"]
    assert expanded("plain.tar") == ["plain.tar"]
    with pytest.raises(DataError, match="no range of shards"):
        expanded("a-{0..999999999}.tar")


def test_pictures_captions_and_classes_of_shards(shards):
    data = load_data(shards)
    assert torch.equal(data.raw, torch.stack([png(i)[1] for i in range(12)]))
    assert data.captions == tuple(f"picture {i}" for i in range(12))
    assert data.condition["class_labels"].tolist() == [0, 1, 2] * 4
    assert data.spec.classes == ("0", "1", "2") and data.name_of(3) == "000003.png"
    assert "ignored" not in "\n".join(data.notes)


def test_a_stream_of_shards_goes_on_where_it_was(shards, monkeypatch):
    monkeypatch.setattr(load, "IN_MEMORY_BYTES", 0)
    data = load_data(shards, workers=1)
    assert isinstance(data, StreamData)
    whole, later = data.batches(5, seed=3), data.batches(5, seed=3, start=4)
    batches = [next(whole) for _ in range(6)]
    for k in (4, 5):
        batch = next(later)
        assert torch.equal(batch.x0, batches[k].x0)
        labels = batch.condition["class_labels"]
        assert torch.equal(labels, batches[k].condition["class_labels"])


def test_shards_that_number_their_items_alike(tmp_path):
    for k in range(2):
        shard(tmp_path / f"{k}.tar", {"a.png": png(k)[0], "a.txt": f"of {k}".encode()})
    data = load_data(str(tmp_path / "{0..1}.tar"))
    assert data.captions == ("of 0", "of 1") and data.spec.classes == ()
    assert data.name_of(1) == "1:a.png"


def test_shards_that_are_missing_cut_or_compressed(shards, tmp_path):
    with pytest.raises(DataError, match="2 of 5 shards do not exist: .*set-003.tar"):
        load_data(shards.replace("002", "004"))
    last = tmp_path / "set-002.tar"
    last.write_bytes(last.read_bytes()[:3600])
    cut = load_data(shards, options={"captions": False})
    assert len(cut) == 9 and "set-002.tar ends early" in "\n".join(cut.notes)
    with pytest.raises(DataError, match="set-002.tar ends early .*data.strict=false"):
        load_data(shards, strict=True)
    last.write_bytes(b"no tar at all")
    with pytest.raises(DataError, match="not a readable tar"):
        load_data(shards)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match="is compressed"):
        load_data(str(tmp_path / "x.tar.gz"))


def test_a_shard_whose_writer_was_stopped_has_no_end_mark(shards, tmp_path):
    """Cut where a file ends, it looks whole to a reader of tars."""
    last = tmp_path / "set-002.tar"
    with tarfile.open(last) as tar:
        end = tar.getmember("000011.cls").offset  # the fourth sample lacks its class
    last.write_bytes(last.read_bytes()[:end])
    data = load_data(shards)
    assert len(data) == 11 and data.condition["class_labels"].tolist()[-1] == 10 % 3
    assert "set-002.tar ends early (it has no end mark): 9 of its" in "\n".join(data.notes)


def test_shards_that_differ_in_their_keys(shards, tmp_path):
    contents = {name: c for i in (4, 5) for name, c in sample_of(i).items() if name[-3:] != "cls"}
    shard(tmp_path / "set-001.tar", contents)
    with pytest.raises(DataError, match="2 of 2 samples in set-001.tar have no .cls, which set-0"):
        load_data(shards)
    data = load_data(shards, options={"classes": False})
    assert data.spec.classes == () and len(data.captions) == 10
    shard(tmp_path / "set-001.tar", {n: c for n, c in sample_of(4).items() if n[-3:] != "txt"})
    with pytest.raises(DataError, match="set-001.tar have no .txt.*data.options.captions=false"):
        load_data(shards)
    assert load_data(shards, options={"captions": False}).condition["class_labels"][4] == 1
    with pytest.raises(DataError, match="labels. is unknown. Choose from captions, classes .true"):
        load_data(shards, options={"labels": False})


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason='pip install "score-sde[shards]"')
    with webdataset.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=3, verbose=0) as sink:
        for i in range(7):
            pixels = png(i)[1].permute(1, 2, 0).numpy()
            sink.write({"__key__": f"k{i}", "png": pixels, "txt": f"picture {i}", "cls": i % 2})
    data = load_data(str(tmp_path / "w-{000..002}.tar"))
    assert torch.equal(data.raw, torch.stack([png(i)[1] for i in range(7)]))
    assert data.captions[6] == "picture 6" and data.condition["class_labels"].tolist()[5] == 1
    theirs = webdataset.WebDataset(str(tmp_path / "w-{000..002}.tar"), shardshuffle=False)
    names = [sample["txt"].decode() for sample in theirs]
    assert tuple(names) == data.captions
