"""CelebA as parquet shards (datasets.md, 1.1): both packagings that circulate, every trap, and a fuzz of the bytes"""
import io, os, shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import fixture_formats as ff
from symbiosis_nb.core import DataError
from symbiosis_nb.data import face_sets, shards
from symbiosis_nb.data.official import celeba, check_files
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.data.sources import open_faces
from symbiosis_nb.data.tables import AttributeTable, read_image
from symbiosis_nb.vocab import CELEBA

TRAIN0, TRAIN1, TEST = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of its own for every test"
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache")); monkeypatch.setenv("SYMBIOSIS_QUIET", "1")
    return tmp_path/"cache"


def face(i, kind="JPEG"):
    out = io.BytesIO(); Image.new("RGB", (178, 218), (40*i, 90, 120)).save(out, kind)
    return out.getvalue()

def columns(rows, image="JPEG", path=True, encode=lambda v: v.tolist(), who=None):
    "The columns of some of the six rows: image cells, forty labels, and the identity under the name `who`"
    cells = [dict(bytes=face(i, image), path=ff.CELEBA_ROWS[i] if path else None) for i in rows]
    labels = {a: encode(ff.celeba_labels()[list(rows), k]) for k, a in enumerate(ff.CELEBA_NAMES)}
    return dict(image=cells, **labels, **({who: [ff.CELEBA_PEOPLE[i] for i in rows]} if who else {}))

def shard(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, row_group_size=2)
    return path

def named(root, valid="validation", folder="data", **kwargs):
    "JPEG bytes under their official names, integers -1 and 1, no identity; `kwargs` as for `columns`"
    for name, rows in ((TRAIN0, (0, 1)), (TRAIN1, (2,)), (f"{valid}-00000-of-00001.parquet", (3,)), (TEST, (4, 5))): shard(root/folder/name, columns(rows, **kwargs))
    return root

def unnamed(root):
    "PNG bytes without names, bools, identities"
    return named(root, "valid", "img_align+identity+attr", image="PNG", path=False, encode=lambda v: (v > 0).tolist(), who="celeb_id")

def same_pictures(root):
    "Put the shards' pictures into an official set"
    for i, name in enumerate(ff.CELEBA_ROWS): next(root.rglob(f"img_align_celeba/{name}")).write_bytes(face(i))

def same(table):
    "The six rows, as they must come out of every layout"
    np.testing.assert_array_equal(table.labels, ff.celeba_labels() > 0)
    assert table.known.all() and table.names == CELEBA.names and table.name == "CelebA (aligned)" and table.frame == "aligned"
    assert table.split.tolist() == ["train"]*3 + ["valid"] + ["test"]*2 and table.boxes is None and table.landmarks is None
    assert sum("subset" in n for n in table.notes) == 1
    return table


def test_parquet_is_the_official_layout(tmp_path):
    table = same(celeba(named(tmp_path/"hub")))
    assert [Path(p).name for p in table.paths] == ff.CELEBA_ROWS and table.identity is None
    assert [Path(p).read_bytes() for p in table.paths] == [face(i) for i in range(6)]     # byte for byte
    ff.celeba_set(tmp_path/"official", wild=False)
    for name in ("identity_CelebA.txt", "list_landmarks_align_celeba.txt"): (tmp_path/"official"/"Anno"/name).unlink()
    assert celeba(tmp_path/"official").digest != table.digest                             # other pictures under the same names
    same_pictures(tmp_path/"official")
    assert celeba(tmp_path/"official").digest == table.digest                             # results of both can be put side by side
    assert table.notes[0] == "unpacked from 4 parquet shards, which have no identity, no landmarks, no boxes" and len(table.notes) == 2


