"Whole photographs in the frame of CelebA's aligned pictures: one store, found again, nothing lost without being counted"
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from symbiosis_nb.core import DataError
from symbiosis_nb.data.aligned import align_face, aligned, centred, middle_similarity
from symbiosis_nb.data.crops import (CELEBA_SIZE, CELEBA_TEMPLATE, CELEBA_TRIANGLE, NO_FACES, Faces, celeba_similarity, central_box,
                                     choose_face, detect_faces, move_points, template_box)
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.data.synthetic import make_shifted_faces
from symbiosis_nb.data.tables import read_image


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    "Drawn photographs in the LFWA layout, 250 x 250"
    return make_shifted_faces(tmp_path_factory.mktemp("lfwa")/"set", n=24)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path)); return tmp_path


def face(x, y, size=60.):
    "Landmarks and box of an upright face around a point"
    marks = (CELEBA_TEMPLATE - CELEBA_TEMPLATE.mean(0))*size/80 + (x, y)
    return np.array([x - size/2, y - size/2, size, size]), marks


def several(*faces):
    boxes, marks = zip(*faces)
    return Faces(np.stack(boxes), np.stack(marks), np.ones(len(boxes)))


class Stub:
    "Finds a face in the middle of every picture but those named; counts its calls"
    def __init__(self, table, without=()):
        self.__qualname__ = "stub"
        self.calls, self.without = 0, [np.asarray(read_image(table.paths[i])) for i in without]
    def __call__(self, image):
        self.calls += 1
        if any(np.array_equal(np.asarray(image), m) for m in self.without): return NO_FACES
        return several(face(20, 20, 30), face(125, 128, 90), face(230, 200, 40))


def test_the_face_in_the_middle_is_moved_to_the_template():
    image = Image.new("RGB", (250, 250))
    box, marks = face(125, 128, 90)
    for k in (0, 1): image.paste((255, 255, 255), tuple(int(v) for v in (*(marks[k] - 3), *(marks[k] + 4))))
    got, how = align_face(image, detect=lambda i: several(face(20, 20, 30), face(125, 128, 90)))
    assert how == "detected" and got.size == CELEBA_SIZE
    pixels = np.asarray(got)[..., 0].astype(float)
    for k, half in enumerate((slice(0, 89), slice(89, None))):
        y, x = np.nonzero(pixels[:, half] > 128)
        assert abs(x.mean() + 89*k - CELEBA_TRIANGLE[k, 0]) < 1.5 and abs(y.mean() - CELEBA_TRIANGLE[k, 1]) < 1.5


def test_annotation_comes_before_detection_and_a_box_says_who_it_is():
    image, (box, marks) = Image.fromarray(np.random.default_rng(0).integers(0, 255, (250, 250, 3), dtype=np.uint8)), face(60, 70)
    def never(image): raise AssertionError("nobody needs to look")
    given, how = align_face(image, landmarks=marks, detect=never)
    assert how == "annotated"
    detect = lambda i: several(face(125, 128, 90), (box, marks))
    chosen, how = align_face(image, box=box, detect=detect)
    assert how == "detected" and np.array_equal(np.asarray(chosen), np.asarray(given))
    assert not np.array_equal(np.asarray(align_face(image, detect=detect)[0]), np.asarray(given))
    assert align_face(image, detect=lambda i: several(face(15, 15, 20)))[1] == "centre"          # a stranger in the corner is nobody


def test_the_middle_lies_where_faces_lie():
    for size, box in [((250, 250), None), ((400, 300), None), ((250, 250), (78, 66, 92, 122))]:
        x, y, w, h = central_box(size) if box is None else box
        matrix = middle_similarity(size, box)
        X, Y, W, H = template_box()
        assert move_points(matrix, (x + w/2, y + h/2)) == pytest.approx((X + W/2, Y + H/2))
        assert np.linalg.det(matrix[:, :2])*w*h == pytest.approx(W*H) and matrix[0, 1] == matrix[1, 0] == 0
    drift = celeba_similarity(face(125, 127, 90)[1]) - middle_similarity((250, 250))
    assert np.abs(drift @ (125, 125, 1)).max() < 20        # a face in the middle and the middle itself come to nearly one place


