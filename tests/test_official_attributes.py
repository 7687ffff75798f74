"""LFWA, WIDER Attribute, Berkeley and the attributes of CelebAMask-HQ: every trap of datasets.md (2, 3, 4, 7)"""
import builtins, json, shutil, zipfile

import numpy as np
import pytest

import fixture_formats as ff
from symbiosis_nb.core import DataError
from symbiosis_nb.data import face_sets
from symbiosis_nb.data.files import hold_out, read_mat
from symbiosis_nb.data.official import berkeley_attributes, celebamask_hq_attributes, clip_boxes, lfwa, wider_attribute
from symbiosis_nb.data.tables import check_split, read_image

# ---- LFWA --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("version", ["7.3", "5"])
@pytest.mark.parametrize("kwargs", [{}, dict(transposed=True), dict(sign=True), dict(attributes=ff.CELEBA_NAMES[::-1]),
                                    dict(attributes=[n.lower().replace("_", " ") for n in ff.CELEBA_NAMES])], ids=str)
def test_lfwa(tmp_path, version, kwargs):
    label = ff.lfwa_set(tmp_path, version=version, **kwargs)
    table = lfwa(tmp_path, valid_share=0)
    rows = [0, 1, 2, 3, 4, 5, 6, 8]                             # image 8 (counted from 1) is in no list
    np.testing.assert_array_equal(table.labels, label[rows])
    assert table.split.tolist() == ["train"]*5 + ["test"]*3 and table.known.all() and table.boxes is None
    assert table.identity.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert table.paths[-1] == tmp_path/"lfw"/"Zoran_Djindjic"/"Zoran_Djindjic_0004.jpg"
    assert any("1 images are in neither part" in n for n in table.notes) and any("9 images in lfw_att_40.mat" in n for n in table.notes)


def test_lfwa_hdf5_orientation_is_kept_when_square(tmp_path):
    "40 images and 40 attributes: the shape tells nothing, the encoding does"
    names = [f"P{i:02d}\\P{i:02d}_0001.jpg" for i in range(40)]
    label = np.triu(np.ones((40, 40)))
    for version in ("7.3", "5"):
        ff.lfwa_mats(tmp_path, names, label, ff.CELEBA_NAMES, [1, 2], [40], version)
        np.testing.assert_array_equal(face_sets._lfwa_labels(tmp_path/"lfw_att_40.mat")[1], label > 0)


def test_lfwa_hold_out_keeps_people_together(tmp_path):
    ff.lfwa_set(tmp_path)
    table = lfwa(tmp_path, valid_share=.4)
    assert table.counts() == dict(train=3, valid=2, test=3) or table.counts() == dict(train=2, valid=3, test=3)
    check_split(table)
    again = lfwa(tmp_path, valid_share=.4)
    assert table.digest == again.digest
    with pytest.raises(ValueError, match="valid_share"): lfwa(tmp_path, valid_share=1)


def test_lfwa_other_image_folders(tmp_path):
    ff.lfwa_set(tmp_path)
    shutil.move(tmp_path/"lfw", tmp_path/"lfw-deepfunneled")
    with pytest.raises(DataError, match="found no lfw"): lfwa(tmp_path)
    assert len(lfwa(tmp_path, images="lfw-deepfunneled")) == 8


def test_lfwa_with_a_second_copy_beside_it(tmp_path):
    "A grey or backed-up copy below the pictures' folder is not mixed with the set"
    ff.lfwa_set(tmp_path)
    people = [p for p in (tmp_path/"lfw").iterdir() if p.is_dir()]
    for p in people: shutil.copytree(p, tmp_path/"lfw"/"0_grey"/p.name); shutil.copytree(p, tmp_path/"lfw"/"zz_backup"/p.name)
    assert {p.parents[1].name for p in lfwa(tmp_path, valid_share=0).paths} == {"lfw"}


def test_lfwa_files_with_a_literal_backslash(tmp_path):
    "Some unpackers on Windows zips leave `Person\\\\Person_0001.jpg` as one file name"
    ff.lfwa_set(tmp_path)
    shutil.rmtree(tmp_path/"lfw")
    for n in ff.LFWA_NAMES: ff.picture(tmp_path/"lfw"/n)
    table = lfwa(tmp_path)
    assert len(table) == 8 and read_image(table.paths[0]).size == (8, 10)


def test_lfwa_zip(tmp_path):
    ff.lfwa_set(tmp_path)
    with zipfile.ZipFile(tmp_path/"lfw.zip", "w") as z:
        for p in (tmp_path/"lfw").rglob("*.jpg"): z.write(p, p.relative_to(tmp_path).as_posix())
    shutil.rmtree(tmp_path/"lfw")
    assert read_image(lfwa(tmp_path).paths[3]).mode == "RGB"


def test_lfwa_people_in_both_parts_are_said(tmp_path):
    ff.lfwa_set(tmp_path, train=(1, 2, 3), test=(4, 5))
    assert not any("both official parts" in n for n in lfwa(tmp_path).notes)
    ff.lfwa_set(tmp_path, train=(1, 2), test=(3, 4))
    assert any("1 people lie in both official parts" in n for n in lfwa(tmp_path).notes)


