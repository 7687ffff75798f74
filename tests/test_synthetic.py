"The synthetic faces as an instrument: files, rates, determinism, and that every cue is where it is said to be"
import re

import numpy as np
import pytest
import torch

from symbiosis_nb.core import DataError
from symbiosis_nb.data import synthetic as S
from symbiosis_nb.data.official import celeba, helen, lfwa
from symbiosis_nb.data.tables import check_split, read_image
from symbiosis_nb.vocab import CELEBA

RATES = np.array([CELEBA.prevalence[n] for n in CELEBA])
col = lambda labels, name: labels[:, CELEBA.index(name)[0]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("faces")
    S.make_faces(out, n=60, seed=4, wild=True)
    return out


@pytest.fixture(scope="module")
def faces(): return S.sample_faces(5000)[0]


def small(faces, n=48): return faces.take(slice(0, n))


# ---- files

def test_text_files_are_byte_exact(root):
    attr = (root/"Anno/list_attr_celeba.txt").read_bytes().decode("ascii")
    lines = attr.split("\r\n")
    assert lines[0] == "60" and lines[1] == " ".join(CELEBA) + " " and lines[-1] == "" and len(lines) == 63 and "\n" not in attr.replace("\r\n", "")
    assert all(re.fullmatch(r"0000\d\d\.jpg (-1|1)(  1| -1){39}", line) for line in lines[2:-1])
    for file, row in {"Eval/list_eval_partition.txt": r"0000\d\d\.jpg [012]", "Anno/identity_CelebA.txt": r"0000\d\d\.jpg \d+"}.items():
        lines = (root/file).read_bytes().decode().split("\r\n")
        assert len(lines) == 61 and all(re.fullmatch(row, line) for line in lines[:-1])
    for file, row in {"list_landmarks_align_celeba.txt": r"0000\d\d\.jpg -?\d+(?= )([ \d-]{5}){9}", "list_landmarks_celeba.txt": r"0000\d\d\.jpg -?\d+(?= )([ \d-]{5}){9}",
                      "list_bbox_celeba.txt": r"0000\d\d\.jpg [ \d-]{5}( [ \d-]{3}){3}"}.items():
        lines = (root/"Anno"/file).read_bytes().decode().split("\r\n")
        assert lines[0] == "60" and all(re.fullmatch(row, line) for line in lines[2:-1]), file


def test_official_reader_reads_it(root):
    table, wild = celeba(root), celeba(root, "original")
    assert table.counts() == dict(train=42, valid=6, test=12) and table.known.all() and len(np.unique(table.identity)) > 3
    check_split(table)
    assert all(read_image(p).size == (178, 218) for p in table.paths[:5])
    faces = S.sample_faces(60, 4)[0]
    assert (S.clean_labels(root) == faces.labels).all() and (table.labels == S.noisy_labels(faces, .035)).all()
    assert np.abs(table.landmarks - S.landmarks(faces)).max() <= .5
    for path, (x, y, w, h), points in zip(wild.paths, wild.boxes, wild.landmarks):
        size = read_image(path).size
        assert (points >= (x, y)).all() and (points <= (x + w, y + h)).all() and (points < size).all() and w > 40
    assert "synthetic" in S.read_faces(root).name and "synthetic" in S.read_faces(root, "original").name


def test_same_set_is_read_and_another_refused(root):
    before = (root/"Img/img_align_celeba/000001.jpg").stat().st_mtime_ns
    S.make_faces(root, n=60, seed=4, wild=True)
    assert (root/"Img/img_align_celeba/000001.jpg").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="another synthetic set"): S.make_faces(root, n=60, seed=5, wild=True)


def test_same_seed_same_bytes(root, tmp_path):
    S.make_faces(tmp_path, n=60, seed=4, cue_masks=False)
    for path in sorted(tmp_path.rglob("*.*")):
        if path.name != "settings.json": assert path.read_bytes() == (root/path.relative_to(tmp_path)).read_bytes(), path.name
    with pytest.raises(DataError, match="cue masks exist"): S.cue_masks(tmp_path)