def test_parquet_of_decoded_pictures(tmp_path):
    table = celeba(unnamed(tmp_path/"hub"))
    assert sorted(table.identity.tolist()) == sorted(ff.CELEBA_PEOPLE) and table.counts() == dict(train=3, valid=1, test=2)
    names = ["test-00000-000000", "test-00000-000001", "train-00000-000000", "train-00000-000001", "train-00001-000000", "valid-00000-000000"]
    assert [Path(p).name for p in table.paths] == [f"{n}.png" for n in names]              # no official number is guessed
    order = [4, 5, 0, 1, 2, 3]
    np.testing.assert_array_equal(table.labels, ff.celeba_labels()[order] > 0)
    assert table.identity.tolist() == [ff.CELEBA_PEOPLE[i] for i in order] and [read_image(p).getpixel((0, 0))[0] for p in table.paths] == [40*i for i in order]
    assert "no landmarks, no boxes; their pictures have no official names" in table.notes[0] and "identity" not in table.notes[0]


@pytest.mark.parametrize("encode", [lambda v: (v > 0).tolist(), lambda v: (v > 0).astype("i1").tolist(), lambda v: v.astype("f4"), lambda v: pa.array(v, pa.int8())])
def test_parquet_encodings(tmp_path, encode): same(celeba(named(tmp_path/"hub", encode=encode)))


@pytest.mark.parametrize("valid", ["val", "valid", "validation"])
@pytest.mark.parametrize("folder", ["", "data", "img_align+identity+attr"])
def test_parquet_names_and_folders(tmp_path, valid, folder):
    root = named(tmp_path/"hub", valid, folder, who="identity")
    (root/folder/TEST).rename(root/folder/"test-00000-of-00001-a5d8d2eccc30a157.parquet")  # as older uploads are called
    ff.put(root/"notes.parquet", b"not ours"); ff.put(root/"README.md", "# card")
    assert same(celeba(root)).identity.tolist() == ff.CELEBA_PEOPLE


def test_parquet_columns_are_taken_by_name(tmp_path):
    root = named(tmp_path/"hub"); path = root/"data"/TEST
    table = pq.read_table(path)
    order = np.random.default_rng(0).permutation(table.column_names).tolist()
    shard(path, table.select(order).append_column("prompt_string", [["a face", None]]).append_column("image_id", [[1, 2]]))
    same(celeba(root))


def test_parquet_folders_in_the_stored_path_are_dropped(tmp_path):
    root = named(tmp_path/"hub"); rows = columns((4, 5))
    for cell, head in zip(rows["image"], ("img_align_celeba/", "..\\..\\")): cell["path"] = head + cell["path"]
    shard(root/"data"/TEST, rows)
    assert [Path(p).name for p in same(celeba(root)).paths] == ff.CELEBA_ROWS


def test_parquet_plain_bytes(tmp_path):
    root = named(tmp_path/"hub"); rows = columns((4, 5))
    shard(root/"data"/TEST, rows | dict(image=[c["bytes"] for c in rows["image"]]))
    assert {Path(p).name for p in celeba(root).paths[-2:]} == {"test-00000-000000.jpg", "test-00000-000001.jpg"}


def test_parquet_identity_in_some_shards(tmp_path):
    root = named(tmp_path/"hub"); shard(root/"data"/TEST, columns((4, 5), who="celeb_id"))
    table = same(celeba(root))
    assert table.identity.tolist() == [-1]*4 + [41, 41] and any("no line for 4 images" in n for n in table.notes)


def test_parquet_empty_shard_and_missing_part(tmp_path):
    root = named(tmp_path/"hub"); shard(root/"data"/TRAIN1, pq.read_table(root/"data"/TRAIN1).slice(0, 0))
    (root/"data"/TEST).unlink()
    table = celeba(root)
    assert table.counts() == dict(train=2, valid=1, test=0) and "test 0" in table.notes[-1]


def test_parquet_takes_official_lists_along(tmp_path):
    ff.celeba_set(tmp_path/"official"); anno = tmp_path/"official"/"Anno"
    same_pictures(tmp_path/"official")
    table = celeba(named(tmp_path/"hub"), files=dict(landmarks=anno/"list_landmarks_align_celeba.txt", identity=anno/"identity_CelebA.txt"))
    assert table.digest == celeba(tmp_path/"official").digest and table.notes[0].endswith("no boxes")


def test_parquet_gives_way_to_official_lists(tmp_path, cache):
    ff.celeba_set(tmp_path/"hub"); named(tmp_path/"hub")
    assert celeba(tmp_path/"hub").landmarks is not None and not cache.exists()