def test_lfwa_without_h5py_names_it(tmp_path, monkeypatch):
    ff.lfwa_set(tmp_path)
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name == "h5py": raise ImportError("no h5py")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install h5py"): lfwa(tmp_path)
    ff.lfwa_set(tmp_path, version="5")
    assert len(lfwa(tmp_path)) == 8


def test_mat_char_matrix_and_python_strings(tmp_path):
    import h5py
    with h5py.File(tmp_path/"a.mat", "w") as f:
        f.create_dataset("python", data=["one", "two"])
        f.create_dataset("matrix", data=np.array([[ord(c) for c in w.ljust(4)] for w in ("one", "four")], "<u2").T)
    found = read_mat(tmp_path/"a.mat")
    assert found["python"] == ["one", "two"] and found["matrix"] == ["one", "four"]

# ---- WIDER -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("anno", ["wider_attribute_annotation", "Anno", ""])
def test_wider(tmp_path, anno):
    ff.wider_set(tmp_path, anno)
    table = wider_attribute(tmp_path)
    assert table.split.tolist() == ["train", "train", "valid", "test"] and table.frame == "box" and table.identity is None
    assert table.boxes.tolist() == [[0, 2, 6.5, 28], [4, 4, 10, 10], [1, 1, 8, 8], [0, 0, 20, 30]]  # negative x and over the border: clipped
    assert table.labels[:, :3].tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1]]
    assert table.known[:, :3].tolist() == [[True, True, False], [True, True, True], [True, False, False], [True, False, True]]
    assert not table.known[:, 3:].any() and any("1 boxes have less than a pixel" in n for n in table.notes)
    assert table.paths[0].parts[-3:] == ("train", "0--Parade", "a.jpg") and table.paths[3].parts[-3:] == ("test", "0--Parade", "a.jpg")  # the same name twice


def test_wider_attribute_order_follows_the_map(tmp_path):
    docs = ff.wider_docs()
    for doc in docs: doc["attribute_id_map"] = {str(13 - i): n for i, n in enumerate(ff.WIDER_NAMES)}
    ff.wider_set(tmp_path, docs=docs)
    assert wider_attribute(tmp_path).known[0].nonzero()[0].tolist() == [12, 13]
    for doc in docs: doc["attribute_id_map"] = {"0": "male", "4": "Tshirt"}
    ff.wider_set(tmp_path, docs=docs)
    assert wider_attribute(tmp_path).known[0].nonzero()[0].tolist() == [0, 1]
    for doc in docs: del doc["attribute_id_map"]
    ff.wider_set(tmp_path, docs=docs)
    assert wider_attribute(tmp_path).known[0].nonzero()[0].tolist() == [0, 1]


def test_wider_map_is_sorted_as_numbers(tmp_path):
    docs = ff.wider_docs()
    for doc in docs: doc["attribute_id_map"] = dict(sorted(doc["attribute_id_map"].items()))  # "0", "1", "10", "11", …
    ff.wider_set(tmp_path, docs=docs)
    assert wider_attribute(tmp_path).labels[1, :3].tolist() == [0, 1, 1]


def test_wider_missing_and_damaged_images(tmp_path):
    ff.wider_set(tmp_path)
    (tmp_path/"Image"/"val"/"1--Handshaking"/"b.jpg").unlink()
    with pytest.raises(DataError, match="b.jpg: no image"): wider_attribute(tmp_path)
    assert wider_attribute(tmp_path, on_missing="skip").counts() == dict(train=2, valid=0, test=1)
    ff.put(tmp_path/"Image"/"test"/"0--Parade"/"a.jpg", b"<html>quota</html>")
    with pytest.raises(DataError, match="b.jpg"): wider_attribute(tmp_path)
    assert wider_attribute(tmp_path, on_missing="skip").counts() == dict(train=2, valid=0, test=0)


def test_clip_boxes():
    boxes = np.array([[-1, -1, 3, 3], [8, 8, 5, 5], [9.5, 0, 5, 5], [2, 2, -3, 4], [np.nan]*4])
    out = clip_boxes(boxes, np.full((5, 2), 10.))
    assert out[:2].tolist() == [[0, 0, 2, 2], [8, 8, 2, 2]] and np.isnan(out[2:]).all()

# ---- Berkeley ----------------------------------------------------------------------------------------------------------------

def test_berkeley(tmp_path):
    ff.berkeley_set(tmp_path/"attributes_dataset")
    table = berkeley_attributes(tmp_path, valid_share=0)
    assert table.counts() == dict(train=4, valid=0, test=4) and table.frame == "box"
    assert table.boxes[:2].tolist() == [[2.5, 3, 10, 37], [0, 0, 30, 40]]          # clipped; NaN: the whole image
    assert table.labels[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0] and table.known[0].tolist() == [True, False]*2 + [True, True, False, True, True]
    assert not table.known[2].any()                                                # all nine unspecified: stays
    assert table.paths[0] != table.paths[4] and table.paths[0].name == table.paths[4].name   # both parts number alike
    assert any("2 rows have no usable box: the whole image" in n for n in table.notes)


