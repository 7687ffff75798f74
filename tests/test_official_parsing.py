"""Helen, LIP, CelebAMask-HQ, LaPa, FASSEG: every trap of datasets.md (5 to 9)"""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fixture_formats as ff
from symbiosis_nb.core import DataError
from symbiosis_nb.data import official
from symbiosis_nb.data.official import celebamask_hq, check_files, fasseg, helen, lapa, lip
from symbiosis_nb.data.tables import relabel
from symbiosis_nb.vocab import CELEBAMASK, FACE7, FASSEG, HELEN

SAMPLE = Path(__file__).parents[1]/"data"/"real"/"celebamaskhq_1k"


def whole(table):
    "Every label of a table is as large as its image and in range"
    check_files(table)
    for i, path in enumerate(table.paths):
        label = table.label(i)
        assert label.dtype == np.uint8 and label.shape == Image.open(path).size[::-1]
        assert set(np.unique(label)) <= {*range(len(table.regions)), 255}
    return table

# ---- Helen -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("folder", ["", "SmithCVPR2013_dataset_resized", "SmithCVPR2013_dataset_original"])
def test_helen(tmp_path, folder):
    ff.helen_set(tmp_path/folder)
    table = whole(helen(tmp_path))
    assert table.split.tolist() == ["train", "valid", "test"] and [p.stem for p in table.paths] == list(ff.HELEN_NAMES.values())
    assert table.label(2).shape == (4, 7)                        # sizes differ from image to image
    assert table.label(0)[0, :3].tolist() == [1, 4, 0]           # 128/127/128: the lowest number wins; 203 against 204; background
    soft = table.soft(0)
    np.testing.assert_allclose(soft.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(soft[[1, 6, 10], 0, 0], np.array([128, 127, 128])/383, atol=1e-6)
    assert table.read_soft(0).dtype == np.uint8 and table.read_soft(0)[4, 0, 1] == 204   # kept as they are
    assert "3 of 2,330" in table.notes[0]


def test_helen_sides_are_the_viewers():
    assert HELEN.side == "viewer" and HELEN.flip_pairs == ((2, 3), (4, 5)) and CELEBAMASK.side == "subject"


def test_helen_prefers_the_resized_folder(tmp_path):
    for kind in ("original", "resized"): ff.helen_set(tmp_path/f"SmithCVPR2013_dataset_{kind}")
    assert "resized" in str(helen(tmp_path).paths[0])


def test_helen_absent_map_is_absent_part(tmp_path):
    ff.helen_set(tmp_path); (tmp_path/"labels"/"33_1"/"33_1_lbl10.png").unlink()
    table = helen(tmp_path)
    assert any("33_1 (1)" in n for n in table.notes) and not table.read_soft(2)[10].any()


def test_helen_plain_lists_are_taken(tmp_path):
    ff.helen_set(tmp_path)
    ff.put(tmp_path/"tuning.txt", b"\xef\xbb\xbf  1,  232194_1  \r\n\r\n"); ff.put(tmp_path/"testing.txt", "33_1")
    assert helen(tmp_path).counts() == dict(train=1, valid=1, test=1)


def test_helen_missing(tmp_path):
    ff.helen_set(tmp_path)
    (tmp_path/"images"/"232194_1.jpg").unlink()
    for p in (tmp_path/"labels"/"33_1").iterdir(): p.unlink()
    with pytest.raises(DataError) as e: helen(tmp_path)
    assert e.value.problems == ["232194_1: no image", "33_1: no label"]
    assert len(helen(tmp_path, on_missing="skip")) == 1


def test_helen_map_of_another_size(tmp_path):
    ff.helen_set(tmp_path); ff.mask(tmp_path/"labels"/"33_1"/"33_1_lbl04.png", np.zeros((9, 9)))
    with pytest.raises(DataError, match="33_1_lbl04.png is 9x9, its image 33_1.jpg is 7x4"): helen(tmp_path).label(2)
    with pytest.raises(DataError, match="1 damaged file"): check_files(helen(tmp_path))


def test_helen_rgb_maps_are_read_as_grey(tmp_path):
    ff.helen_set(tmp_path)
    before = helen(tmp_path).read_soft(0)
    for p in (tmp_path/"labels"/"100032540_1").iterdir(): Image.open(p).convert("RGB").save(p)
    np.testing.assert_array_equal(helen(tmp_path).read_soft(0), before)


def test_relabelled_soft_maps_add_up(tmp_path):
    ff.helen_set(tmp_path)
    seven = relabel(helen(tmp_path), FACE7)
    np.testing.assert_allclose(seven.soft(0).sum(0), 1, atol=1e-6)
    assert FACE7.names[seven.label(0)[0, 1]] == "eyes"

# ---- LIP ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("doubled", [True, False])
@pytest.mark.parametrize("sub", ["", "LIP"])
def test_lip(tmp_path, doubled, sub):
    ff.lip_set(tmp_path/sub, doubled)
    table = whole(lip(tmp_path))
    assert table.split.tolist() == ["train"]*2 + ["valid"]*2 and len(table.regions) == 20
    assert (table.label(0) == 19).all() and table.label(1)[0, :2].tolist() == [255, 18]     # grey, and palette read raw
    assert table.regions.flip_pairs == ((14, 15), (16, 17), (18, 19)) and table.regions.names[4] == "Sunglasses"


def test_lip_validation_as_test(tmp_path):
    ff.lip_set(tmp_path)
    assert lip(tmp_path, val_as="test").counts() == dict(train=2, valid=0, test=2)
    with pytest.raises(ValueError, match="val_as"): lip(tmp_path, val_as="train")


def test_lip_colour_mask_is_refused(tmp_path):
    ff.lip_set(tmp_path, False); ff.picture(tmp_path/"val_segmentations"/"77_val.png", (6, 8))
    with pytest.raises(DataError, match="77_val.png is a colour picture"): lip(tmp_path).label(2)


def test_lip_label_out_of_range(tmp_path):
    ff.lip_set(tmp_path, False); ff.mask(tmp_path/"val_segmentations"/"77_val.png", np.full((8, 6), 20))
    with pytest.raises(DataError, match="holds label 20; known are 0 to 19"): lip(tmp_path).label(2)


def test_lip_reversed_labels_do_not_disturb(tmp_path):
    "The authors also publish flipped labels in train_segmentations_reversed"
    ff.lip_set(tmp_path, False); ff.mask(tmp_path/"train_segmentations_reversed"/"77_train.png", np.zeros((8, 6)))
    assert (lip(tmp_path).label(0) == 19).all()

# ---- CelebAMask-HQ -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("sub", ["", "CelebAMask-HQ"])
def test_maskhq_parts(tmp_path, header, sub):
    ff.maskhq_set(tmp_path/sub, header)
    table = whole(celebamask_hq(tmp_path))
    names = lambda i: [CELEBAMASK.names[k] for k in table.label(i)[::2, 0]]
    assert names(0) == ["hair", "l_ear", "skin", "background"]    # later parts win: hair and ear over skin; three channels read as one
    assert names(1) == ["skin", "l_ear", "skin", "background"]    # no hair file: no hair
    assert names(2) == names(0) and [p.name for p in table.paths] == ["0.jpg", "1.jpg", "2000.jpg"]   # the second mask folder
    assert table.split.tolist() == ["train", "valid", "test"]     # by the number of the original: 119614, 162771, 182638


def test_maskhq_typo_of_the_official_script(tmp_path):
    ff.maskhq_set(tmp_path); (tmp_path/"CelebAMask-HQ-mask-anno").rename(tmp_path/"CelebAMaskHQ-mask-anno")
    assert len(whole(celebamask_hq(tmp_path))) == 3


def test_maskhq_image_without_any_part(tmp_path):
    ff.maskhq_set(tmp_path)
    for p in (tmp_path/"CelebAMask-HQ-mask-anno"/"1").iterdir(): p.unlink()
    with pytest.raises(DataError, match="2000: no label"): celebamask_hq(tmp_path)
    assert len(celebamask_hq(tmp_path, on_missing="skip")) == 2


def test_maskhq_parts_of_different_sizes(tmp_path):
    ff.maskhq_set(tmp_path); ff.mask(tmp_path/"CelebAMask-HQ-mask-anno"/"0"/"00001_hair.png", np.ones((3, 3)))
    with pytest.raises(DataError, match="00001_hair.png is 3x3, the parts before it are 4x4"): celebamask_hq(tmp_path).label(1)


def course(root, n=4, split=True):
    "The course form: images/ and palette masks/ of the same names, and a split.txt"
    for i in range(n):
        ff.picture(root/"images"/f"f{i}.jpg", (8, 8))
        path = ff.mask(root/"masks"/f"f{i}.png", np.full((8, 8), i)); image = Image.open(path).convert("P"); image.putdata([17 - i]*64); image.save(path)
    if split: ff.put(root/"split.txt", "".join(f"f{i} {'test' if i == n - 1 else 'train'}\n" for i in range(n)))


def test_maskhq_course_form(tmp_path):
    course(tmp_path)
    table = whole(celebamask_hq(tmp_path))
    assert table.split.tolist() == ["train"]*3 + ["test"] and table.label(2).max() == 15
    assert celebamask_hq(tmp_path, valid_share=.34).counts() == dict(train=2, valid=1, test=1)


def test_maskhq_course_form_without_split(tmp_path):
    course(tmp_path, split=False)
    table = celebamask_hq(tmp_path)
    assert table.counts()["train"] == 4 and any("every image counts as 'train'" in n for n in table.notes)


def test_maskhq_fused_folder_in_a_declared_order(tmp_path):
    ff.maskhq_set(tmp_path)
    for n in ("0", "1", "2000"): ff.mask(tmp_path/"mine"/f"{n}.png", np.full((4, 4), 2))
    read = lambda **k: CELEBAMASK.names[celebamask_hq(tmp_path, masks=tmp_path/"mine", **k).label(0)[0, 0]]
    assert read() == "nose" and read(order=("background", "skin", "l_brow")) == "l_brow"
    with pytest.raises(DataError, match="unknown parts"): read(order=("background", "brow"))
    with pytest.raises(DataError, match="holds label 2; known are 0 to 1"): read(order=("background", "skin"))


def test_maskhq_fused_by_the_official_script(tmp_path):
    ff.maskhq_set(tmp_path); (tmp_path/"CelebAMask-HQ-mask-anno").rename(tmp_path/"elsewhere")
    for n in ("0", "1", "2000"): ff.mask(tmp_path/"CelebAMaskHQ-mask"/f"{n}.png", np.full((4, 4), 13))
    assert CELEBAMASK.names[whole(celebamask_hq(tmp_path)).label(0)[0, 0]] == "hair"


def test_maskhq_mask_of_another_shape(tmp_path):
    course(tmp_path); ff.mask(tmp_path/"masks"/"f1.png", np.ones((8, 6)))
    with pytest.raises(DataError, match="f1.png is 6x8, its image f1.jpg is 8x8"): celebamask_hq(tmp_path).label(1)


@pytest.mark.data
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real sample is not here")
def test_real_sample():
    table = celebamask_hq(SAMPLE)
    assert len(table) == 1000 and set(table.counts().values()) == {808, 0, 192}
    share = np.mean([np.bincount(table.label(i).ravel(), minlength=19)/512**2 for i in range(0, 1000, 50)], 0)
    assert share[1] > .15 and share[13] > .15                     # skin and hair

# ---- LaPa --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sub", ["", "LaPa"])
def test_lapa(tmp_path, sub):
    ff.lapa_set(tmp_path/sub)
    table = whole(lapa(tmp_path))
    assert table.counts() == dict(train=2, valid=1, test=1) and table.label(0).max() == 10 and table.regions.names == HELEN.names
    assert [n.split(":")[0] for n in table.notes] == ["1 images are HELEN's", "1 images are LFPW's"]
    clean = lapa(tmp_path, exclude=("HELEN_", "LFPW_"))
    assert clean.counts() == dict(train=0, valid=1, test=1) and not clean.notes


def test_lapa_label_without_image(tmp_path):
    ff.lapa_set(tmp_path); (tmp_path/"val"/"images"/"9_2.jpg").unlink()
    with pytest.raises(DataError, match="9_2: no image"): lapa(tmp_path)


def test_lapa_sizes(tmp_path):
    ff.lapa_set(tmp_path); ff.mask(tmp_path/"val"/"labels"/"9_2.png", np.zeros((6, 6)))
    with pytest.raises(DataError, match="9_2.png is 6x6"): lapa(tmp_path).label(2)

# ---- FASSEG ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("version", ["V1", "V2"])
def test_fasseg(tmp_path, version):
    ff.fasseg_set(tmp_path, version)
    table = whole(fasseg(tmp_path, version))
    assert table.counts() == dict(train=2, valid=0, test=2) and table.name == f"FASSEG {version}"
    assert table.label(0)[0].tolist() == list(range(len(FASSEG)))          # colours a little off go to the nearest


def test_fasseg_versions_are_not_mixed(tmp_path):
    for version in ("V1", "V2"): ff.fasseg_set(tmp_path, version)
    assert all("V2" in str(p) for p in fasseg(tmp_path).paths)
    assert len(fasseg(tmp_path/"V1", "V1")) == 4
    with pytest.raises(ValueError, match="version"): fasseg(tmp_path, "V4")


def test_fasseg_poses(tmp_path):
    ff.fasseg_set(tmp_path, "V3")
    table = whole(fasseg(tmp_path, "V3"))
    assert table.counts() == dict(train=3, valid=0, test=1)                # one test label is absent, one does not fit
    assert any("1 labels of V3 do not exist" in n for n in table.notes) and any("1 labels of V3 do not fit" in n for n in table.notes)


def test_fasseg_missing_label_is_a_fault_in_v2(tmp_path):
    ff.fasseg_set(tmp_path); (tmp_path/"V2"/"Test_Labels"/"2.bmp").unlink()
    with pytest.raises(DataError, match="2: no label"): fasseg(tmp_path)

# ---- counts --------------------------------------------------------------------------------------------------------------------

def test_official_counts_of_the_full_sets():
    assert sum(official.HELEN_COUNTS.values()) == 2330 and sum(official.MASKHQ_COUNTS.values()) == 30_000
    assert sum(official.LIP_COUNTS.values()) == 40_462 and sum(official.BERKELEY_COUNTS.values()) == 8035


def test_digest_follows_label_files(tmp_path):
    "Two mask folders of one picture folder are two data sets, and their stored labels differ"
    from symbiosis_nb.data.pixels import label_store
    from symbiosis_nb.data.official import celebamask_hq
    (tmp_path/"images").mkdir(); Image.new("RGB", (32, 32)).save(tmp_path/"images"/"0.png")
    tables = []
    for k in (1, 2):
        (tmp_path/f"masks{k}").mkdir(); Image.fromarray(np.full((32, 32), k, np.uint8)).save(tmp_path/f"masks{k}"/"0.png")
        tables.append(celebamask_hq(tmp_path, masks=tmp_path/f"masks{k}"))
    assert tables[0].digest != tables[1].digest
    assert [int(label_store(t, (8, 8), root=tmp_path/"cache")[[0]].max()) for t in tables] == [1, 2]
    assert tables[0].digest != celebamask_hq(tmp_path, masks=tmp_path/"masks1", order=("background", "nose", "skin")).digest
