"The synthetic people: official files, possible clothes, unspecified labels with a reason, cues where the clothes are"
import json
import re

import numpy as np
import pytest
import torch

from symbiosis_nb.core import DataError
from symbiosis_nb.data import synthetic_people as P
from symbiosis_nb.data.official import berkeley_attributes, lip, wider_attribute
from symbiosis_nb.data.tables import read_image
from symbiosis_nb.vocab import BERKELEY, LIP, WIDER

col = lambda labels, name: labels[:, WIDER.index(name)[0]]


@pytest.fixture(scope="module")
def people(): return P.sample_people(3000)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("people")
    P.make_wider(out/"wider", 40); P.make_berkeley(out/"berkeley", 40); P.make_lip(out/"lip", 30)
    return out


def test_rates_and_possible_clothes(people):
    rates = np.array([P.traits()[n][0] for n in WIDER])
    assert np.abs(people.labels.mean(0) - rates).max() < .035
    for labels in (people.labels, *(P.change(people, n).labels for n in WIDER)):
        for pair in (("shorts", "longPants"), ("T-shirt", "longSleeve"), ("skirt", "longPants"), ("jeans", "shorts")):
            assert not labels[:, WIDER.index(*pair)].all(1).any(), pair
        assert (col(labels, "longPants") | ~col(labels, "jeans")).all()
    for name in WIDER: assert (col(P.change(people, name).labels, name) != col(people.labels, name)).all()


def test_first_people_stay_when_more_are_asked_for(people):
    few = P.sample_people(50)
    assert (few.labels == people.labels[:50]).all()
    a, b = P.draw_people(few.take(slice(0, 6))), [P.draw_people(few.take([i])) for i in range(6)]
    for k in (0, 1): assert (a[k] - torch.cat([v[k] for v in b])).abs().max() < 1e-3
    assert (a[1].sum(1) - 1).abs().max() < 1e-4


def test_parts_are_on_their_side(people):
    parts = P.draw_people(people.take(np.flatnonzero(col(people.labels, "shorts") & col(people.labels, "T-shirt"))[:24]))[1]
    centre = lambda name: (parts[:, P.PART[name]]*torch.arange(100.)).sum()/parts[:, P.PART[name]].sum()
    for name in ("arm", "leg", "shoe"): assert centre(f"Left-{name}") > 52 > 48 > centre(f"Right-{name}")  # the subject's left is on the right
    seen = set(P.draw_people(people.take(slice(0, 400)))[1].argmax(1).unique().tolist())
    assert len(seen) == len(LIP), [LIP.names[k] for k in set(range(len(LIP))) - seen]


BANDS = dict(sunglass=(0, 60), Hat=(0, 50), faceMask=(8, 60), skirt=(85, 208), shorts=(85, 208), jeans=(85, 208), longPants=(85, 208), logo=(40, 80),
             stripe=(30, 160), longSleeve=(30, 140), formal=(30, 190), longHair=(0, 90))


def test_cues_are_where_the_clothes_are(people):
    f = people.take(slice(0, 40))
    masks = P.people_cues(f, list(BANDS))
    for j, (name, (top, low)) in enumerate(BANDS.items()):
        alone = (P.change(f, name).labels != f.labels).sum(1) == 1  # nothing else had to be taken off
        assert alone.sum() > 3 and masks[alone, j, top:low].sum() >= .99*masks[alone, j].sum(), name
        assert masks[:, j].any((1, 2)).mean() > .7, name


def test_wider_files(root):
    table, masks = wider_attribute(root/"wider"), P.people_cue_masks(root/"wider")
    assert len(table) == 40 and set(table.split) == {"train", "valid", "test"} and not table.known.all()
    assert len(masks) == (table.split == "test").sum() and masks[:3].shape == (3, 14, 64, 32) and masks[:].any((2, 3)).mean() > .3
    document = json.loads((root/"wider/wider_attribute_annotation/wider_attribute_test.json").read_text())
    assert document["attribute_id_map"]["0"] == "Male" and all(i["file_name"].startswith("test/") for i in document["images"])
    past = [t["bbox"] for i in document["images"] for t in i["targets"]]
    assert all(len(b) == 4 for b in past)
    assert max(sum(p == q for q in table.paths) for p in table.paths) > 1, "no picture has several people"
    lower = table.known[:, WIDER.index("longPants")[0]]
    sizes = np.array([read_image(p).size for p in table.paths])
    touches = table.boxes[:, 1] + table.boxes[:, 3] > sizes[:, 1] - 1.5
    assert not lower[touches].any() and lower[~touches].mean() > .8  # whoever is cut off has no label below


def test_berkeley_files(root):
    table = berkeley_attributes(root/"berkeley")
    row = r"\d{5}\.jpg( +(NaN|-?\d+\.\d\d)){4}"
    for part in ("train", "test"):
        base = root/"berkeley/attributes_dataset"/part
        text = (base/"labels.txt").read_bytes().decode()
        assert "\r" not in text and all(re.fullmatch(row + r"( (-1| 0| 1)){9}", line) for line in text.splitlines()) and text.startswith("00001.jpg")
        assert all(re.fullmatch(row, line) for line in (base/"other_bounds.txt").read_text().splitlines())
    assert table.labels.shape[1] == len(BERKELEY) and .3 < table.known.mean() < .8
    assert len(P.people_cue_masks(root/"berkeley")) == (table.split == "test").sum()


def test_lip_files(root):
    table = lip(root/"lip")
    assert table.counts() == dict(train=27, valid=3, test=0)
    for i in (0, 9, 26):
        label = table.label(i)
        assert label.max() < 20 and label.shape == read_image(table.paths[i]).size[::-1]
    assert len({table.label(i).shape for i in range(27)}) > 2


def test_same_again_and_another(root):
    assert P.make_wider(root/"wider", 40).digest == P.read_wider(root/"wider").digest
    with pytest.raises(DataError, match="another synthetic set"): P.make_lip(root/"lip", 31)
    for read in (P.read_wider, P.read_berkeley, P.read_lip):
        assert "synthetic" in read(root/dict(read_wider="wider", read_berkeley="berkeley", read_lip="lip")[read.__name__]).name


def test_decoys_do_not_know_the_labels():
    scenes = P.sample_scenes(4000, "decoys")
    numbers = np.unique(scenes.scene)
    f = P.Scene(numbers, scenes.people.seed, (2, 2)).f
    for k, name in enumerate(P.DECOYS):
        there = np.any([P.decoy_kind(f, i).flatten().numpy() == k for i in range(len(P.SLOTS))], 0)[np.searchsorted(numbers, scenes.scene)]
        assert .05 < there.mean() < .7, name
        for a in WIDER: assert abs(np.corrcoef(there, col(scenes.people.labels, a))[0, 1]) < 4.8/np.sqrt(len(numbers)), (name, a)


def test_noise_keeps_rates():
    scenes = P.sample_scenes(4000, "noise")
    known = np.ones((4000, 14), bool)
    values = P.written(scenes, known, .03)
    assert abs(((values > 0) != scenes.people.labels).mean() - .03) < .004 and np.abs((values > 0).mean(0) - scenes.people.labels.mean(0)).max() < .012
    assert (P.written(scenes, ~known, .03) == 0).all()
