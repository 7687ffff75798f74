"A predictor looks as training looked: the two views of a picture are equal to the pixel, for every way of finding a face, of cutting and of storing."
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import picture_table
from symbiosis_nb.data import crops
from symbiosis_nb.data.loaders import attribute_loader
from symbiosis_nb.inputs import prepare
from symbiosis_nb.jobs import make_job
from symbiosis_nb.predictor import Look
from symbiosis_nb.recipes import PROFILES
from symbiosis_nb.methods import PSE_CROPS

torch.set_num_threads(1)
BOX, MARKS = np.array([9., 12., 16., 20.]), np.array([[13, 18], [22, 19], [17, 24], [14, 28], [21, 29]], float)


@pytest.fixture
def table(tmp_path): return picture_table(tmp_path/"pictures", 12)


@pytest.fixture
def detector(monkeypatch):
    "Finds one face, a little to the right of where it is annotated; none in every fourth picture"
    def find(image):
        dark = np.asarray(image.convert("L"))[0, 0] % 4 == 0
        return crops.NO_FACES if dark else crops.Faces((BOX + [2, 1, 0, 0])[None], (MARKS + [2, 1])[None], np.array([.9]))
    monkeypatch.setattr(crops, "detect_faces", find)


def both_views(table, job, **more):
    "The test pictures as the model sees them when it is measured, and as a predictor makes them from the files"
    ready = prepare(job)
    loader = attribute_loader(job.table, ready.fields, "test", 64, ok=ready.ok)
    trained = loader.one_batch()[0]
    class Finished: config, done = {**job.config(), "attributes": list(table.names)}, {}
    look = Look(tuple(job.profile.size), job.table.frame, **job.need.look(Finished))
    paths = [p for p, s, ok in zip(job.table.paths, job.table.split, ready.ok) if s == "test" and ok]
    from symbiosis_nb.data.loaders import normalize
    asked = torch.stack([normalize(torch.from_numpy(look(Image.open(p).convert("RGB"))).permute(2, 0, 1)[None])[0] for p in paths])
    assert len(asked) == len(trained) > 0
    return trained, asked


@pytest.mark.parametrize("frame", ["aligned", "whole"])
@pytest.mark.parametrize("faces", ["annotated", "detected"])
@pytest.mark.parametrize("redetect", [False, True])
@pytest.mark.parametrize("scheme", ["a", "e"])
def test_crops(table, detector, tmp_path, frame, faces, redetect, scheme):
    shown = replace(table, frame=frame, name=f"{frame} pictures")
    job = make_job("g2s_1", shown, "smoke", options=dict(faces=faces, redetect=redetect, scheme=scheme), out=tmp_path, on_bad="skip")
    trained, asked = both_views(shown, job)
    assert torch.equal(trained, asked)


def test_a_detected_face_is_not_the_template(table, detector, tmp_path):
    "The rule matters: the views differ where another one is taken"
    shown = replace(table, frame="aligned")
    views = [both_views(shown, make_job("g2s_1", shown, "smoke", options=dict(faces=f), out=tmp_path, on_bad="skip"))[1] for f in ("annotated", "detected")]
    assert (views[0] - views[1]).abs().max() > .1


@pytest.mark.parametrize("margin", [1., 256/227])
def test_whole_pictures(table, tmp_path, margin):
    recipe = replace(PROFILES["smoke"].recipe, **PSE_CROPS) if margin > 1 else PROFILES["smoke"].recipe
    job = make_job("dmtl", table, "smoke", out=tmp_path, overrides=dict(recipe=recipe))
    trained, asked = both_views(table, job)
    assert torch.equal(trained, asked)


def test_abstraction_images_are_drawn_at_the_generators_size(tmp_path):
    "The further input of a predictor is the one that was stored for training, up to its eight bits"
    from symbiosis_nb.data.sources import open_faces, open_parsing
    from symbiosis_nb.needs.abstraction import abstraction_pictures
    from symbiosis_nb.predictor import Predictor
    from symbiosis_nb.runs import run
    faces, parsing = open_faces(profile="smoke"), open_parsing(profile="smoke")
    settings = dict(generator=replace(PROFILES["smoke"].generator, size=(64, 64)))
    r = run("dual_path", faces, "smoke", out=tmp_path, parsing=parsing, precision="float32", **settings)
    job = make_job("dual_path", faces, "smoke", out=tmp_path, parsing=parsing, overrides=dict(precision="float32", **settings))
    stored, row = abstraction_pictures(job).store, int(np.flatnonzero(job.table.split == "test")[0])
    ask = Predictor.load(r.folder)
    view = lambda look: torch.from_numpy(look(Image.open(job.table.paths[row]).convert("RGB"))).permute(2, 0, 1)[None]
    from symbiosis_nb.data.loaders import normalize
    with torch.no_grad(): drawn = ask.model.helper(normalize(view(ask.seen)), ask.size)
    mean, std = ask.model.helper.mean, ask.model.helper.std
    assert ((drawn*std + mean)[0].permute(1, 2, 0)*255 - stored[[row]][0].float()).abs().max() <= 1
