"""Miniature data sets in the official byte layouts. The text writers were checked byte for byte against official rows
where the doc says so; the builders below them lay out whole sets, a few pixels and a few rows each."""
import json
from pathlib import Path

import numpy as np
from PIL import Image

CELEBA_NAMES = """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry Brown_Hair
Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick
Wearing_Necklace Wearing_Necktie Young""".split()
LANDMARK_NAMES = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y".split()
WIDER_NAMES = "Male longHair sunglass Hat T-shirt longSleeve formal shorts jeans longPants skirt faceMask logo stripe".split()


def _lines(lines, end): return "".join(line + end for line in lines).encode()

def celeba_attr(rows, end="\r\n", count=None):
    "Official bytes: the header ends in a space, the first value is not padded, the others are '%3d'"
    return _lines([str(len(rows) if count is None else count), " ".join(CELEBA_NAMES) + " ",
                   *(f"{n} {v[0]}" + "".join(f"{x:3d}" for x in v[1:]) for n, v in rows)], end)

def celeba_partition(rows, end="\r\n"):
    "Official bytes"
    return _lines([f"{n} {p}" for n, p in rows], end)

celeba_identity = celeba_partition  # official bytes, too

def celeba_bbox(rows, end="\r\n"):
    "Row layout as quoted in public; line ends as in the sister files"
    return _lines([str(len(rows)), "image_id x_1 y_1 width height", *(f"{n} {b[0]:5d} {b[1]:3d} {b[2]:3d} {b[3]:3d}" for n, b in rows)], end)

def celeba_landmarks(rows, end="\r\n", tail=""):
    "Both landmark files; whether their header ends in a space (`tail`) is not known"
    return _lines([str(len(rows)), " ".join(LANDMARK_NAMES) + tail, *(f"{n} {v[0]}" + "".join(f"{x:5d}" for x in v[1:]) for n, v in rows)], end)

def csv_table(header, rows, part=",", end="\n", bom=b""): return bom + _lines([part.join(map(str, r)) for r in [header, *rows]], end)

def _box(x): return " NaN" if x != x else f"{x:4.2f}"

def berkeley_labels(rows):
    "Official bytes: LF, boxes '%4.2f' or NaN, values '%2d'"
    return _lines([n + "".join(" " + _box(x) for x in b) + "".join(f" {a:2d}" for a in v) for n, b, v in rows], "\n")

def berkeley_other(rows):
    "Official bytes of other_bounds.txt"
    return _lines([n + "".join(" " + _box(x) for x in b) for n, b in rows], "\n")

def maskhq_attr(rows):
    "Official bytes: LF, two spaces after the name, no space at the header's end"
    return _lines([str(len(rows)), " ".join(CELEBA_NAMES), *(f"{n}  " + " ".join(map(str, v)) for n, v in rows)], "\n")

def maskhq_mapping(rows, header=True):
    "Official rows; the README tells users to delete the header by hand"
    return _lines([*(["%-11s%-11s%s" % ("idx", "orig_idx", "orig_file")] if header else []), *("%-11s%-11s%s" % r for r in rows)], "\n")

def helen_list(names):
    "`1 , 100032540_1` as in exemplars.txt"
    return _lines([f"{i} , {n}" for i, n in enumerate(names, 1)], "\n")


# ---- LFWA's two MATLAB files, as MATLAB 7.3 writes them -------------------------------------------------------------------

def _mat73(path, cells, numbers):
    import h5py
    with h5py.File(path, "w", userblock_size=512) as f:
        for key, words in cells.items():                      # an N x 1 cell is a (1, N) array of references to text
            out = np.empty((1, len(words)), object)
            for i, word in enumerate(words):
                d = f.require_group("#refs#").create_dataset(f"{key}{i}", data=np.frombuffer(word.encode("utf-16-le"), "<u2").reshape(-1, 1))
                d.attrs["MATLAB_class"] = np.bytes_("char"); out[0, i] = d.ref
            d = f.create_dataset(key, out.shape, dtype=h5py.ref_dtype); d[...] = out; d.attrs["MATLAB_class"] = np.bytes_("cell")
        for key, values in numbers.items():
            f.create_dataset(key, data=np.asarray(values, "f8")).attrs["MATLAB_class"] = np.bytes_("double")
    words = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Thu Jan  1 00:00:00 2015 HDF5 schema 1.00 ."
    with open(path, "r+b") as f: f.write((words.ljust(116) + b"\0"*8 + b"\x00\x02IM").ljust(512, b"\0"))

