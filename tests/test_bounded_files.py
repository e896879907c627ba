"""Files of anybody that are read for data, captions, masks, statistics: named, and bounded."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ended, start
from PIL import Image

from score_sde.checks import UserError, read_arrays
from score_sde.data import DataError, decoding, images, load_data
from score_sde.data.decoding import picture_at
from score_sde.data.shards import expanded
from score_sde.evaluation.statistics import load_statistics
from score_sde.restoration.reference import load_gaussian
from score_sde.restoration.residuals import load_residuals
from score_sde.training.parts import read_weights
from score_sde.training.steps import CheckpointError


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side, colours=0, channels=1):
    """A PNG of one colour, which is a thousand times smaller than its pixels."""
    pack, row = zlib.compressobj(1), bytes(1 + side * channels)
    data = b"".join([pack.compress(row * 256) for _ in range(side // 256)] + [pack.flush()])
    head = struct.pack(">IIBBBBB", side, side, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(side, bits, kind):
    """A deflated TIFF of zeros; kind: 1 of whole numbers, 3 of floats."""
    pack = zlib.compressobj(1)
    strips = [pack.compress(bytes(side * bits // 8 * 256)) for _ in range(side // 256)]
    data, at = b"".join([*strips, pack.flush()]), 8 + 2 + 12 * 10 + 4
    said = [(256, side), (257, side), (258, bits), (259, 8), (262, 1), (273, at), (277, 1),
            (278, side), (279, len(data)), (339, kind)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in said)
    return b"II*\0" + struct.pack("<IH", 8, len(said)) + entries + bytes(4) + data


def icons(picture):
    """A picture as the only one of a Windows icon, a cursor and an Apple icon, of 16 pixels."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22)
    windows = entry + picture
    apple = b"ic08" + struct.pack(">I", 8 + len(picture)) + picture
    return {
        "x.ico": struct.pack("<HHH", 0, 1, 1) + windows,
        "x.cur": struct.pack("<HHH", 0, 2, 1) + windows,
        "x.icns": b"icns" + struct.pack(">I", 8 + len(apple)) + apple,
    }


def read_pictures(names: list[str]) -> None:
    """Scan each by itself and with a size, and write into found.txt what took a gigabyte."""
    found = []
    for name in names:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far
        for options in ({"size": (8, 8), "resize": "stretch"}, {}):
            try:
                load_data(name, **options).raw_items(range(1))
            except DataError as error:
                said = str(error)
                assert "cannot decode" in said or "larger than their files" in said, name
            status = Path("/proc/self/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
            if peak > 1 << 30:
                found.append(f"{name} {options}: {peak} bytes")
    Path("found.txt").write_text("\n".join(found))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_the_largest_pictures_stay_below_a_gigabyte(tmp_path):
    pictures = {"a.png": png(8192, 6, 4), "b.png": png(8192, 2, 3), "c.tif": tiff(8192, 32, 3)}
    pictures |= {"d.tif": tiff(8192, 16, 1), "e.png": png(12032), **icons(png(12032))}
    for i, (name, data) in enumerate(pictures.items()):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / name).write_bytes(data)
    names = [str(i) for i in range(len(pictures))]
    assert ended(start(read_pictures, names, folder=tmp_path)) == 0
    assert (tmp_path / "found.txt").read_text() == ""


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_in_strips_are_the_pictures(mode, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (23, 17, 4), np.uint8)
    picture = Image.fromarray(values).convert("RGBA")
    if mode in ("I;16", "F"):
        grey = np.asarray(picture.convert("L"))
        picture = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.float32) / 1)
        picture = Image.fromarray(grey.astype(np.uint16)) if mode == "I;16" else picture
    else:
        picture = picture.convert(mode)
        picture.info |= {"transparency": 3} if mode == "P" else {}
    bounds = decoding.Range((0.0, 255.0), (0.0, 255.0))
    for target in ("L", "RGB", "RGBA"):
        for size in (None, (9, 11)):
            arguments = (picture, "x", target, size, "stretch", bounds)
            monkeypatch.setattr(decoding, "STRIP", 1 << 20)
            whole = decoding.to_array(*arguments)
            monkeypatch.setattr(decoding, "STRIP", 40)
            assert np.array_equal(decoding.to_array(*arguments), whole)
            assert whole.shape[1:] == (size or (23, 17))