def test_table_counts_and_finds_again(table, cache):
    detect = Stub(table, without=(3, 20))
    got = aligned(table, detect=detect)
    assert (got.frame, len(got), got.name) == ("aligned", 24, f"{table.name}, aligned") and got.boxes is got.landmarks is None
    assert all(np.array_equal(getattr(got, k), getattr(table, k)) for k in ("labels", "identity", "split"))
    assert all(Image.open(p).size == CELEBA_SIZE for p in got.paths) and [p.parent.name for p in got.paths].count("centre") == 2
    parts = ", ".join(f"{sum(table.split[i] == s for i in (3, 20))} {s}" for s in ("train", "valid", "test"))
    assert "22 faces detected, 0 by annotated landmarks; no face found in 2" in got.notes[-1]
    assert f"({parts}): 2 show the middle of the picture, 0 are left out" in got.notes[-1]
    assert detect.calls == 24
    part = aligned(table.take([20, 5, 3]), detect=detect)
    assert detect.calls == 24 and part.paths == [got.paths[i] for i in (20, 5, 3)]
    assert pixel_store(got.paths, (109, 89)).ok.all()
    assert aligned(got, detect=detect) is got


def test_goes_on_where_it_stopped(table, cache):
    class Stop(Exception): pass
    detect = Stub(table); whole = aligned(table, detect=detect)
    for p in whole.paths: p.unlink()
    class Dies(Stub):
        def __call__(self, image):
            if self.calls == 10: raise Stop
            return super().__call__(image)
    with pytest.raises(Stop): aligned(table, detect=Dies(table))
    detect.calls = 0
    assert aligned(table, detect=detect).paths == whole.paths and detect.calls == 14
    assert not [p for p in cache.rglob("*.tmp")]


def test_a_moved_data_set_is_found_again(table, cache, tmp_path_factory):
    import shutil
    detect = Stub(table); first = aligned(table, detect=detect)
    other = tmp_path_factory.mktemp("moved")
    paths = [other/f"{i}"/p.name for i, p in enumerate(table.paths)]
    for a, b in zip(table.paths, paths): b.parent.mkdir(); shutil.copy(a, b)
    assert aligned(replace(table, paths=paths), detect=detect).paths == first.paths and detect.calls == 24
    Image.new("RGB", (250, 250), "red").save(paths[0])
    assert aligned(replace(table, paths=paths), detect=detect).paths[0] != first.paths[0] and detect.calls == 25     # another picture


def test_test_pictures_are_never_dropped(table):
    train, test = (int(np.flatnonzero(table.split == s)[0]) for s in ("train", "test"))
    detect = Stub(table, without=(train, test))
    got = aligned(table, "skip", detect)
    assert len(got) == len(table) - 1 and (got.split == "test").sum() == (table.split == "test").sum()
    assert "1 show the middle of the picture, 1 are left out" in got.notes[-1]
    with pytest.raises(DataError, match="no face found in 2 pictures") as e: aligned(table, "raise", detect)
    assert sorted(e.value.problems) == sorted(str(table.paths[i]) for i in (train, test))
    with pytest.raises(ValueError, match="on_missing must be"): aligned(table, "drop", detect)


def test_without_a_detector(table):
    got = centred(table)
    assert got.frame == "aligned" and got.name.endswith(", centred") and "no face was looked for" in got.notes[-1]
    assert not set(got.paths) & set(aligned(table, detect=Stub(table)).paths)
    assert centred(replace(table, boxes=np.full((24, 4), 20.))).paths == got.paths       # no annotation is used


def test_faults_are_listed_together(table, tmp_path):
    (tmp_path/"a.jpg").write_text("<html>"); (tmp_path/"b.jpg").touch()
    broken = replace(table.take(range(4)), paths=[tmp_path/"a.jpg", table.paths[1], tmp_path/"b.jpg", tmp_path/"c.jpg"])
    with pytest.raises(DataError, match="3 pictures cannot be aligned") as e: aligned(broken, detect=Stub(table))
    for problem, what in zip(e.value.problems, ("web page", "is empty", "no such file"), strict=True): assert what in problem
    one_point = replace(table.take([0]), landmarks=np.ones((1, 5, 2)))
    with pytest.raises(DataError, match="1 pictures cannot be aligned") as e: aligned(one_point, detect=Stub(table))
    assert "both eyes lie on one point" in e.value.problems[0]
    with pytest.raises(DataError, match="boxes of persons"): aligned(replace(table, frame="box"), detect=Stub(table))


@pytest.mark.skipif(find_spec("facenet_pytorch") is None, reason="facenet-pytorch is not installed")
def test_with_the_real_detector(table):
    "MTCNN on drawn photographs: whatever it finds comes to the template, whatever it misses is counted"
    got = aligned(table)
    found = [p.parent.name for p in got.paths].count("detected")
    assert f"{found} faces detected" in got.notes[-1] and f"no face found in {24 - found}" in got.notes[-1] and found > 0
    moved = [detect_faces(read_image(p)) for p in got.paths if p.parent.name == "detected"]
    again = [choose_face(faces, CELEBA_SIZE, "train", template_box()) for faces in moved]
    eyes = [f.landmarks[:2] for f in again if f is not None]
    assert len(eyes) > found/2 and np.abs(np.median(eyes, 0) - CELEBA_TEMPLATE[:2]).max() < 4