def test_parquet_feeds_the_pixel_store(tmp_path):
    store = pixel_store(open_faces(str(named(tmp_path/"hub"))).paths, (24, 20), workers=1)
    assert store.shape == (24, 20, 3) and abs(store[[3]].float().mean((0, 1, 2))[0] - 120) < 4


def test_parquet_of_the_full_set_must_have_the_official_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(face_sets, "CELEBA_COUNTS", dict(train=2, valid=2, test=2))
    with pytest.raises(DataError, match="not in the official parts"): celeba(named(tmp_path/"hub"))


# ---- unpacked once ----------------------------------------------------------------------------------------------------------

def stamps(table): return {Path(p).name: Path(p).stat().st_mtime_ns for p in table.paths}


def test_parquet_is_unpacked_once(tmp_path, monkeypatch):
    first = celeba(named(tmp_path/"hub")); before = stamps(first)
    with monkeypatch.context() as m:
        m.setattr(shards, "_shard_rows", None)                              # not even looked into
        assert stamps(same(celeba(tmp_path/"hub"))) == before
    Path(first.paths[2]).unlink(); Path(first.paths[3]).write_bytes(b"")      # a cache that somebody thinned out
    after = stamps(same(celeba(tmp_path/"hub")))
    assert {n for n in after if after[n] != before[n]} == {Path(first.paths[k]).name for k in (2, 3)}


def test_parquet_goes_on_where_it_was_cut_off(tmp_path, cache, monkeypatch):
    rows = shards._shard_rows
    def cut(path):
        for i, row in enumerate(rows(path)):
            if path.name == TEST and i == 1: raise KeyboardInterrupt
            yield row
    monkeypatch.setattr(shards, "_shard_rows", cut)
    with pytest.raises(KeyboardInterrupt): celeba(named(tmp_path/"hub"))
    there = {p.name: p.stat().st_mtime_ns for p in cache.rglob("*.jpg")}
    assert len(there) == 5 and not list(cache.rglob("*.txt"))                 # the lists, which say that all is there, come last
    monkeypatch.setattr(shards, "_shard_rows", rows)
    after = stamps(same(celeba(tmp_path/"hub")))
    assert {n: after[n] for n in there} == there and not list(cache.rglob("*.tmp"))


def test_parquet_that_changes_is_unpacked_anew(tmp_path, cache):
    celeba(named(tmp_path/"hub")); rows = columns((4, 5)); rows["Young"] = [1, 1]; rows["Male"] = [-1, -1]
    shard(tmp_path/"hub"/"data"/TEST, rows); os.utime(tmp_path/"hub"/"data"/TEST, ns=(1, 1))
    assert celeba(tmp_path/"hub").labels[4:, -1].tolist() == [1, 1] and len(list((cache/"celeba").iterdir())) == 2


def test_parquet_needs_room(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="needs .* SYMBIOSIS_CACHE"): celeba(named(tmp_path/"hub"))
    assert not list(cache.rglob("*.jpg"))


# ---- traps ------------------------------------------------------------------------------------------------------------------

def cell(**change):
    def edit(rows): rows["image"][1].update(change)
    return edit

def put(key, values):
    def edit(rows): rows[key] = values
    return edit