def test_berkeley_nan_boxes_dropped(tmp_path):
    ff.berkeley_set(tmp_path)
    table = berkeley_attributes(tmp_path, valid_share=0, nan_box="drop")
    assert len(table) == 6 and any("dropped as asked" in n for n in table.notes)
    with pytest.raises(ValueError, match="nan_box"): berkeley_attributes(tmp_path, nan_box="zero")


def test_berkeley_hold_out(tmp_path):
    ff.berkeley_set(tmp_path)
    table = berkeley_attributes(tmp_path, valid_share=.25, seed=4)
    assert table.counts() == dict(train=3, valid=1, test=4) and any("seed=4" in n for n in table.notes)


def test_berkeley_missing_image(tmp_path):
    ff.berkeley_set(tmp_path); (tmp_path/"test"/"00003.jpg").unlink()
    with pytest.raises(DataError, match="test/00003.jpg: no image"): berkeley_attributes(tmp_path)
    assert len(berkeley_attributes(tmp_path, on_missing="skip")) == 7


def test_hold_out_share_and_seeds():
    split, who = np.array(["train"]*1000 + ["test"]*100), np.arange(1100)//4
    outs = [hold_out(split, who, .1, seed, []) for seed in range(5)]
    for out in outs:
        assert 90 <= (out == "valid").sum() <= 100 and (out[1000:] == "test").all()
        assert not set(who[out == "valid"]) & set(who[out == "train"])
    assert len({tuple(o) for o in outs}) == 5 and (hold_out(split, who, 0, 0, []) == split).all()


def in_order(count, share, seed):
    "Groups held out by the rule that kept runs were split by: in order, until the next one does not fit; the first one in any case"
    order = np.random.default_rng(seed).permutation(len(count))
    return set(order[:max(1, int((np.cumsum(count[order]) <= share*count.sum()).sum()))].tolist())


@pytest.mark.parametrize("seed", range(12))
def test_one_person_with_most_pictures_is_not_all_that_is_held_out(seed):
    "40 of 50 pictures show one person: those who fit are held out, in order; without a big one the choice is what it was"
    who = np.array([0]*40 + [1]*5 + [2]*3 + [3]*2)
    held = who[hold_out(np.array(["train"]*50), who, .1, seed, []) == "valid"]
    assert 0 < len(held) <= 5 and 0 not in held
    assert set(who[hold_out(np.array(["train"]*50), who, .01, seed, []) == "valid"]) == {3}   # nobody fits: the smallest
    count = np.random.default_rng(seed).integers(1, 9, 40)
    many = np.repeat(np.arange(40), count)
    for share in (.05, .1, .2, .5): assert set(many[hold_out(np.array(["train"]*len(many)), many, share, seed, []) == "valid"]) == in_order(count, share, seed)
    assert set(hold_out(np.array(["train"]*6), np.arange(6), .1, seed, []) == "valid") == {True, False}   # pictures: one of them, the first of the order
    assert (hold_out(np.array(["train"]*6), np.arange(6), .1, seed, []) == "valid").argmax() in in_order(np.ones(6, int), .1, seed)


# ---- CelebAMask-HQ -------------------------------------------------------------------------------------------------------------

def test_maskhq_attributes(tmp_path):
    ff.maskhq_set(tmp_path/"CelebAMask-HQ")
    table = celebamask_hq_attributes(tmp_path)
    assert table.split.tolist() == ["train", "valid", "test"] and table.labels.sum(1).tolist() == [1]*3 and table.names == tuple(ff.CELEBA_NAMES)
    assert [p.name for p in table.paths] == ["0.jpg", "1.jpg", "2000.jpg"]


def test_mat5_agrees_with_scipy(tmp_path):
    "Our small MATLAB 5 reader against SciPy's, plain and compressed, over number types, cells and text"
    from scipy.io import savemat
    rng = np.random.default_rng(0)
    numbers = {f"n{t}": rng.integers(0, 100, (3, 5)).astype(t) for t in "u1 i1 u2 i2 u4 i4 u8 i8 f4 f8".split()} | dict(one=np.array([[True, False]]), empty=np.zeros((0, 3)))
    words = dict(cell=np.array([["Ann"], ["a longer one"], ["é"]], object), text="words", rows=np.array(["one", "three"]))
    for compress in (False, True):
        savemat(tmp_path/"a.mat", numbers | words | dict(struct=dict(a=1)), do_compression=compress)
        found = read_mat(tmp_path/"a.mat")
        for k, v in numbers.items(): np.testing.assert_array_equal(found[k], v)
        assert found["cell"] == ["Ann", "a longer one", "é"] and found["text"] == ["words"] and found["rows"] == ["one", "three"] and "struct" not in found