def lfwa_mats(folder, names, label, attributes, train, test, version="7.3", transposed=False):
    "lfw_att_40.mat and indices_train_test.mat; `train` and `test` count from 1; `transposed` stores `label` the wrong way round"
    label, indices = np.asarray(label, "f8"), dict(indices_img_train=train, indices_img_test=test, indices_identity_train=[1], indices_identity_test=[2])
    if version == "7.3":
        _mat73(folder/"lfw_att_40.mat", dict(AttrName=attributes, name=names), dict(label=label if transposed else label.T))
        return _mat73(folder/"indices_train_test.mat", {}, {k: np.reshape(v, (1, -1)) for k, v in indices.items()})
    from scipy.io import savemat
    cell = lambda words: np.array([[w] for w in words], object)
    savemat(folder/"lfw_att_40.mat", dict(AttrName=cell(attributes), name=cell(names), label=label.T if transposed else label))
    savemat(folder/"indices_train_test.mat", {k: np.reshape(v, (-1, 1)).astype("f8") for k, v in indices.items()})


# ---- whole sets --------------------------------------------------------------------------------------------------------------

def put(path, data):
    "Write bytes or text, making the folder"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path

def picture(path, size=(8, 10), color=(200, 170, 150), mode="RGB", **kwargs):
    "Write a one-colour picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **kwargs)
    return path

def mask(path, label):
    "Write a grey picture of label numbers"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(label, np.uint8)).save(path)
    return path

CELEBA_ROWS = ["000001.jpg", "000007.jpg", "101283.jpg", "162771.jpg", "182638.jpg", "202599.jpg"]  # three train, one valid, two test
CELEBA_PARTS = [0, 0, 0, 1, 2, 2]
CELEBA_PEOPLE = [2880, 2880, 17, 33, 41, 41]
CELEBA_BOXES = [[95, 71, 226, 313], [10, 10, 50, 60], [320, 828, 0, 0], [600, 274, 343, 475], [1, 1, 5, 5], [2, 2, 6, 6]]

def celeba_labels():
    "Six rows; the second begins with 1"
    values = np.where(np.random.default_rng(0).random((6, 40)) < .4, 1, -1); values[0, 0], values[1, 0] = -1, 1
    return values

def celeba_set(root, end="\r\n", anno="Anno", parts="Eval", images="Img/img_align_celeba", suffix=".jpg", wild=True):
    "The official layout, or with other folders a flat one; returns the label values"
    values, names = celeba_labels(), CELEBA_ROWS
    put(root/anno/"list_attr_celeba.txt", celeba_attr(list(zip(names, values)), end))
    put(root/parts/"list_eval_partition.txt", celeba_partition(list(zip(names, CELEBA_PARTS)), end))
    put(root/anno/"identity_CelebA.txt", celeba_identity(list(zip(names, CELEBA_PEOPLE)), end))
    put(root/anno/"list_bbox_celeba.txt", celeba_bbox(list(zip(names, CELEBA_BOXES)), end))
    marks = [(n, [69, 109, 106, 113, 77, 142, 73, 152, 108, 154 + i]) for i, n in enumerate(names)]
    put(root/anno/"list_landmarks_align_celeba.txt", celeba_landmarks(marks, end))
    put(root/anno/"list_landmarks_celeba.txt", celeba_landmarks([(n, [x + 100 for x in v]) for n, v in marks], end))
    for n in names: picture(root/images/(n[:-4] + suffix), (178, 218))
    if wild:
        for n in names: picture(root/Path(images).parent/"img_celeba"/n, (700, 900))
    return values

