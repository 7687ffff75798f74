"""Every layout and every trap of CelebA (datasets.md, 1)"""
import shutil, time, zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fixture_formats as ff
from symbiosis_nb.core import DataError
from symbiosis_nb.data import face_sets
from symbiosis_nb.data.files import read_numbers
from symbiosis_nb.data.official import celeba
from symbiosis_nb.data.tables import read_image
from symbiosis_nb.vocab import CELEBA

SAMPLE = Path(__file__).parents[1]/"data"/"real"/"celeba_10k"


def same(values, table):
    "The six rows of the fixture, as they must always come out"
    np.testing.assert_array_equal(table.labels, values > 0)
    assert table.known.all() and table.names == CELEBA.names
    assert table.split.tolist() == ["train"]*3 + ["valid"] + ["test"]*2
    assert [Path(p).stem for p in table.paths] == [n[:-4] for n in ff.CELEBA_ROWS]
    assert sum("subset" in n for n in table.notes) == 1
    read_image(table.paths[-1])
    return table


def test_official_layout(tmp_path):
    values = ff.celeba_set(tmp_path)
    table = same(values, celeba(tmp_path))
    assert table.name == "CelebA (aligned)" and table.frame == "aligned" and table.boxes is None
    assert table.identity.tolist() == ff.CELEBA_PEOPLE and table.landmarks.shape == (6, 5, 2)
    assert table.landmarks[5, 4].tolist() == [108, 159] and (table.landmarks[:, 0, 0] < table.landmarks[:, 1, 0]).all()  # left is the viewer's
    assert len(table.notes) == 1 and "6 of 202,599" in table.notes[0] and "official part" not in table.notes[0]


@pytest.mark.parametrize("anno, parts, images", [("", "", "img_align_celeba"), ("celeba", "celeba", "celeba/img_align_celeba"),
    ("", "", "img_align_celeba/img_align_celeba"), ("data/celeba", "data/celeba", "data/celeba/images"), ("CelebA/Anno", "CelebA/Eval", "CelebA/Img/img_align_celeba")])
def test_layouts(tmp_path, anno, parts, images):
    same(ff.celeba_set(tmp_path, anno=anno, parts=parts, images=images, wild=False), celeba(str(tmp_path)))


