"A photograph is not a picture of the set: its face is found and framed as training framed faces; what was cut already is said to be so; a predictor says what it comes from."
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from symbiosis_nb.core import DataError
from symbiosis_nb.data import crops
from symbiosis_nb.data.loaders import Field, attribute_dls
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.data.sources import open_faces
from symbiosis_nb.learner import attribute_learner
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.pooling import AvgPool
from symbiosis_nb.predictor import load_model, untrained
from symbiosis_nb.runs import Predictor, run

torch.set_num_threads(2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import os
    root = tmp_path_factory.mktemp("predictor")
    old, os.environ["SYMBIOSIS_CACHE"] = os.environ.get("SYMBIOSIS_CACHE"), str(root/"cache")
    faces = open_faces(profile="smoke")
    yield faces, run("avg_pool", faces, "smoke", out=root/"runs"), root
    if old is not None: os.environ["SYMBIOSIS_CACHE"] = old


def scene(table, *places, size=(900, 700)):
    "Pictures of the set pasted into a larger one, and a detector that knows where"
    picture, marks = Image.new("RGB", size, (90, 110, 130)), []
    for (x, y), path in zip(places, table.paths):
        picture.paste(Image.open(path).convert("RGB"), (x, y)); marks.append(crops.CELEBA_TEMPLATE + (x, y))
    boxes = np.array([[x + 46, y + 67, 84, 114.] for x, y in places]).reshape(-1, 4)
    return picture, crops.Faces(boxes, np.array(marks).reshape(-1, 5, 2), np.full(len(boxes), .99))


def knows(monkeypatch, found): monkeypatch.setattr(crops, "detect_faces", lambda image: found)


def quietly(f):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return f(), [str(w.message) for w in said]


def test_the_same_face_in_a_larger_picture_is_the_same_answer(trained, monkeypatch):
    table, r, _ = trained
    ask, (photo, found) = Predictor.load(r.folder), scene(table, (400, 300))
    cut, _ = quietly(lambda: ask(table.paths[0], aligned=True))
    knows(monkeypatch, found)
    asked, said = quietly(lambda: ask(photo))
    np.testing.assert_allclose(asked.to_numpy(), cut.to_numpy(), atol=.02)
    squeezed, _ = quietly(lambda: ask(photo, aligned=True))
    assert np.abs(squeezed.to_numpy() - cut.to_numpy()).max() > np.abs(asked.to_numpy() - cut.to_numpy()).max()
    assert any("trained on drawn faces, not for photographs" in s for s in said)


def test_of_several_faces_the_one_in_the_middle_is_answered_and_said(trained, monkeypatch):
    table, r, _ = trained
    ask, (photo, found) = Predictor.load(r.folder), scene(table, (20, 20), (380, 260))
    knows(monkeypatch, found)
    asked, said = quietly(lambda: ask(photo))
    rows, _ = quietly(lambda: ask.faces(photo))
    np.testing.assert_allclose(asked.iloc[:, 0], rows[list(table.names)].iloc[1], atol=1e-5)
    assert any("shows 2 faces" in s for s in said)


def test_large_photographs_are_looked_at_smaller(trained, monkeypatch):
    "Boxes and landmarks come back in pixels of the photograph"
    table, r, _ = trained
    photo, found = scene(table, (3000, 1500), size=(4000, 3000))
    sizes = []
    def detect(image):
        sizes.append(image.size); s = image.width/4000
        return crops.Faces(found.boxes*s, found.landmarks*s, found.scores)
    monkeypatch.setattr(crops, "detect_faces", detect)
    rows, _ = quietly(lambda: Predictor.load(r.folder).faces(photo))
    assert sizes == [(1600, 1200)] and np.allclose(rows[["x", "y", "width", "height"]], found.boxes)


def test_what_is_no_photograph_of_a_face(trained, monkeypatch, tmp_path):
    table, r, _ = trained
    ask = Predictor.load(r.folder); knows(monkeypatch, crops.NO_FACES)
    with pytest.raises(DataError, match="no face found; if it shows one, cut as the run's pictures are, pass aligned=True"): ask(table.paths[0])
    (tmp_path/"a.jpg").write_text("no picture")
    with pytest.raises(DataError, match="not a picture in any known format"): ask(tmp_path/"a.jpg")
    with pytest.raises(DataError, match="none of 2 pictures can be used"): quietly(lambda: ask([table.paths[0], tmp_path/"a.jpg"], on_bad="skip"))


@pytest.mark.parametrize("size, says", [((640, 480), "is 640x480, the run's pictures have the shape of 178x218: it is stretched"), ((17, 21), "smaller than the"), ((356, 436), None), ((178, 218), None)])
def test_what_is_said_to_be_cut_and_is_not(trained, size, says):
    _, r, _ = trained
    answer, said = quietly(lambda: Predictor.load(r.folder)(Image.new("RGB", size), aligned=True))
    assert answer.shape == (40, 1) and (any(says in s for s in said) if says else not said)


def test_show_puts_what_is_present_first(trained, monkeypatch):
    table, r, _ = trained
    ask, (photo, found) = Predictor.load(r.folder), scene(table, (400, 300))
    knows(monkeypatch, found)
    fig, _ = quietly(lambda: ask.show(photo, most=6))
    left, right = fig.axes
    values = [float(t.get_text()) for t in right.texts]
    asked, _ = quietly(lambda: ask(photo).iloc[:, 0].sort_values(ascending=False))
    assert values == [round(float(v), 2) for v in asked[:6]] and right.yaxis_inverted()
    assert [t.get_text() for t in right.get_yticklabels()] == [n.replace("_", " ") for n in asked.index[:6]]
    pixels = left.images[0].get_array()
    assert tuple(pixels[400, 446]) == (255, 165, 0) and "not for photographs" in fig.get_suptitle()


def test_a_learner_ends_in_a_predictor_that_is_kept(trained, tmp_path):
    "`from_learner` knows frame, rule and origin of its pictures; `save` and `load` keep them"
    table, _, root = trained
    bright = replace(table, background="red", name="my synthetic faces")
    learn = attribute_learner(attribute_dls(bright, [Field("image", pixel_store(bright, (40, 32)))], bs=16), AvgPool(backbone("small", .25), 40))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 4e-3)
    ask = Predictor.from_learner(learn)
    assert ask.look.frame == "aligned" and ask.opener.background == "red" and ask.origin.data == "my synthetic faces" and "AvgPool trained on my synthetic faces" in repr(ask)
    back, _ = quietly(lambda: Predictor.load(ask.save(tmp_path/"mine")))
    assert (tmp_path/"mine.onnx").is_file() and back.origin == ask.origin and back.look == ask.look and back.opener == ask.opener
    np.testing.assert_allclose(back(table.paths[:4], aligned=True), learn.predict(table.paths[:4], aligned=True), atol=1e-4)
    import onnxruntime
    session = onnxruntime.InferenceSession(str(tmp_path/"mine.onnx"), providers=["CPUExecutionProvider"])
    said, raw = session.get_modelmeta().custom_metadata_map, np.asarray(pixel_store(bright, (40, 32))[np.arange(4)])   # all that another language has
    x = (raw/255 - np.array(said["mean"].split(), float))/np.array(said["std"].split(), float)
    logits, = session.run(None, dict(pictures=x.transpose(0, 3, 1, 2).astype(np.float32)))
    np.testing.assert_allclose(1/(1 + np.exp(-logits.T)), back(table.paths[:4], aligned=True), atol=1e-4)
    assert (said["channels"], said["range"], said["answers"]) == ("RGB", "0 to 1", "logits: present above 0")