def test_pictures_far_larger_than_their_files_are_so_large_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FREE_PIXELS", 100 * 100)
    (tmp_path / "flat.png").write_bytes(png(256))
    with pytest.raises(DataError, match=r"256x256 pixels are far larger than their files"):
        load_data(str(tmp_path))
    assert load_data(str(tmp_path), size=(256, 256)).spec.shape[1:] == (256, 256)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")  # enough bytes for both
    assert len(load_data(str(tmp_path))) == 2


def test_a_picture_inside_an_icon_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 200)
    for name, data in icons(png(256)).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: cannot decode"):
            picture_at(tmp_path / name)


GOOD = '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png", "text": "y"}\n'


def test_tables_of_captions_name_what_is_wrong_and_lead_nowhere(tmp_path):
    for i, name in enumerate(("a.png", "b.png")):
        Image.new("L", (8, 8), 100 * i).save(tmp_path / name)
    table = tmp_path / "metadata.jsonl"
    for wrong in ("[" * 100_000, '{"file_name": ' + "9" * 5000 + "}", "\xff", '"'):
        table.write_text(wrong, encoding="latin1")
        with pytest.raises(DataError, match=r"metadata.jsonl is not a table of captions \("):
            load_data(str(tmp_path))
    outside = ("../../etc/passwd", "/etc/passwd", "\\u0000", "\\ud800")
    table.write_text(
        GOOD + "".join(f'{{"file_name": "{n}", "text": "\\udfff"}}\n' for n in outside)
    )
    data = load_data(str(tmp_path))
    assert list(data.captions) == ["x", "y"]
    assert any("4 captions are of files not here" in note for note in data.notes)


def test_tables_of_odd_cells_are_read_or_named(tmp_path):
    path = tmp_path / "t.csv"
    for cells in ("1_0", "٣", "0x10", "\0"):
        path.write_text(f"a,b\n{cells},2\n3,4\n")
        with pytest.raises(DataError, match="columns with text are no numbers: 'a'"):
            load_data(str(path))
    for odd in ('"' * 16384, '"a" ' * 4096, "',\"" * 6000, "a'" * 8000, "|" * 16384):
        path.write_text(odd)  # of which Python's sniffer of dialects takes minutes, or for ever
        with pytest.raises(DataError, match=r"t\.csv"):
            load_data(str(path))
    path.write_text("label,b\n" + "".join(f"{'ab'[i % 2]},{i}\n" for i in range(9)))
    data = load_data(str(path))
    assert data.spec.classes == ("a", "b") and len(data) == 9