def test_png_set_is_matched_by_stem(tmp_path):
    same(ff.celeba_set(tmp_path, images="Img/img_align_celeba_png.7z/img_align_celeba_png", suffix=".png"), celeba(tmp_path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path, end): same(ff.celeba_set(tmp_path, end=end), celeba(tmp_path))


def test_no_final_newline_and_mark(tmp_path):
    values, path = ff.celeba_set(tmp_path), tmp_path/"Anno"/"list_attr_celeba.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip())
    same(values, celeba(tmp_path))


def test_zip_is_read_packed(tmp_path):
    values = ff.celeba_set(tmp_path)
    folder = tmp_path/"Img"/"img_align_celeba"
    with zipfile.ZipFile(tmp_path/"Img"/"img_align_celeba.zip", "w") as z:
        for p in sorted(folder.iterdir()): z.write(p, f"img_align_celeba/{p.name}"); z.writestr(f"__MACOSX/img_align_celeba/._{p.name}", b"x")
    shutil.rmtree(folder)
    table = same(values, celeba(tmp_path))
    assert table.paths[0] == tmp_path/"Img"/"img_align_celeba.zip"/"img_align_celeba"/"000001.jpg"


def kaggle(root, part=",", bom=b"", index=False, end="\n", key="image_id", zero_one=False):
    "The CSV form of Kaggle, with the mutations seen in the wild"
    values = ff.celeba_set(root, anno="old", parts="old", images="img_align_celeba/img_align_celeba", wild=False); shutil.rmtree(root/"old")
    lead = lambda i, row: [i, *row] if index else row
    table = lambda columns, data: ff.csv_table(lead("", [key, *columns]), [lead(i, [n, *v]) for i, (n, v) in enumerate(zip(ff.CELEBA_ROWS, data))], part, end, bom)
    ff.put(root/"list_attr_celeba.csv", table(ff.CELEBA_NAMES, ((values + 1)//2 if zero_one else values).tolist()))
    ff.put(root/"list_eval_partition.csv", table(["partition"], [[p] for p in ff.CELEBA_PARTS]))
    ff.put(root/"list_bbox_celeba.csv", table(["x_1", "y_1", "width", "height"], ff.CELEBA_BOXES))
    ff.put(root/"list_landmarks_align_celeba.csv", table(ff.LANDMARK_NAMES, [[69, 109, 106, 113, 77, 142, 73, 152, 108, 154]]*6))
    return values


@pytest.mark.parametrize("kwargs", [{}, dict(index=True), dict(bom=b"\xef\xbb\xbf", key="file"), dict(part="\t"), dict(part=";"), dict(end="\r\n"),
    dict(zero_one=True), dict(part="\t", bom=b"\xef\xbb\xbf", index=True, end="\r\n")], ids=str)
def test_kaggle_csv(tmp_path, kwargs):
    values = kaggle(tmp_path, **kwargs)
    table = same(values, celeba(tmp_path))
    assert table.identity is None and table.landmarks is not None


def test_text_is_taken_before_csv(tmp_path):
    values = ff.celeba_set(tmp_path)
    ff.put(tmp_path/"list_attr_celeba.csv", "image_id,nonsense\n1.jpg,5\n")
    same(values, celeba(tmp_path))


def test_permuted_header_is_put_in_order(tmp_path):
    values = ff.celeba_set(tmp_path)
    order = np.random.default_rng(3).permutation(40)
    lines = [" ".join(np.array(ff.CELEBA_NAMES)[order])] + [" ".join([n, *map(str, v[order])]) for n, v in zip(ff.CELEBA_ROWS, values)]
    ff.put(tmp_path/"Anno"/"list_attr_celeba.txt", "\n".join(lines))
    same(values, celeba(tmp_path))


def test_list_order_does_not_matter(tmp_path):
    ff.celeba_set(tmp_path)
    path = tmp_path/"Eval"/"list_eval_partition.txt"
    path.write_bytes(b"\r\n".join(sorted(path.read_bytes().splitlines(), reverse=True)))
    assert celeba(tmp_path).split.tolist() == ["train"]*3 + ["valid"] + ["test"]*2


def test_forty_names_despite_the_trailing_space(tmp_path):
    ff.celeba_set(tmp_path)
    assert (tmp_path/"Anno"/"list_attr_celeba.txt").read_bytes().split(b"\r\n")[1].endswith(b"Young ")
    assert len(celeba(tmp_path).names) == 40


def test_count_that_lies_is_a_note(tmp_path):
    values = ff.celeba_set(tmp_path)
    ff.put(tmp_path/"Anno"/"list_attr_celeba.txt", ff.celeba_attr(list(zip(ff.CELEBA_ROWS, values)), count=202599))
    table = celeba(tmp_path)
    assert any("says 202599, it has 6 rows" in n for n in table.notes) and len(table.notes) == 2


def test_wild(tmp_path):
    values = ff.celeba_set(tmp_path)
    table = same(values, celeba(tmp_path, variant="original"))
    assert table.name == "CelebA (original)" and table.frame == "whole"
    assert table.boxes[0].tolist() == [95, 71, 226, 313] and np.isnan(table.boxes[2]).all() and len(table) == 6  # the empty box is masked, its image stays
    assert table.boxes[3].tolist() == [600, 274, 343, 475] and table.landmarks[0, 0].tolist() == [169, 209]
    assert any("1 boxes are empty" in n for n in table.notes)


def test_boxes_are_refused_for_aligned_images(tmp_path):
    ff.celeba_set(tmp_path)
    with pytest.raises(DataError, match="do not fit the aligned"): celeba(tmp_path, files=dict(boxes=tmp_path/"Anno"/"list_bbox_celeba.txt"))


def test_wild_without_boxes_or_landmarks(tmp_path):
    ff.celeba_set(tmp_path)
    for name in ("list_bbox_celeba.txt", "list_landmarks_celeba.txt", "identity_CelebA.txt"): (tmp_path/"Anno"/name).unlink()
    table = celeba(tmp_path, variant="original")
    assert table.boxes is None and table.landmarks is None and table.identity is None


def test_landmark_header_may_end_in_a_space(tmp_path):
    ff.celeba_set(tmp_path)
    ff.put(tmp_path/"Anno"/"list_landmarks_align_celeba.txt", ff.celeba_landmarks([(n, list(range(10))) for n in ff.CELEBA_ROWS], tail=" "))
    assert celeba(tmp_path).landmarks[0, 0].tolist() == [0, 1]


def test_only_the_labels_are_needed(tmp_path):
    values = ff.celeba_set(tmp_path)
    for p in [*(tmp_path/"Anno").iterdir(), *(tmp_path/"Eval").iterdir()]:
        if "attr" not in p.name: p.unlink()
    table = same(values, celeba(tmp_path))
    assert any("official ranges" in n for n in table.notes)


def test_parts_are_not_guessed_from_unpadded_numbers(tmp_path):
    names = [f"{i}.jpg" for i in range(4)]
    ff.put(tmp_path/"list_attr_celeba.txt", ff.celeba_attr([(n, [1]*40) for n in names]))
    for n in names: ff.picture(tmp_path/"img_align_celeba"/n)
    with pytest.raises(DataError, match="not CelebA's six digits"): celeba(tmp_path)
    ff.put(tmp_path/"list_eval_partition.txt", ff.celeba_partition([(n, 0) for n in names]))
    assert celeba(tmp_path).counts()["train"] == 4


def test_every_path_can_be_given(tmp_path):
    values = ff.celeba_set(tmp_path/"a", images="x/y")
    (tmp_path/"b").mkdir()
    files = dict(attr=tmp_path/"a/Anno/list_attr_celeba.txt", partition=tmp_path/"a/Eval/list_eval_partition.txt", images=tmp_path/"a/x/y")
    table = same(values, celeba(tmp_path/"b", files=files))
    assert table.identity is None
    with pytest.raises(DataError, match="nothing.txt"): celeba(tmp_path/"b", files=files | dict(attr=tmp_path/"nothing.txt"))
    with pytest.raises(ValueError, match="known: attr"): celeba(tmp_path/"b", files=dict(atr="x"))


def test_home_made_partition_is_said(tmp_path):
    ff.celeba_set(tmp_path); (tmp_path/"Anno"/"identity_CelebA.txt").unlink()
    ff.put(tmp_path/"Eval"/"list_eval_partition.txt", ff.celeba_partition(list(zip(ff.CELEBA_ROWS, [0, 1, 2, 0, 1, 2]))))
    assert "4 of them are not in their official part" in celeba(tmp_path).notes[-1]


def test_half_size_images_take_their_landmarks_along(tmp_path):
    ff.celeba_set(tmp_path)
    for n in ff.CELEBA_ROWS: ff.picture(tmp_path/"Img"/"img_align_celeba"/n, (89, 109))
    table = celeba(tmp_path)
    assert table.landmarks[0, 0].tolist() == [34.5, 54.5] and any("89x109" in n for n in table.notes)


def test_missing_images_are_listed_together(tmp_path):
    ff.celeba_set(tmp_path)
    for n in ("000007.jpg", "182638.jpg"): (tmp_path/"Img"/"img_align_celeba"/n).unlink()
    with pytest.raises(DataError) as e: celeba(tmp_path)
    assert "2 of 6 samples lack a file (train 1, valid 0, test 1)" in str(e.value) and "on_missing='skip'" in str(e.value)
    assert e.value.problems == ["000007.jpg: no image", "182638.jpg: no image"]
    table = celeba(tmp_path, on_missing="skip")
    assert table.counts() == dict(train=2, valid=1, test=1) and len(table.landmarks) == len(table.identity) == 4
    assert any("left out as asked" in n for n in table.notes)
    with pytest.raises(ValueError): celeba(tmp_path, on_missing="ignore")


def test_identity_in_two_parts_is_refused(tmp_path):
    ff.celeba_set(tmp_path)
    ff.put(tmp_path/"Anno"/"identity_CelebA.txt", ff.celeba_identity([(n, 5) for n in ff.CELEBA_ROWS]))
    with pytest.raises(DataError, match="more than one split"): celeba(tmp_path)


def test_partial_identities_are_unknown(tmp_path):
    ff.celeba_set(tmp_path)
    ff.put(tmp_path/"Anno"/"identity_CelebA.txt", ff.celeba_identity([("000001.jpg", 7)]))
    table = celeba(tmp_path)
    assert table.identity.tolist() == [7] + [-1]*5 and any("no line for 5 images" in n for n in table.notes)


def test_full_counts_are_checked(monkeypatch, tmp_path):
    ff.celeba_set(tmp_path)
    monkeypatch.setattr(face_sets, "CELEBA_COUNTS", dict(train=3, valid=1, test=2))
    with pytest.raises(DataError, match="10,177"): celeba(tmp_path)       # six images in official parts, but only four people
    (tmp_path/"Anno"/"identity_CelebA.txt").unlink()
    assert celeba(tmp_path).notes == []
    monkeypatch.setattr(face_sets, "CELEBA_COUNTS", dict(train=2, valid=2, test=2))
    with pytest.raises(DataError, match="not in the official parts"): celeba(tmp_path)


def test_official_ranges():
    parts = [face_sets.official_part(i) for i in range(1, 202_600)]
    assert [parts.count(s) for s in ("train", "valid", "test")] == [162_770, 19_867, 19_962]


def test_variant_is_checked(tmp_path):
    with pytest.raises(ValueError, match="aligned"): celeba(tmp_path, variant="wild")


def test_cmyk_grey_and_exif_images(tmp_path):
    ff.celeba_set(tmp_path)
    folder, turned = tmp_path/"Img"/"img_align_celeba", Image.Exif(); turned[0x112] = 6
    ff.picture(folder/"000001.jpg", (178, 218), 0, "L"); ff.picture(folder/"000007.jpg", (178, 218), (0, 9, 9, 0), "CMYK")
    ff.picture(folder/"101283.jpg", (178, 218), exif=turned)
    images = [read_image(p) for p in celeba(tmp_path).paths]
    assert {i.mode for i in images} == {"RGB"} and {i.size for i in images} == {(178, 218)}  # EXIF is not applied: landmarks are in raw pixels


def test_a_large_folder_is_listed_once(tmp_path):
    "20,000 images take no look at each file (a second or two even on a busy machine)"
    names = [f"{i:06d}.jpg" for i in range(1, 20_001)]
    ff.put(tmp_path/"list_attr_celeba.txt", ff.celeba_attr([(n, [1]*40) for n in names]))
    first = ff.picture(tmp_path/"img_align_celeba"/names[0], (178, 218))
    for n in names[1:]: (first.parent/n).symlink_to(first)
    start = time.perf_counter(); table = celeba(tmp_path); spent = time.perf_counter() - start
    assert len(table) == 20_000 and spent < 15


@pytest.mark.data
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real sample is not here")
def test_real_sample():
    start = time.perf_counter(); table = celeba(SAMPLE); spent = time.perf_counter() - start
    assert len(table) == 10_000 and sum(table.counts().values()) == 10_000 and spent < 10
    assert np.corrcoef(table.prevalence(), list(CELEBA.prevalence.values()))[0, 1] > .999
    assert any("89x109" in n for n in table.notes)


def test_read_numbers_reports_every_line(tmp_path):
    ff.put(tmp_path/"x.txt", "3\na b\n1.jpg 1 2\n2.jpg 1\n3.jpg 1 2 3\n4.jpg one 2\n1.png 1 2\n")
    with pytest.raises(DataError) as e: read_numbers(tmp_path/"x.txt", ("a", "b"))
    assert [p.split(":")[0] for p in e.value.problems] == ["line 4", "line 5", "line 6", "line 7"]
