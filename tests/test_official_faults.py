"""One fault at a time into a good set: each must end in a DataError that names the file, the line or image, and what to do"""
import json, re, shutil

import numpy as np
import pytest

import fixture_formats as ff
from symbiosis_nb.core import DataError
from symbiosis_nb.data.official import (berkeley_attributes, celeba, celebamask_hq, celebamask_hq_attributes, check_files, fasseg, helen, lapa, lfwa, lip,
    wider_attribute)

SETS = dict(celeba=(ff.celeba_set, celeba), wild=(ff.celeba_set, lambda root: celeba(root, variant="original")), lfwa=(ff.lfwa_set, lfwa),
            wider=(ff.wider_set, wider_attribute), berkeley=(ff.berkeley_set, berkeley_attributes), helen=(ff.helen_set, helen),
            lip=(ff.lip_set, lip), maskhq=(ff.maskhq_set, celebamask_hq), maskhq_attr=(ff.maskhq_set, celebamask_hq_attributes),
            lapa=(ff.lapa_set, lapa), fasseg=(ff.fasseg_set, fasseg))

ATTR, PART, WHO = "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt", "Anno/identity_CelebA.txt"
MARKS, BOXES = "Anno/list_landmarks_align_celeba.txt", "Anno/list_bbox_celeba.txt"
TRAINVAL = "wider_attribute_annotation/wider_attribute_trainval.json"
TEXTS = [("celeba", ATTR), ("celeba", PART), ("celeba", WHO), ("celeba", MARKS), ("wild", BOXES), ("wild", "Anno/list_landmarks_celeba.txt"),
         ("wider", TRAINVAL), ("berkeley", "train/labels.txt"), ("helen", "tuning.txt"), ("lip", "TrainVal_images/val_id.txt"),
         ("maskhq", "CelebA-HQ-to-CelebA-mapping.txt"), ("maskhq_attr", "CelebAMask-HQ-attribute-anno.txt")]
NOT_TEXT = {  # what arrives under the right name -> what must be said
    "html": (b"\r\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>", "is a web page"),
    "html-lower": (b"<html><body>404</body></html>", "is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6171224\n", "git lfs pull"),
    "empty": (b"", "is empty"), "blank": (b" \r\n\r\n", "is empty"), "mark-only": (b"\xef\xbb\xbf", "is empty"),
    "zip": (b"PK\x03\x04" + b"\0"*60, "zip archive: unpack"), "gzip": (b"\x1f\x8b\x08" + b"\0"*9, "gzip archive: unpack"),
    "7z": (b"7z\xbc\xaf'\x1c\0", "7z archive: unpack"), "utf16": ("000001.jpg 1\n".encode("utf-16"), "save it as UTF-8"),
    "binary": (b"abc\0def", "is binary"), "latin1": ("Zo\xe9 1\n".encode("latin-1"), "not UTF-8"), "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "is binary"),
}


def fails(root, which, words, name=None):
    "The reader of a set raises a DataError with these words, which names the file"
    with pytest.raises(DataError) as e: SETS[which][1](root)
    text = str(e.value)
    assert re.search(words, text), text
    assert name is None or name in text, text
    return e.value


@pytest.mark.parametrize("kind", NOT_TEXT)
@pytest.mark.parametrize("which, path", TEXTS, ids=[f"{w}:{p.split('/')[-1]}" for w, p in TEXTS])
def test_something_else_under_the_right_name(tmp_path, which, path, kind):
    SETS[which][0](tmp_path)
    ff.put(tmp_path/path, NOT_TEXT[kind][0])
    fails(tmp_path, which, NOT_TEXT[kind][1], path.split("/")[-1])


def edit(old, new, count=1):
    "A change of the text of a file; the old text must be there"
    def change(text):
        assert old in text, f"{old!r} is not in the fixture"
        return text.replace(old, new, count)
    return change