def test_cue_masks_on_disk(root):
    table, masks = S.read_faces(root), S.cue_masks(root)
    test = table.take(table.split == "test")
    assert len(masks) == len(test)
    exact = S.cues(S.sample_faces(60, 4)[0].take(table.split == "test"))
    assert (masks[test.paths] == exact).mean() > .9999
    with pytest.raises(KeyError): masks[table.paths[0]]


def test_parsing_set(tmp_path):
    table = S.make_parsing(tmp_path, n=20, seed=3)
    assert table.counts() == helen(tmp_path).counts() == dict(train=16, valid=2, test=2) and "synthetic" in table.name
    shapes = {table.label(i).shape for i in range(20)}
    assert len(shapes) > 1
    seen = np.unique(np.concatenate([table.label(i).ravel() for i in range(20)]))
    assert set(seen) >= {0, 1, 2, 3, 4, 5, 6, 7, 9, 10}
    label = table.label(0)
    middle = lambda k: np.argwhere(label == k).mean(0)
    assert middle(2)[1] < middle(6)[1] < middle(3)[1] and middle(4)[1] < middle(6)[1] < middle(5)[1]  # sides as the viewer sees them
    assert middle(10)[0] < middle(2)[0] < middle(4)[0] < middle(6)[0] < middle(7)[0] <= middle(9)[0]
    assert not (S.sample_faces(20, "parsing 3")[0].labels == S.sample_faces(20, 3)[0].labels).all()


def test_shifted_set(tmp_path):
    table = S.make_shifted_faces(tmp_path, n=60)
    assert lfwa(tmp_path).digest and "synthetic" in table.name and read_image(table.paths[0]).size == (250, 250)
    assert (table.split == "test").sum() == 30 and len({S.person_name(i) for i in range(5000)}) == 5000
    check_split(table)


# ---- labels

def test_rates_and_contradictions(faces):
    rates = faces.labels.mean(0)
    assert np.abs(rates - RATES).max() < .05 and np.abs(rates - RATES).mean() < .012
    for (a, va), (b, vb) in CELEBA.contradictions: assert not ((col(faces.labels, a) == va) & (col(faces.labels, b) == vb)).any()


def test_causes_make_shortcuts(faces):
    corr = np.corrcoef(faces.labels.T)
    at = lambda a, b: corr[CELEBA.index(a)[0], CELEBA.index(b)[0]]
    assert at("Male", "Wearing_Lipstick") < -.55 and at("Male", "No_Beard") < -.4 and at("Smiling", "High_Cheekbones") > .35
    assert at("Young", "Gray_Hair") < -.2 and at("Chubby", "Double_Chin") > .15 and at("Heavy_Makeup", "Wearing_Lipstick") > .5


def test_people_stay_in_their_part():
    for n, seed in ((7, 0), (100, 1), (5000, 2)):
        identity, split = S.identities(seed, n)
        parts = [set(identity[split == s]) for s in S.SPLITS]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2] and (identity > 0).all() and len(split) == n
    sizes = np.bincount(identity)[1:]
    assert sizes.min() >= 1 and sizes.max() <= 15 and sizes.mean() > 5


def test_label_noise_keeps_rates(faces):
    for rate in (0., .035, .1):
        written = S.noisy_labels(faces, rate)
        assert abs((written != faces.labels).mean() - rate) < .1*rate + 1e-9
        assert np.abs(written.mean(0) - faces.labels.mean(0)).max() < .02
    wrong = (S.noisy_labels(faces, .035) != faces.labels).mean(0)
    assert col(wrong[None], "Bald")[0] < .02 < col(wrong[None], "Smiling")[0]


@pytest.mark.parametrize("name", CELEBA.names)
def test_toggle_is_possible_and_minimal(faces, name):
    other = S.toggle(small(faces, 400), name)
    before, after = small(faces, 400).labels, other.labels
    assert (col(before, name) != col(after, name)).all()
    for (a, va), (b, vb) in CELEBA.contradictions: assert not ((col(after, a) == va) & (col(after, b) == vb)).any()
    assert ((before != after).sum(1) == 1).mean() > .5 or name in ("Bald", "No_Beard", *S.BEARD, *CELEBA.names) and ((before != after).sum(1) <= 5).all()


# ---- pictures