def test_real_detector_finds_nothing_in_noise(trained):
    _, r, _ = trained
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="no face found"): Predictor.load(r.folder)(noise)


def test_what_is_missing_for_onnx_is_named(trained, tmp_path, monkeypatch):
    import sys
    for name in ("onnx", "onnxscript", "onnxruntime"): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'symbiosis_nb\[onnx\]'"): Predictor.load(trained[1].folder).save(tmp_path/"a.onnx")
    (tmp_path/"b.onnx").write_bytes(b"x")
    with pytest.raises(ImportError, match="ONNX files need onnxruntime"): Predictor.load(tmp_path/"b.onnx")


def test_the_untrained_network_of_a_run_is_the_trained_one_at_its_start(trained):
    "With its stride, which decides what is seen and no weight's shape"
    faces, _, root = trained
    r = run("avg_pool", faces, "smoke", out=root/"runs", stride=4)
    maps = [m.map_shapes((40, 32))[-1] for m in (untrained(r).backbone, load_model(r.folder).model.backbone, backbone("small", .25))]
    assert maps[0] == maps[1] != maps[2]


def of_ones_own(root, names, **how):
    "A run on 24 pictures of one's own, and its table"
    from symbiosis_nb.data.own import table_from_csv
    rng, parts, size = np.random.default_rng(0), ["train"]*14 + ["valid"]*4 + ["test"]*6, (178, 218)
    for i in range(24): Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(root/f"{i:02}.png")
    labels = rng.integers(0, 2, (24, len(names)))
    rows = [",".join(map(str, (f"{i:02}.png", p, -10, -20, 90, 120, *labels[i]))) for i, p in enumerate(parts)]
    (root/"l.csv").write_text("\n".join((",".join(("file", "split", "x0", "y0", "w0", "h0", *names)), *rows)))
    table = table_from_csv(root/"l.csv", attributes=names, **how)
    return table, run("avg_pool", table, "smoke", out=root/"runs", precision="float32", limit=None)