def cut_last(text): return text[:len(text)*9//10].rstrip()
def repeat_last(text): return text + text.splitlines()[-1] + "\n"

FAULTS = [  # set, file, change, what must be said
    ("celeba", ATTR, cut_last, r"line 8: \d+ values, expected 40"),
    ("celeba", ATTR, repeat_last, r"line 9: '202599.jpg' again, already on line 8"),
    ("celeba", ATTR, lambda t: t.rstrip() + " -1\r\n", "line 8: 41 values, expected 40"),
    ("celeba", ATTR, edit("000001.jpg -1", "000001.jpg  2"), "line 3: 5_o_Clock_Shadow is 2, expected -1 or 1"),
    ("celeba", ATTR, edit("000001.jpg -1", "000001.jpg  0"), "line 3: 5_o_Clock_Shadow is 0, expected -1 or 1"),
    ("celeba", ATTR, edit("000001.jpg -1", "000001.jpg nan"), "line 3: 5_o_Clock_Shadow is nan"),
    ("celeba", ATTR, edit("000001.jpg -1", "000001.jpg x"), "line 3: could not convert"),
    ("celeba", ATTR, edit("000001.jpg -1", "000001.jpg, -1"), "no image|000001.jpg,"),
    ("celeba", ATTR, edit("Young", "Old"), "no column Young"),
    ("celeba", ATTR, edit("Young", "Male"), "no column Male, Young"),
    ("celeba", ATTR, edit(" Young", ""), "no column Young"),
    ("celeba", ATTR, edit(" Young", " Extra More Young"), "header has 42 columns, expected 40"),
    ("celeba", ATTR, lambda t: "\r\n".join(t.split("\r\n")[:2]), "has no rows"),
    ("celeba", ATTR, lambda t: "6\r\n", "has no rows"),
    ("celeba", ATTR, lambda t: "hello world\nthis is prose, not data\n", "no column"),
    ("celeba", PART, edit("000007.jpg 0", "000007.jpg 3"), "line 2: partition is 3, expected 0, 1 or 2"),
    ("celeba", PART, edit("000007.jpg 0", "000007.jpg"), "line 2: 0 values, expected 1"),
    ("celeba", PART, edit("000007.jpg 0\r\n", ""), "000007.jpg: in no line"),
    ("celeba", PART, edit("162771.jpg", "000001.jpg"), "already on line 1"),
    ("celeba", WHO, edit("2880", "28.5"), "line 1: identity is 28.5, expected a whole number"),
    ("celeba", WHO, edit("2880", "-4"), "expected a whole number"),
    ("celeba", WHO, edit("2880", "9"*40), "expected a whole number"),
    ("celeba", WHO, edit("182638.jpg 41", "182638.jpg 2880"), "more than one split"),
    ("celeba", MARKS, edit("69", "inf"), "line 3: lefteye_x is inf, expected a finite number"),
    ("celeba", MARKS, edit("nose_x", "chin_x"), "no column nose_x"),
    ("wild", BOXES, edit(" 226 313", " nan 313"), "width is nan"),
    ("wild", BOXES, edit(" 226", ""), "line 3: 3 values, expected 4"),
    ("maskhq_attr", "CelebAMask-HQ-attribute-anno.txt", edit("0.jpg  1", "0.jpg  7"), "line 3: 5_o_Clock_Shadow is 7"),
    ("maskhq_attr", "CelebAMask-HQ-attribute-anno.txt", edit("2000.jpg", "2001.jpg"), "2001.jpg: in no line"),
    ("maskhq", "CelebA-HQ-to-CelebA-mapping.txt", edit("119613", "119600"), "line 2: 119614.jpg does not go with orig_idx 119600"),
    ("maskhq", "CelebA-HQ-to-CelebA-mapping.txt", edit("119614.jpg", "face.jpg"), "line 2: '0 119613 face.jpg' is not"),
    ("maskhq", "CelebA-HQ-to-CelebA-mapping.txt", repeat_last, "line 5: index 2000 again"),
    ("berkeley", "train/labels.txt", cut_last, r"line 4: \d+ values, expected 13"),
    ("berkeley", "train/labels.txt", edit("NaN", "none"), "line 2: could not convert"),
    ("berkeley", "train/labels.txt", edit("2.50", "inf"), "line 1: xmin is inf"),
    ("berkeley", "train/labels.txt", edit(" -1  0 -1", " -2  0 -1"), "line 1: is_male is -2, expected -1, 0 or 1"),
    ("berkeley", "test/labels.txt", repeat_last, "line 5: '00004.jpg' again"),
    ("helen", "exemplars.txt", edit("100032540_1", ""), "line 1: '1 , ' is not one name"),
    ("helen", "exemplars.txt", edit("100032540_1", "a b"), "is not one name"),
    ("helen", "exemplars.txt", edit("100032540_1", "x , 100032540_1"), "is not one name"),
    ("helen", "exemplars.txt", repeat_last, "'100032540_1' comes 2 times"),
    ("helen", "tuning.txt", edit("232194_1", "33_1"), "more than one part"),
    ("helen", "tuning.txt", edit("232194_1", "../../etc"), r"../../etc: no image"),
    ("lip", "TrainVal_images/val_id.txt", edit("77_val", "77_train"), "more than one part"),
    ("lip", "TrainVal_images/val_id.txt", edit("77_val", "78_val"), "78_val: no image"),
    ("lip", "TrainVal_images/val_id.txt", edit("77_val", "77 val"), "line 1: '77 val' is not one name"),
    ("wider", TRAINVAL, lambda t: t[:-9], "is not JSON"), ("wider", TRAINVAL, lambda t: "["*100_000, "is not JSON"),
    ("wider", TRAINVAL, lambda t: "[]", "has no list of images"), ("wider", TRAINVAL, lambda t: '{"images": {}}', "has no list of images"),
    ("wider", TRAINVAL, edit("-3.5", '"a"'), "image 0: .*is not 4 numbers"), ("wider", TRAINVAL, edit("-3.5", "NaN"), "image 0: .*is not 4 numbers"),
    ("wider", TRAINVAL, edit("-3.5, 2", "2"), "image 0: .*is not 4 numbers"), ("wider", TRAINVAL, edit("-3.5", "1" + "0"*400), "image 0: OverflowError"),
    ("wider", TRAINVAL, edit('"attribute": [1, -1', '"attribute": [1, -2'), "must be 1, -1 or 0"),
    ("wider", TRAINVAL, edit('"attribute": [1, -1', '"attribute": [-1'), "is not 14 numbers"),
    ("wider", TRAINVAL, edit('"bbox"', '"box"'), "image 0: KeyError: 'bbox'"), ("wider", TRAINVAL, edit("train/0--Parade/a.jpg", "0--Parade/a.jpg"), "does not begin with"),
    ("wider", TRAINVAL, edit('"train/0--Parade/a.jpg"', "7"), "image 0: AttributeError"), ("wider", TRAINVAL, edit('"Male"', '"Mail"'), "no column Male"),
    ("wider", TRAINVAL, edit('"0": "Male"', '"zero": "Male"'), "not a map of numbers"), ("wider", TRAINVAL, edit("train/0--Parade/a.jpg", "train/../../a.jpg"), "no image"),
]

@pytest.mark.parametrize("which, path, change, words", FAULTS, ids=[f"{i}:{w}:{words[:30]}" for i, (w, _, _, words) in enumerate(FAULTS)])
def test_fault_in_a_text(tmp_path, which, path, change, words):
    SETS[which][0](tmp_path)
    text = (tmp_path/path).read_bytes().decode()
    ff.put(tmp_path/path, change(text).encode())
    error = fails(tmp_path, which, words)
    assert path.split("/")[-1] in str(error) or "no image" in str(error) or "split" in str(error) or "part" in str(error)


def test_all_faulty_lines_are_reported_at_once(tmp_path):
    ff.celeba_set(tmp_path)
    lines = (tmp_path/ATTR).read_text().splitlines()
    lines[2], lines[4], lines[6] = "000001.jpg 1", lines[4].replace(" 1", " x", 1), lines[6] + " 1"
    ff.put(tmp_path/ATTR, "\n".join(lines))
    error = fails(tmp_path, "celeba", "3 faulty line")
    assert [p.split(":")[0] for p in error.problems] == ["line 3", "line 5", "line 7"]


GONE = [("celeba", ATTR, "found no list_attr_celeba.txt or list_attr_celeba.csv"), ("celeba", "Img/img_align_celeba", "found no img_align_celeba"),
        ("wild", "Img/img_celeba", "found no img_celeba"), ("lfwa", "lfw_att_40.mat", "found no lfw_att_40.mat"), ("lfwa", "indices_train_test.mat", "found no indices"),
        ("lfwa", "lfw", "found no lfw"), ("wider", TRAINVAL, "found no wider_attribute_trainval.json"), ("wider", "Image", "found no Image"),
        ("berkeley", "test", "found no test"), ("berkeley", "train/labels.txt", "found no labels.txt"), ("helen", "exemplars.txt", "found no exemplars.txt"),
        ("helen", "images", "found no images"), ("helen", "labels", "found no labels"), ("lip", "TrainVal_images/train_id.txt", "found no train_id.txt"),
        ("lip", "TrainVal_parsing_annotations", "found no train_segmentations"), ("maskhq", "CelebA-HQ-img", "found neither CelebA-HQ-img nor images"),
        ("maskhq", "CelebAMask-HQ-mask-anno", "found neither CelebAMask-HQ-mask-anno"), ("maskhq_attr", "CelebAMask-HQ-attribute-anno.txt", "found no CelebAMask"),
        ("lapa", "val", "found no val"), ("lapa", "test/labels", "found no labels"), ("fasseg", "V2/Test_Labels", "found no test_Labels"), ("fasseg", "V2", "found no train_RGB")]

@pytest.mark.parametrize("which, path, words", GONE, ids=[f"{w}:{p}" for w, p, _ in GONE])
def test_missing_file_or_folder(tmp_path, which, path, words):
    SETS[which][0](tmp_path)
    shutil.rmtree(tmp_path/path) if (tmp_path/path).is_dir() else (tmp_path/path).unlink()
    fails(tmp_path, which, words, str(tmp_path))


@pytest.mark.parametrize("which", SETS)
def test_no_such_root(tmp_path, which): fails(tmp_path/"nowhere", which, "there is no such folder")


@pytest.mark.parametrize("which", SETS)
def test_empty_root(tmp_path, which): fails(tmp_path, which, "found n", str(tmp_path))


@pytest.mark.parametrize("which", SETS)
def test_one_missing_image(tmp_path, which):
    SETS[which][0](tmp_path)
    folders = dict(celeba="img_align_celeba", wild="img_celeba", lfwa="Aaron_Eckhart", wider="0--Parade", berkeley="train", helen="images",
                   lip="train_images", maskhq="CelebA-HQ-img", maskhq_attr="CelebA-HQ-img", lapa="images", fasseg="Train_RGB")
    first = min(p for p in tmp_path.rglob("*") if p.parent.name == folders[which] and p.suffix in (".jpg", ".bmp", ".png"))
    first.unlink()
    error = fails(tmp_path, which, "1 of [0-9]+ samples lack a file|2 of [0-9]+ samples lack a file|pass on_missing='skip'")
    assert any(first.stem in p for p in error.problems)


@pytest.mark.parametrize("which", SETS)
def test_no_image_at_all(tmp_path, which):
    SETS[which][0](tmp_path)
    for p in tmp_path.rglob("*"):
        if p.suffix in (".jpg", ".bmp"): p.unlink()
    with pytest.raises(DataError): SETS[which][1](tmp_path)


BAD_IMAGE = dict(truncated=lambda b: b[:len(b)//2], empty=lambda b: b"", html=lambda b: b"<!DOCTYPE html><html></html>",
                 lfs=lambda b: b"version https://git-lfs.github.com/spec/v1\n", noise=lambda b: bytes(range(256))*4, head=lambda b: b[:30])

@pytest.mark.parametrize("kind", BAD_IMAGE)
@pytest.mark.parametrize("which", SETS)
def test_damaged_image(tmp_path, which, kind):
    "Either the reader says it, or checking the files does, with the name of the file"
    SETS[which][0](tmp_path)
    path = next(p for p in SETS[which][1](tmp_path).paths)
    path.write_bytes(BAD_IMAGE[kind](path.read_bytes()))
    with pytest.raises(DataError) as e: check_files(SETS[which][1](tmp_path))
    assert path.name in str(e.value)


@pytest.mark.parametrize("kind", BAD_IMAGE)
@pytest.mark.parametrize("which", ["helen", "lip", "maskhq", "lapa", "fasseg"])
def test_damaged_label(tmp_path, which, kind):
    SETS[which][0](tmp_path)
    label = next(p for p in sorted(tmp_path.rglob("*")) if re.search("lbl03|77_train.png|00000_skin|labels/HELEN|Train_Labels/1.bmp", str(p)))
    label.write_bytes(BAD_IMAGE[kind](label.read_bytes()))
    with pytest.raises(DataError) as e: check_files(SETS[which][1](tmp_path))
    assert label.name in str(e.value)


def test_damaged_zip(tmp_path):
    ff.celeba_set(tmp_path); shutil.rmtree(tmp_path/"Img"/"img_align_celeba")
    ff.put(tmp_path/"Img"/"img_align_celeba.zip", b"<!DOCTYPE html>" + b"x"*92_000)
    fails(tmp_path, "celeba", "img_align_celeba.zip is a web page")
    ff.put(tmp_path/"Img"/"img_align_celeba.zip", b"PK\x03\x04" + b"x"*100)
    fails(tmp_path, "celeba", "is a damaged zip archive")


CSV_FAULTS = {"short row": (edit("000007.jpg,1,", "000007.jpg,"), "line 3: 40 columns, expected 41"), "open quote": (edit("000007.jpg", '"000007.jpg'), "column|values|already|no image|faulty|part"),
              "no header": (lambda t: t.split("\n", 1)[1].replace("000001.jpg", "000001.jpg,0", 1), "columns, expected"), "header only": (lambda t: t.split("\n")[0], "no rows"),
              "two columns alike": (edit("Young", "Male"), "no column Male, Young"), "blank cell": (edit("000007.jpg,1,", "000007.jpg,,"), "line 3: could not convert"),
              "long row": (edit("000001.jpg", "1,000001.jpg"), "line 2: 42 columns, expected 41"), "all rows long": (lambda t: t.replace(".jpg", ".jpg,1"), "6 faulty line"),
              "only commas": (lambda t: ",,,\n,,\n", "no rows|no column")}

@pytest.mark.parametrize("kind", CSV_FAULTS)
def test_fault_in_a_csv(tmp_path, kind):
    values = ff.celeba_set(tmp_path); (tmp_path/ATTR).unlink()
    text = ff.csv_table(["image_id", *ff.CELEBA_NAMES], [[n, *v] for n, v in zip(ff.CELEBA_ROWS, values.tolist())]).decode()
    ff.put(tmp_path/"list_attr_celeba.csv", text)
    assert len(celeba(tmp_path)) == 6
    change, words = CSV_FAULTS[kind]
    ff.put(tmp_path/"list_attr_celeba.csv", change(text))
    fails(tmp_path, "celeba", words)


def mat(root, **change):
    "LFWA's label file, as MATLAB 5, with variables replaced"
    from scipy.io import loadmat, savemat
    found = {k: v for k, v in loadmat(root/"lfw_att_40.mat").items() if not k.startswith("__")} | change
    savemat(root/"lfw_att_40.mat", {k: v for k, v in found.items() if v is not None})

MAT_FAULTS = {"no label": (dict(label=None), "no variable label"), "label is text": (dict(label="words"), "must be text and label numbers"),
              "label too short": (dict(label=np.zeros((8, 40))), "expected 9 images x 40 attributes"), "label of three": (dict(label=np.full((9, 40), 3)), "image 1 .*expected 0/1 or -1/1"),
              "label nan": (dict(label=np.full((9, 40), np.nan)), "expected 0/1"), "names are numbers": (dict(name=np.arange(9)), "must be text"),
              "39 names": (dict(AttrName=np.array([[n] for n in ff.CELEBA_NAMES[1:]], object)), "no column 5_o_Clock_Shadow"), "3-d": (dict(label=np.zeros((9, 40, 2))), "expected 9 images")}

@pytest.mark.parametrize("kind", MAT_FAULTS)
def test_fault_in_a_mat(tmp_path, kind):
    ff.lfwa_set(tmp_path, version="5"); change, words = MAT_FAULTS[kind]
    mat(tmp_path, **change)
    fails(tmp_path, "lfwa", words, "lfw_att_40.mat")


@pytest.mark.parametrize("train, test, words", [((0, 1), (5,), "1 numbers that are not 1 to 9"), ((1, 2), (10,), "1 numbers that are not 1 to 9"), ((1, 2), (2, 3), "lie in both parts"),
                                                ((1, 1), (2,), "come twice"), ((1.5,), (2,), "not 1 to 9"), ((float("nan"),), (2,), "not 1 to 9")])
@pytest.mark.parametrize("version", ["7.3", "5"])
def test_fault_in_the_indices(tmp_path, version, train, test, words):
    ff.lfwa_set(tmp_path, train=train, test=test, version=version)
    fails(tmp_path, "lfwa", words, "indices_train_test.mat")


@pytest.mark.parametrize("version", ["7.3", "5"])
@pytest.mark.parametrize("kind", ["html", "lfs", "empty", "truncated", "noise"])
def test_not_a_mat(tmp_path, version, kind):
    ff.lfwa_set(tmp_path, version=version); path = tmp_path/"lfw_att_40.mat"
    data = path.read_bytes()
    path.write_bytes(NOT_TEXT[kind][0] if kind in NOT_TEXT else data[:len(data)//3] if kind == "truncated" else data[:600] + bytes(range(256))*20)
    fails(tmp_path, "lfwa", "web page|LFS|is empty|damaged .mat|no variable|must be text", "lfw_att_40.mat")