def test_drawing_does_not_depend_on_the_batch(faces):
    f = small(faces, 12)
    one = S.draw(f)
    assert torch.equal(one, S.draw(f))
    assert (one - torch.cat([S.draw(f.take([i])) for i in range(12)])).abs().max() < 1e-4
    threads = torch.get_num_threads()
    torch.set_num_threads(1); other = S.draw(f); torch.set_num_threads(threads)
    assert (one - other).abs().max() < 1e-4


def test_regions_sum_to_one(faces):
    _, regions = S.draw(small(faces, 16), regions=True)
    assert (regions.sum(1) - 1).abs().max() < 1e-4 and regions.min() > -1e-5


def test_cues_by_the_short_way_equal_the_long_way(faces):
    f = small(faces, 24)
    masks, base = S.cues(f), S.draw(f, (80, 64), noise=False)
    for j, name in enumerate(CELEBA):
        full = (S.draw(S.toggle(f, name), (80, 64), noise=False) - base).abs().amax(1) > .03
        assert (full.numpy() != masks[:, j]).sum() <= 2, name


PLACES = dict(Eyeglasses=(-52, -18, 52, 22), Wearing_Lipstick=(-26, 24, 26, 62), Big_Lips=(-26, 22, 26, 64), Mouth_Slightly_Open=(-26, 24, 26, 64),
              Smiling=(-36, 22, 36, 66), Mustache=(-26, 22, 26, 50), Goatee=(-20, 42, 20, 84), Big_Nose=(-20, -10, 20, 42), Pointy_Nose=(-20, -10, 20, 42),
              Narrow_Eyes=(-38, -14, 38, 16), Heavy_Makeup=(-42, -20, 42, 14), Bags_Under_Eyes=(-38, 0, 38, 22), Arched_Eyebrows=(-38, -32, 38, 2),
              Bushy_Eyebrows=(-38, -32, 38, 2), Wearing_Earrings=(-60, 8, 60, 44), Wearing_Necklace=(-34, 64, 34, 112), Wearing_Necktie=(-36, 64, 36, 140),
              Wearing_Hat=(-100, -100, 100, 6), Bangs=(-54, -66, 54, 10), Receding_Hairline=(-54, -70, 54, 14), Rosy_Cheeks=(-50, 0, 50, 46),
              High_Cheekbones=(-52, 0, 52, 54), Double_Chin=(-50, 26, 50, 104), Sideburns=(-56, -20, 56, 50))


def test_local_cues_are_where_they_belong(faces):
    "Measured in the head's own coordinates, with a margin of one and a half pixels of the mask"
    f = faces.take(np.flatnonzero((S.uniform(0, "occluder", faces.index) > .14) & ~col(faces.labels, "Blurry"))[:64])
    masks, c = S.cues(f, list(PLACES)), S.Canvas(f, (80, 64))
    for j, (name, (x0, y0, x1, y1)) in enumerate(PLACES.items()):
        inside = ((c.x > x0 - 4 - 9) & (c.x < x1 + 4 + 9) & (c.y > y0 - 4) & (c.y < y1 + 4)).numpy()  # 9: yaw
        assert masks[:, j][~inside].sum() <= .005*masks[:, j].sum(), name


def test_cues_are_there(faces):
    masks = S.cues(small(faces, 64))
    seen = masks.any((2, 3)).mean(0)
    hidden = ("Bald", "Bangs", "Receding_Hairline", "Straight_Hair", "Wavy_Hair", "Bags_Under_Eyes", "Narrow_Eyes", "Double_Chin")
    for j, name in enumerate(CELEBA): assert seen[j] > (.6 if name in hidden else .9), (name, seen[j])


def test_decoys_do_not_know_the_labels(faces):
    "|correlation| of any decoy kind with any label stays within what chance gives, and decoys are common"
    kinds = [S.decoy_kind(faces, f"{place} {i}").flatten().numpy() for place, slots in (("wall", S.WALL_SLOTS), ("cloth", S.CLOTH_SLOTS)) for i in range(len(slots))]
    for k, decoy in enumerate(S.DECOYS):
        there = np.any([kind == k for kind in kinds], 0)
        assert .1 < there.mean() < .6, decoy
        for name in CELEBA: assert abs(np.corrcoef(there, col(faces.labels, name))[0, 1]) < 4.8/np.sqrt(len(faces)), (decoy, name)