NULLS = dict.fromkeys([*ff.CELEBA_NAMES, "celeb_id"], [1, None])
FAULTS = {  # what is done to the two test rows -> what must be said
    "no image": (lambda r: r.pop("image"), "no column image"), "no label": (lambda r: r.pop("Young"), "no column Young"),
    "label twice": (lambda r: r.update(young=r["Young"]), "no column Young .*twice"),
    "two": (put("Male", [2, 1]), "row 0: Male is 2, expected -1 or 1"), "zero": (put("Male", [-1, 0]), "row 1: Male is 0, expected -1 or 1"),
    "half": (put("Male", [.5, 1.]), "row 0: Male is 0.5"), "null label": (put("Male", [1, None]), "row 1: Male is nan"),
    "words": (put("Male", ["yes", "no"]), "is damaged, or is not a parquet file of CelebA"), "lists": (put("Male", [[1], [1]]), "is not a parquet file of CelebA"),
    "null row": (lambda r: r.update(NULLS, image=[r["image"][0], None]), "row 1: no picture is embedded"), "null bytes": (cell(bytes=None), "row 1: no picture is embedded"),
    "empty bytes": (cell(bytes=b""), "row 1: no picture is embedded"), "image is text": (put("image", ["000001.jpg", "b.jpg"]), "row 0: no picture is embedded"),
    "noise": (cell(bytes=b"abc" * 9), "row 1: '202599.jpg' is neither JPEG nor PNG"), "gif": (cell(bytes=face(1, "GIF")), "row 1: .* neither JPEG nor PNG"),
    "web page": (cell(bytes=b"<!DOCTYPE html>"), "row 1: .* is a web page"), "pointer": (cell(bytes=b"version https://git-lfs"), "row 1: .*git lfs pull"),
    "twice": (cell(path="182638.png"), "row 1: '182638' again, already in row 0 of test-00000-of-00001.parquet"),
    "twice in the set": (cell(path="000007.jpg"), "row 1: '000007' again, already in row 1 of train-00000-of-00002.parquet"),
    "hidden": (cell(path=".jpg"), "row 1: '.jpg' is not the name"), "spaces": (cell(path="a b.jpg"), "is not the name"), "folder": (cell(path="a/.."), "is not the name"),
    "long": (cell(path="x"*300), "is not the name"), "newline": (cell(path="a\n1.jpg"), "is not the name"),
    "null identity": (put("celeb_id", [1, None]), "row 1: identity is nan, expected a whole number"), "negative": (put("celeb_id", [-4, 1]), "row 0: identity is -4"),
    "who in two parts": (put("celeb_id", [2880, 41]), "more than one split")}

@pytest.mark.parametrize("kind", FAULTS)
def test_fault_in_parquet(tmp_path, kind):
    change, words = FAULTS[kind]
    root = named(tmp_path/"hub", who="celeb_id"); rows = columns((4, 5), who="celeb_id")
    change(rows); shard(root/"data"/TEST, rows)
    with pytest.raises(DataError, match=words) as e: celeba(root)
    assert TEST in str(e.value) or "split" in words


def test_all_faulty_rows_of_a_parquet_shard_are_reported(tmp_path):
    root = named(tmp_path/"hub"); rows = columns((4, 5))
    for c in rows["image"]: c["bytes"] = b"noise"
    shard(root/"data"/TEST, rows)
    with pytest.raises(DataError, match="2 faulty row.*mend these rows") as e: celeba(root)
    assert [p.split(":")[0] for p in e.value.problems] == ["row 0", "row 1"]