def test_a_parquet_file_is_no_larger_than_plausible(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    zeros = np.zeros(4_000_000)
    parquet.write_table(pa.table({"a": zeros, "b": zeros}), tmp_path / "bomb.parquet")
    with pytest.raises(DataError, match="claims 4000000 rows of 2 columns"):
        load_data(str(tmp_path / "bomb.parquet"))
    values = pa.table({"a": pa.array([2**60, 2]), "b": [1, 2]})
    parquet.write_table(values, tmp_path / "large.parquet")
    assert float(load_data(str(tmp_path / "large.parquet")).raw_items(range(1))[0, 0]) == 2.0**60


def block(name, size, kind=b"0"):
    """A header of a tar."""
    head = bytearray(512)
    head[: len(name)], head[100:108], head[124:136] = name, b"0000644\0", b"%011o\0" % size
    head[156:157], head[257:265], head[148:156] = kind, b"ustar\00000", b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def test_tars_lead_nowhere_and_end(tmp_path):
    back = b"17 size=-1536\n".replace(b"17", b"14")
    loop = block(b"p", len(back), b"x") + back.ljust(512, b"\0") + block(b"a.png", 0)
    (tmp_path / "loop.tar").write_bytes(loop + bytes(1024))
    with pytest.raises(DataError, match=r"loop\.tar"):
        load_data(str(tmp_path / "loop.tar"))
    picture = io.BytesIO()
    Image.new("L", (8, 8), 9).save(picture, "PNG")
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        for name, kind in (("a.png", tarfile.REGTYPE), ("../b.png", tarfile.REGTYPE),
                           ("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(picture.getvalue()) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    before = sorted(tmp_path.rglob("*"))
    assert len(load_data(str(tmp_path / "links.tar"), scaling="none")) == 1
    assert sorted(tmp_path.rglob("*")) == before
    for pattern in ("x-{000000..999999}.tar", "x-{0..999}{0..999}.tar"):
        with pytest.raises(DataError, match="shards"):
            expanded(pattern)
    assert expanded("x{0..1}{a,b}.tar") == ["x0a.tar", "x0b.tar", "x1a.tar", "x1b.tar"]


def test_arrays_promise_no_more_than_they_hold(tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, a=np.arange(6).reshape(2, 3), b=np.asfortranarray(np.eye(3)[:2]))
    found = read_arrays(good, "a file of arrays")
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["b"][1].tolist() == [0, 1, 0]
    np.save(tmp_path / "one.npy", np.ones(3))
    assert read_arrays(tmp_path / "one.npy", "an array")[""].tolist() == [1, 1, 1]
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(5_000_000))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mu.npy", zeros.getvalue())
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], object))
    locked = bytearray(good.read_bytes())
    at = locked.index(b"PK\x01\x02")
    locked[6], locked[at + 8] = 1, 1  # says that it is encrypted
    (tmp_path / "locked.npz").write_bytes(locked)
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(5))
    for name in ("bomb.npz", "objects.npz", "locked.npz", "cut.npz", "pickle.npy"):
        with pytest.raises(UserError, match=rf"{name} is not a file of arrays \("):
            read_arrays(tmp_path / name, "a file of arrays")
        with pytest.raises(UserError, match=name):
            load_statistics(tmp_path / name)
    for odd in (np.array(3.0), np.array(["a"]), np.zeros((0, 3)), np.zeros(4)):
        np.savez(tmp_path / "odd.npz", pool_3=odd)
        with pytest.raises(UserError, match="odd.npz"):
            load_statistics(tmp_path / "odd.npz")


def test_what_a_run_keeps_of_its_data_is_named_if_damaged(tmp_path):
    path = tmp_path / "gaussian.safetensors"
    for content in (
        b"",
        b"x" * 100,
        (1 << 60).to_bytes(8, "little") + b"{}",
        b"\2" + bytes(7) + b"{}",
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="delete it, it is made again"):
            load_gaussian(path, "data")
        if len(content) != 10:  # whole, and of no weights
            with pytest.raises(UserError, match="delete it, it is made again"):
                load_residuals(path, "weights")


def test_the_list_of_a_checkpoint_in_parts_asks_for_no_more_than_they_hold(tmp_path):
    from torch.distributed.checkpoint.metadata import (
        Metadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    (tmp_path / ".metadata").write_bytes(bytes.fromhex("80025d72000000102e"))  # 4 GB of places
    with pytest.raises(UserError, match="asks for a place"):
        read_weights(tmp_path, "model")
    huge = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([1 << 40]), [])
    said = Metadata({"model/w": huge}, storage_data={})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(said))
    with pytest.raises(CheckpointError, match="lists tensors of 4398046511104 bytes"):
        read_weights(tmp_path, "model")


def test_a_pipeline_names_no_module(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from score_sde import load_diffusers

    (tmp_path / "evil.py").write_text("open('touched', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    index = {"_class_name": "DDPMPipeline", "unet": ["evil", "X"], "scheduler": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="asks for 'evil' as the library of unet"):
        load_diffusers(tmp_path)
    assert not (tmp_path / "touched").exists()
