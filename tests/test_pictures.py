"""One function opens every picture: forms, orientation, depth, transparency, broken files; 3,000 broken EXIF blocks and 200 pictures are tried."""
import io
import os
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from symbiosis_nb.core import DataError
from symbiosis_nb.data import pictures
from symbiosis_nb.data.pictures import RAW, Opener, open_picture, pixels_digest, read_image, stamp, stamps, to_eight_bits
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.vocab import AttributeVocab

RELAXED = dict(deadline=None, derandomize=True, database=None)

def encoded(image, kind="PNG", **kwargs):
    out = io.BytesIO(); image.save(out, kind, **kwargs)
    return out.getvalue()

def turned(tag, size=(6, 4)):
    "JPEG bytes with an orientation tag"
    exif = Image.Exif(); exif[0x0112] = tag
    pixels = np.arange(size[0]*size[1]*3, dtype=np.uint8).reshape(size[1], size[0], 3)
    return encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_in_every_form(tag, tmp_path):
    data = turned(tag); file = tmp_path/"a.jpg"; file.write_bytes(data)
    want = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    for source in (file, str(file), data, bytearray(data), open(file, "rb"), io.BytesIO(data), Image.open(file)):
        assert (np.asarray(open_picture(source)) == want).all()
    raw = np.asarray(Image.open(file).convert("RGB"))
    for source in (file, data, Image.open(file)): assert (np.asarray(RAW(source)) == raw).all()
    assert (np.asarray(read_image(file)) == raw).all() and (np.asarray(read_image(file, exif=True)) == want).all()


EXIF = Image.Exif(); EXIF[0x0112] = 6; EXIF[0x010f] = "x"*30; EXIF.get_ifd(0x8769)[0x9003] = "2020"
WITH_EXIF = encoded(Image.new("RGB", (64, 48), (9, 99, 200)), "JPEG", exif=EXIF)

@pytest.mark.filterwarnings("ignore:.*(Corrupt EXIF|Tag data|Metadata|Truncated).*")
@settings(max_examples=3000, **RELAXED)
@given(st.lists(st.tuples(st.integers(6, 160), st.integers(0, 255)), min_size=1, max_size=6))
def test_broken_exif_never_escapes(changes):
    data, at = bytearray(WITH_EXIF), WITH_EXIF.find(b"Exif")
    for where, value in changes: data[at + where] = value
    try: assert set(open_picture(bytes(data)).size) == {64, 48}
    except DataError: pass   # the picture itself was hit


@settings(max_examples=100, **RELAXED)
@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_sixteen_bits_are_eight_bits_scaled(values):
    grey = np.array(values, np.uint8).reshape(2, 2)
    want = np.repeat(grey[..., None], 3, 2)
    deep = grey.astype(np.uint16)*257
    forms = [grey, deep, grey/255, encoded(Image.fromarray(grey)), encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "TIFF"), Image.fromarray(deep)]
    for form in forms: assert (np.asarray(open_picture(form)) == want).all()


@settings(max_examples=100, **RELAXED)
@given(st.lists(st.integers(0, 255), min_size=12, max_size=12), st.sampled_from(["white", "black", "#808080"]))
def test_what_transparency_hides_stays_hidden(hidden, background):
    pixels = np.zeros((2, 2, 4), np.uint8); pixels[..., :3] = np.array(hidden).reshape(2, 2, 3)
    pixels[0, 0] = (10, 20, 30, 255)
    opener = Opener(background=background)
    shown = np.asarray(opener(encoded(Image.fromarray(pixels))))
    assert shown[0, 0].tolist() == [10, 20, 30] and len({tuple(p) for p in shown.reshape(-1, 3)[1:]}) == 1
    assert (np.asarray(opener(pixels)) == shown).all() and (np.asarray(opener(Image.fromarray(pixels))) == shown).all()