LFWA_NAMES = [f"{who}\\{who}_{i:04d}.jpg" for who, k in (("Aaron_Eckhart", 3), ("Abid_Hamid_Mahmud_Al-Tikriti", 2), ("Zoran_Djindjic", 4)) for i in range(1, k + 1)]

def lfwa_set(root, attributes=None, train=(1, 2, 3, 4, 5), test=(6, 7, 9), sign=False, **kwargs):
    "Nine images of three people; image 8 is in no list, 1 and 9 are the edge values"
    label = np.random.default_rng(1).integers(0, 2, (9, 40)); names = attributes or CELEBA_NAMES
    order = [CELEBA_NAMES.index(n) for n in names] if set(names) == set(CELEBA_NAMES) else list(range(40))
    stored = label[:, order]
    root.mkdir(parents=True, exist_ok=True)
    lfwa_mats(root, LFWA_NAMES, stored*2 - 1 if sign else stored, names, train, test, **kwargs)
    for n in LFWA_NAMES: picture(root/"lfw"/n.replace("\\", "/"))
    return label

def wider_person(box, *values): return dict(bbox=list(box), attribute=[*values, *[0]*(14 - len(values))])

def wider_docs():
    "trainval and test documents: unspecified labels, a box over the border, one outside, one with negative x, an image without people"
    entry = lambda name, *people: dict(file_name=name, scene_id=0, targets=list(people))
    maps = dict(attribute_id_map={str(i): n for i, n in enumerate(WIDER_NAMES)}, scene_id_map={"0": "Parade"})
    return (dict(images=[entry("train/0--Parade/a.jpg", wider_person([-3.5, 2, 10, 40], 1, -1), wider_person([4, 4, 10, 10], -1, 1, 1)),
                         entry("train/0--Parade/empty.jpg"), entry("val/1--Handshaking/b.jpg", wider_person([1, 1, 8, 8], 1), wider_person([25, 0, 9, 9], 1))], **maps),
            dict(images=[entry("test/0--Parade/a.jpg", wider_person([0, 0, 20, 30], -1, 0, 1))], **maps))

def wider_set(root, anno="wider_attribute_annotation", docs=None):
    "Four images of 20 x 30 pixels, five people, one of them outside"
    for name, doc in zip(("trainval", "test"), docs or wider_docs()):
        put(root/anno/f"wider_attribute_{name}.json", json.dumps(doc))
        for image in doc["images"]: picture(root/"Image"/image["file_name"], (20, 30))

BERKELEY_ROWS = [("00001.jpg", (2.5, 3., 10., 90.), [-1, 0, -1, 0, -1, 1, 0, -1, -1]), ("00002.jpg", (float("nan"),)*4, [1, -1, 0, -1, 0, -1, 0, 0, 0]),
                 ("00003.jpg", (0., 0., 9., 9.), [0]*9), ("00004.jpg", (1., 1., 9., 9.), [1]*9)]

def berkeley_set(root):
    "Four images in either part, under the same names; one without a box, one without labels"
    for part in ("train", "test"):
        put(root/part/"labels.txt", berkeley_labels(BERKELEY_ROWS))
        put(root/part/"other_bounds.txt", berkeley_other([("00001.jpg", (-4., 2., 9., 9.)), ("00001.jpg", (float("nan"),)*4)]))
        for n, *_ in BERKELEY_ROWS: picture(root/part/n, (30, 40))

HELEN_NAMES = dict(exemplars="100032540_1", tuning="232194_1", testing="33_1")

def helen_set(root):
    "One image per part, sizes differ; pixel (0, 0) ties at 128/127/128, pixel (0, 1) sums to more than 255"
    for i, (part, name) in enumerate(HELEN_NAMES.items()):
        put(root/f"{part}.txt", helen_list([name])); picture(root/"images"/f"{name}.jpg", (5 + i, 4))
        for k in range(11):
            plane = np.full((4, 5 + i), 255 if k == 0 else 0); plane[0, :2] = 0
            if k in (1, 6, 10): plane[0, 0] = 127 if k == 6 else 128
            if k in (3, 4): plane[0, 1] = 200 + k
            mask(root/"labels"/name/f"{name}_lbl{k:02d}.png", plane)