BROKEN = {"truncated": (lambda b: b[:-100], "is damaged"), "half": (lambda b: b[:len(b)//2], "is damaged"), "empty": (lambda b: b"", "is empty"),
          "head": (lambda b: b[:4], "is damaged"), "web page": (lambda b: b"<html>quota</html>", "is a web page"), "noise": (lambda b: bytes(range(256))*9, "is damaged"),
          "pointer": (lambda b: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), "magic only": (lambda b: b"PAR1" + b"\0"*60 + b"PAR1", "is damaged"),
          "tail of another": (lambda b: b"PAR1" + b"\0"*(len(b)//2) + b[len(b)//2:], "is damaged")}

@pytest.mark.parametrize("kind", BROKEN)
def test_broken_parquet(tmp_path, kind):
    path = named(tmp_path/"hub")/"data"/TRAIN1
    path.write_bytes(BROKEN[kind][0](path.read_bytes()))
    with pytest.raises(DataError, match=BROKEN[kind][1]) as e: celeba(tmp_path/"hub")
    assert TRAIN1 in str(e.value) and "fetch" in str(e.value) or "git lfs pull" in str(e.value)


SETS = {"missing": (lambda d: (d/TRAIN0).unlink(), "train-00000-of-00002 is missing"), "last missing": (lambda d: (d/TRAIN1).unlink(), "train-00001-of-00002 is missing"),
        "dead link": (lambda d: ((d/TRAIN1).unlink(), (d/TRAIN1).symlink_to("nowhere")), "train-00001-of-00002 is missing"),
        "of another set": (lambda d: (d/TRAIN1).rename(d/"train-00001-of-00019.parquet"), "train-00000-of-00002 is of another set"),
        "beyond": (lambda d: (d/TRAIN1).rename(d/"train-00002-of-00002.parquet"), "train-00002-of-00002 is of another set"),
        "twice": (lambda d: shutil.copy(d/TEST, d.parent/TEST), "test-00000-of-00001 is of another set, or there twice"),
        "two hashes": (lambda d: shutil.copy(d/TEST, d/"test-00000-of-00001-ab12.parquet"), "or there twice"),
        "two spellings": (lambda d: shutil.copy(d/"validation-00000-of-00001.parquet", d/"valid-00000-of-00001.parquet"), "valid-00000-of-00001 is of another set, or there twice"),
        "none": (lambda d: [p.rename(d/f"{i}.parquet") for i, p in enumerate(sorted(d.glob("*.parquet")))], "by their full names, as in train-00000-of-00019.parquet")}

@pytest.mark.parametrize("kind", SETS)
def test_parquet_set_is_not_whole(tmp_path, kind, cache):
    SETS[kind][0](named(tmp_path/"hub")/"data")
    with pytest.raises(DataError, match=SETS[kind][1]) as e: celeba(tmp_path/"hub")
    assert str(tmp_path/"hub") in str(e.value) and not cache.exists()         # said before anything is unpacked


def test_parquet_without_rows(tmp_path):
    path = named(tmp_path/"hub")/"data"/TEST
    for p in path.parent.glob("*.parquet"): shard(p, pq.read_table(p).slice(0, 0))
    with pytest.raises(DataError, match="have no rows"): celeba(tmp_path/"hub")


def test_parquet_has_no_pictures_in_the_wild(tmp_path, cache):
    with pytest.raises(DataError, match="aligned pictures only"): celeba(named(tmp_path/"hub"), variant="original")
    with pytest.raises(ValueError, match="aligned"): celeba(tmp_path/"hub", variant="wild")
    assert not cache.exists()


def test_damaged_picture_in_parquet(tmp_path):
    root = named(tmp_path/"hub"); rows = columns((4, 5)); rows["image"][1]["bytes"] = face(5)[:-200]
    shard(root/"data"/TEST, rows)
    with pytest.raises(DataError, match="202599.jpg: is damaged") as e: check_files(celeba(root))
    assert len(e.value.problems) == 1


# ---- whatever the bytes -----------------------------------------------------------------------------------------------------

STEP = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "zero", "drop", "double"]), st.integers(1, 255))

def damage(data, steps):
    "Flip a byte; cut the file; blank, drop or double a stretch of it"
    for place, kind, k in steps:
        at = int(place*len(data))
        if kind == "flip" and data: data = data[:at] + bytes([data[at] ^ k]) + data[at + 1:]
        else: data = data[:at] + dict(cut=b"", zero=b"\0"*k + data[at + k:], drop=data[at + k:], double=data[at:at + k] + data[at:]).get(kind, b"")
    return data


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = named(tmp_path_factory.mktemp("fuzz"), who="celeb_id", image="PNG")
    return root, (root/"data"/TEST).read_bytes()

@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=1, max_size=3), tail=st.booleans())
def test_any_parquet_gives_a_table_or_an_error(good, tmp_path_factory, steps, tail):
    "Half of the cases hit the footer, where a shard keeps its schema"
    root, data = good; path = root/"data"/TEST
    keep = len(data)*4//5 if tail else 0
    path.write_bytes(data[:keep] + damage(data[keep:], steps))
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SYMBIOSIS_CACHE", str(cache))
        try:
            table = celeba(root)
            for p in table.paths: read_image(p)
        except DataError as e: assert len(str(e)) < 5000
        else: assert isinstance(table, AttributeTable) and len(table) > 0
        finally: path.write_bytes(data); shutil.rmtree(cache)