def test_palettes_and_greys_with_transparency():
    for mode in ("LA", "PA", "RGBA"): assert open_picture(Image.new(mode, (1, 1))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 1); palette.putpalette([0, 0, 0, 9, 9, 9])
    assert open_picture(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert open_picture(encoded(Image.new("RGB", (1, 1), (7, 7, 7)), transparency=(7, 7, 7))).getpixel((0, 0)) == (255, 255, 255)
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"): assert open_picture(Image.new(mode, (2, 3))).mode == "RGB"


def test_arrays_that_are_no_pictures():
    for wrong in (np.zeros(3), np.zeros((2, 2, 2)), np.zeros((0, 4)), np.array([["a"]]), np.full((2, 2), np.nan), np.full((2, 2), -1), np.full((2, 2), 70_000), None, 3):
        with pytest.raises(DataError): open_picture(wrong)


def test_messages_name_the_cause(tmp_path, monkeypatch):
    def says(name, data, *words):
        (tmp_path/name).write_bytes(data)
        with pytest.raises(DataError) as e: open_picture(tmp_path/name)
        for w in (name, *words): assert w in str(e.value)
    monkeypatch.setattr(pictures, "_heif", lambda: False)
    says("IMG_1.HEIC", b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + b"\0"*400, "HEIC", "pip install pillow-heif")
    says("a.jpg", b"", "is empty"); says("b.jpg", b"<html>", "web page"); says("c.jpg", b"version https://git-lfs", "Git-LFS")
    says("d.png", encoded(Image.new("RGB", (50, 50)))[:60], "is damaged")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    says("large.png", encoded(Image.new("1", (1000, 1000))), "1 megapixels", "PIL.Image.MAX_IMAGE_PIXELS = None")
    with pytest.raises(DataError, match="no such file"): open_picture(tmp_path/"gone.jpg")
    with pytest.raises(DataError, match="is a folder"): open_picture(tmp_path)


def test_heic_is_read_where_its_package_is(monkeypatch):
    "The opener is registered at the first file of that kind"
    calls = []
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=lambda: calls.append(1)))
    pictures._heif.cache_clear()
    with pytest.raises(DataError, match="it is damaged"): open_picture(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + b"\0"*40)
    pictures._heif.cache_clear()
    assert calls == [1]


def test_long_texts_in_a_png_are_no_fault():
    text = PngInfo(); text.add_itxt("XML:com.adobe.xmp", "x"*2_000_000, zip=True)
    assert open_picture(encoded(Image.new("RGB", (64, 48), (1, 2, 3)), pnginfo=text)).getpixel((0, 0)) == (1, 2, 3)


def faces(folder, n=3, **kwargs):
    folder.mkdir(exist_ok=True)
    for i in range(n): (folder/f"{i}.jpg").write_bytes(turned(6))
    return AttributeTable("my faces", AttributeVocab("mine", ("hat",)), [folder/f"{i}.jpg" for i in range(n)], np.ones((n, 1)), None, ["train"]*n, **kwargs)

def test_a_table_has_one_rule(tmp_path):
    mine, boxed = faces(tmp_path/"a"), faces(tmp_path/"a", boxes=np.array([[0, 0, 2, 2.]]*3))
    assert mine.exif and not boxed.exif and mine.open(0).size == (4, 6) and boxed.open(0).size == (6, 4)
    assert faces(tmp_path/"a", exif=False).open(0).size == (6, 4) and mine.take([1]).exif and boxed.take([1]).exif is False
    upright, raw = (pixel_store(t, (6, 4), root=tmp_path/"stores") for t in (mine, boxed))
    assert upright.digest != raw.digest and (upright[[0]] != raw[[0]]).any()


def test_other_pictures_under_the_same_names_are_another_set(tmp_path):
    one, two = faces(tmp_path/"a"), faces(tmp_path/"b")
    assert one.digest == two.digest                                        # copied elsewhere: the same
    first = pixel_store(one, (6, 4), root=tmp_path/"stores")
    (tmp_path/"a"/"1.jpg").write_bytes(encoded(Image.new("RGB", (6, 4), "red"), "JPEG"))
    again = faces(tmp_path/"c"); (tmp_path/"c"/"1.jpg").write_bytes((tmp_path/"a"/"1.jpg").read_bytes())
    changed = AttributeTable(one.name, one.vocab, one.paths, one.labels, one.known, one.split)
    assert changed.digest != one.digest and changed.digest == AttributeTable(again.name, again.vocab, again.paths, again.labels, None, again.split).digest
    store = pixel_store(changed, (6, 4), root=tmp_path/"stores")
    assert store.digest != first.digest and (store[[1]] != first[[1]]).any() and (store[[0]] == first[[0]]).all()