def lip_set(root, doubled=True):
    "Two images per part; one mask is a palette picture"
    place = {"images": "TrainVal_images/TrainVal_images", "segmentations": "TrainVal_parsing_annotations/TrainVal_parsing_annotations"}
    for part in ("train", "val"):
        put(root/("TrainVal_images" if doubled else "")/f"{part}_id.txt", f"77_{part}\n100_{part}\n")
        for i, name in enumerate((f"77_{part}", f"100_{part}")):
            picture(root/(place["images"] if doubled else "")/f"{part}_images"/f"{name}.jpg", (6, 8 + i))
            path = mask(root/(place["segmentations"] if doubled else "")/f"{part}_segmentations"/f"{name}.png", np.full((8 + i, 6), 19 - i))
            if i: image = Image.open(path); image.load(); image = image.convert("P"); image.putdata([255] + [18]*(6*9 - 1)); image.save(path)
    put(root/("TrainVal_pose_annotations" if doubled else "")/"lip_train_set.csv", "77_train.jpg," + ",".join(["nan,nan,nan"]*16) + "\n")

MASKHQ_MAPPING = [("0", "119613", "119614.jpg"), ("1", "162770", "162771.jpg"), ("2000", "182637", "182638.jpg")]

def maskhq_set(root, header=True):
    "Images 0 and 1 in mask folder 0, image 2000 in folder 1; ear and hair lie over skin; image 1 has no hair"
    for number, *_ in MASKHQ_MAPPING:
        picture(root/"CelebA-HQ-img"/f"{number}.jpg", (8, 8))
        for part, rows in dict(skin=slice(0, 3), l_ear=slice(1, 2), hair=slice(0, 1)).items():
            if (number, part) == ("1", "hair"): continue
            plane = np.zeros((4, 4), np.uint8); plane[rows] = 255
            path = root/"CelebAMask-HQ-mask-anno"/str(int(number)//2000)/f"{int(number):05d}_{part}.png"
            mask(path, plane)
            if number == "0": Image.open(path).convert("RGB").save(path)  # many copies have three channels
    put(root/"CelebA-HQ-to-CelebA-mapping.txt", maskhq_mapping(MASKHQ_MAPPING, header))
    put(root/"CelebAMask-HQ-attribute-anno.txt", maskhq_attr([(f"{n}.jpg", [1] + [-1]*39) for n, *_ in MASKHQ_MAPPING]))

def lapa_set(root):
    "One image of every prefix"
    for part, name in (("train", "HELEN_100032540_1_0"), ("train", "LFPW_1"), ("val", "9_2"), ("test", "10012551673_4")):
        picture(root/part/"images"/f"{name}.jpg", (6, 5)); mask(root/part/"labels"/f"{name}.png", np.full((5, 6), 10))

FASSEG_COLORS = ((255, 0, 0), (255, 255, 0), (127, 0, 0), (0, 0, 255), (0, 255, 255), (0, 255, 0))

def fasseg_set(root, version="V2"):
    "Six stripes in slightly wrong colours; in V3 two poses, one without test labels and one label of another size"
    stripes = np.clip(np.repeat(np.array(FASSEG_COLORS)[None], 4, 0) + np.array([9, -9, 20]), 0, 255)
    for part in ("Train", "Test"):
        labels = f"{part}_labels" if version == "V3" else f"{part}_Labels"
        names = ["1", "2"] if version != "V3" else ["+000/personne01000+000", "+015/personne01001+015", "+015/personne01002+015"]
        for i, n in enumerate(names):
            picture(root/version/f"{part}_RGB"/f"{n}.bmp", (6, 4))
            if version == "V3" and part == "Test" and i == 1: continue
            mask(root/version/labels/f"{n}.bmp", stripes[:3] if version == "V3" and part == "Test" and i == 2 else stripes)
    if version == "V3": put(root/"V3"/"README.md", "poses")