def test_an_attribute_may_be_called_as_what_is_said_of_a_face(tmp_path, monkeypatch, capsys):
    "It ended in pandas' words, columns overlap: by the predictor and by the command"
    from symbiosis_nb import shell
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    names = ["x", "y", "width", "height", "score", "hat"]
    table, r = of_ones_own(tmp_path, names, frame="aligned")
    found = crops.Faces(np.array([[40., 60, 90, 110]]), crops.CELEBA_TEMPLATE[None].astype(float), np.array([.99])); knows(monkeypatch, found)
    ask = Predictor.load(r.folder); rows = ask.faces(table.paths[0])
    assert rows.columns[:5].tolist() == [f"{n} of the face" for n in names[:5]] and rows.iloc[0, :5].tolist() == [40, 60, 90, 110, .99]
    np.testing.assert_allclose(rows[names].to_numpy()[0], ask(table.paths[0]).iloc[:, 0], atol=1e-5)
    assert shell.main([str(table.paths[0]), "--run", str(r.folder), "--out", str(tmp_path/"boxes")]) == 0 and "face 1 at x 40, y 60, 90 x 110" in capsys.readouterr().out
    said = shell.answer(ask, table.paths[0])["faces"][0]
    assert said["score"] == .99 and said["attributes"]["score"] == round(float(rows["score"].iloc[0]), 4) and set(said["attributes"]) == set(names)


def test_a_whole_photograph_is_not_taken_for_a_persons_box_without_a_word(tmp_path, monkeypatch, capsys):
    from symbiosis_nb import demo, shell
    from symbiosis_nb.data.pixels import box_view
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    table, r = of_ones_own(tmp_path, ["hat"], box="x0 y0 w0 h0")
    ask, test = Predictor.load(r.folder), np.flatnonzero(table.split == "test")
    for asked in (lambda: ask(table.paths[0]), lambda: ask.show(table.paths[0]), lambda: shell.answer(ask, table.paths[0]), lambda: demo.views_of(ask, table.paths[0])):
        assert sum("cut the person out" in s and "aligned=True" in s for s in quietly(asked)[1]) == 1
    cut, said = quietly(lambda: ask([box_view(table.boxes).crop(table.open(i), i) for i in test], aligned=True))
    assert not said
    np.testing.assert_allclose(cut.to_numpy().T, 1/(1 + np.exp(-r.predictions()[0])), atol=1e-4)