def test_stamps_come_from_one_listing(tmp_path, monkeypatch):
    files = [tmp_path/f"{i}.bin" for i in range(80)]
    for i, f in enumerate(files): f.write_bytes(bytes([i]))
    assert stamps(files) == [stamp(f) for f in files]
    passes = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda p: passes.append(p) or scandir(p))
    stamps([*files, tmp_path/"gone.bin"]); assert len(passes) == 1
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    many = pixels_digest(files*30)                                         # so many are remembered in the cache
    assert len(list((tmp_path/"cache"/"digests").iterdir())) == 1 and pixels_digest(files*30) == many


@pytest.mark.parametrize("mode,kind,kwargs", [("CMYK", "JPEG", dict(quality=100)), ("1", "PNG", {}), ("1", "TIFF", dict(compression="group4")), ("P", "GIF", {}),
                                              ("P", "PNG", {}), ("F", "TIFF", {}), ("I", "TIFF", {}), ("I;16", "PNG", {}), ("LA", "PNG", {}), ("YCbCr", "JPEG", {})])
def test_every_kind_of_file_shows_what_a_viewer_shows(mode, kind, kwargs):
    "A black and white check, as grey as each kind can store it"
    grey = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((8, 8)))
    scaled = {"F": grey.astype(np.float32), "I": (grey*255).astype(np.int32), "I;16": (grey*65535).astype(np.uint16)}
    image = Image.fromarray(scaled[mode]) if mode in scaled else Image.fromarray((grey*255).astype(np.uint8)).convert("RGB").convert(mode) if mode != "LA" \
        else Image.fromarray((grey*255).astype(np.uint8)).convert("LA")
    shown = np.asarray(open_picture(encoded(image, kind, **kwargs)))
    assert shown.shape == (32, 32, 3) and np.abs(shown - grey[..., None]*255).mean() < 4


def test_an_open_file_is_read_from_its_beginning(tmp_path):
    file = io.BytesIO(encoded(Image.new("RGB", (3, 2), (9, 8, 7))))
    for again in range(3): assert open_picture(file).getpixel((0, 0)) == (9, 8, 7)
    (tmp_path/"a.txt").write_text("a")
    with open(tmp_path/"a.txt") as text, pytest.raises(DataError, match="mode 'rb'"): open_picture(text)


def test_another_picture_with_the_old_time_is_noticed(tmp_path):
    "Tools that copy set back when a file was written; size and that time are then those of the picture before"
    file = tmp_path/"a.bmp"; Image.new("RGB", (4, 4), 10).save(file); before, times = pixels_digest([file]), file.stat()
    Image.new("RGB", (4, 4), 20).save(file); os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size and pixels_digest([file]) != before


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_few_bits_in_sixteen_are_not_read_as_black(bits, kind):
    "A camera's 12 bits, or 8 saved as 16, would show a hardly lit picture: nobody means it"
    values = np.linspace(0, 2**bits - 1, 12).astype(np.uint16).reshape(3, 4)
    for form in (values, Image.fromarray(values), encoded(Image.fromarray(values), kind), values.astype(np.int32) if bits > 8 else values):
        with pytest.raises(DataError, match=f"use {bits} at most.*Scale it"): open_picture(form)
    assert np.asarray(open_picture(values*np.uint16(2**(16 - bits)))).max() > 250
    assert not np.asarray(open_picture(np.zeros((3, 4), np.uint16))).any()           # nothing at all is black


def test_a_float_picture_that_overshoots_is_not_black():
    "A rounding above 1 is 1; what is farther above is told, not read as 8 bits"
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    want = to_eight_bits(ramp)
    for off in (1 + 1e-7, 1 + 9e-4, 1.): assert np.abs(to_eight_bits(ramp*off).astype(int) - want).max() <= 1
    assert np.array_equal(to_eight_bits(ramp - 1e-6*(ramp == 0)), want)
    for beyond in (ramp*1.03, ramp*3.9, ramp - .1):
        with pytest.raises(DataError, match="give 0 to 255"): to_eight_bits(beyond)
    assert to_eight_bits(ramp*255).max() == 255 and to_eight_bits(np.zeros((2, 2))).max() == 0
