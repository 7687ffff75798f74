"""Crops, alignment and detection (general_to_specific, 3)"""
import builtins
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from symbiosis_nb.data import crops
from symbiosis_nb.data.crops import (CELEBA_SIZE, CELEBA_TEMPLATE, NO_FACES, SCHEMES, Face, Faces, align_celeba, align_eyes, attribute_crops, celeba_similarity, central_box,
                                     choose_face, crop_assignment, crop_square, detect_faces, eye_rotation, face_crop, move_box, move_points, overlap, similarity, template_box, warp)
from symbiosis_nb.vocab import CELEBA

SAMPLE = Path(__file__).parents[1]/"data"/"real"/"celeba_10k"/"img_align_celeba"
needs_mtcnn = pytest.mark.skipif(find_spec("facenet_pytorch") is None, reason="facenet-pytorch is not installed")


def gradient(w, h):
    "A smooth picture whose red is x and whose green is y"
    y, x = np.mgrid[:h, :w]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8))

# ---- eq. 3 -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scheme, x0, y0, side", [("a", 85, 80, 120), ("b", 85, 92, 120), ("c", 79, 74, 132), ("d", 79, 62, 132), ("e", 79, 134, 132), ("f", 91, 86, 108),
                                                  ("g", 91, 74, 108), ("h", 91, 98, 108)])
def test_numeric_example(scheme, x0, y0, side):
    assert face_crop((100, 80, 90, 120), *SCHEMES[scheme]) == pytest.approx((x0, y0, side), abs=1e-9)


def test_equation_as_printed():
    rng = np.random.default_rng(0)
    for _ in range(100):
        X, Y, W, dH = rng.uniform(1, 100, 4); H = W + dH; M, O = rng.uniform(-.2, .6, 2)
        assert face_crop((X, Y, W, H), M, O) == pytest.approx((X - ((1 + M)*H - W)/2, Y + (2*O - M)*H/2, (1 + M)*H))
        assert face_crop((X, Y, H, W), M, O, side="height") == pytest.approx((X - ((1 + M)*W - H)/2, Y + (2*O - M)*W/2, (1 + M)*W))


def test_spans_in_face_heights():
    spans = dict(a=(0, 1), b=(.1, 1.1), c=(-.05, 1.05), d=(-.15, .95), e=(.45, 1.55), f=(.05, .95), g=(-.05, .85), h=(.15, 1.05))
    for k, (top, bottom) in spans.items():
        _, y0, side = face_crop((0, 0, 80, 100), *SCHEMES[k])
        assert (y0/100, (y0 + side)/100) == pytest.approx((top, bottom))


def test_many_boxes_at_once():
    boxes = np.array([[100, 80, 90, 120], [0, 0, 20, 10.]])
    x0, y0, side = face_crop(boxes, .1, .5)
    for i, box in enumerate(boxes): assert face_crop(box, .1, .5) == pytest.approx((x0[i], y0[i], side[i]))


def test_assignment_names_every_attribute():
    assignment = crop_assignment()
    assert tuple(assignment) == CELEBA.names and set(assignment.values()) == set("abcdefgh")
    with pytest.raises(KeyError): crop_assignment("nonsense")

# ---- pixels ------------------------------------------------------------------------------------------------------------------

def test_crop_square_against_padding_by_hand():
    image = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    padded = np.pad(image, ((9, 9), (9, 9), (0, 0)), mode="edge"); zeros = np.pad(image, ((9, 9), (9, 9), (0, 0)))
    for x0, y0, side in [(-9, -9, 12), (25, 15, 10), (3, -5, 25), (0, 0, 20), (-9, 5, 20)]:
        for border, source in dict(replicate=padded, zero=zeros).items():
            out = np.asarray(crop_square(Image.fromarray(image), x0, y0, side, side, border))
            np.testing.assert_array_equal(out, source[y0 + 9:y0 + 9 + side, x0 + 9:x0 + 9 + side])


def test_crop_square_from_fractional_corners():
    out = np.asarray(crop_square(gradient(100, 100), 10.5, 20.25, 40, 40)).astype(float)
    assert np.abs(out[:, 1:-1, 0] - (10.5 + np.arange(1, 39))).max() <= 1 and np.abs(out[1:-1, :, 1] - (20.25 + np.arange(1, 39))[:, None]).max() <= 1


def test_crop_far_outside_is_border():
    out = np.asarray(crop_square(gradient(10, 10), 100, 100, 5, 5))
    assert (out[..., 0] == 9).all() and (out[..., 1] == 9).all()
    assert not np.asarray(crop_square(gradient(10, 10), 100, 100, 5, 5, "zero")).any()


def test_crop_square_refuses_nonsense():
    with pytest.raises(ValueError, match="side"): crop_square(gradient(9, 9), 0, 0, 0, 4)
    with pytest.raises(ValueError, match="border"): crop_square(gradient(9, 9), 0, 0, 4, 4, "mirror")


def test_crop_keeps_the_mode():
    assert crop_square(Image.new("L", (9, 9), 5), -2, -2, 6, 4).mode == "L"


def test_warp_against_coordinates():
    "Red is x, green is y: after a similarity the colours tell where each pixel came from"
    turn = similarity([(0, 0), (100, 0)], [(20, 30), (110, 55)])
    out = np.asarray(warp(gradient(200, 200), turn, (120, 120))).astype(float)
    y, x = np.mgrid[30:100, 30:100]
    source = move_points(np.linalg.inv(np.vstack([turn, [0, 0, 1]]))[:2], np.stack([x, y], -1))
    inside = ((source > 1) & (source < 198)).all(-1)
    assert inside.sum() > 1000 and np.abs(out[30:100, 30:100, :2] - source)[inside].max() <= .51


def test_warp_reduces_without_aliasing():
    "A chequerboard of single pixels becomes grey, not noise; positions stay within half an output pixel"
    board = Image.fromarray(((np.indices((300, 300)).sum(0) % 2)*255).astype(np.uint8)).convert("RGB")
    small = similarity([(0, 0), (300, 0)], [(0, 0), (50, 0)])
    assert np.asarray(warp(board, small, (50, 50)))[5:-5, 5:-5].std() < 8
    out = np.asarray(warp(gradient(240, 240), small, (40, 40))).astype(float)
    assert np.abs(out[3:-3, 3:-3, 0] - 6*np.arange(3, 37)).max() < 3

# ---- alignment ---------------------------------------------------------------------------------------------------------------

def test_eyes_become_level_at_any_angle():
    for angle in np.linspace(-3, 3, 13):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        marks = (CELEBA_TEMPLATE - 90) @ turn.T + 90
        out = move_points(eye_rotation(marks), marks)
        assert out[0, 1] == pytest.approx(out[1, 1]) and out[0, 0] < out[1, 0]
        np.testing.assert_allclose(out[:2].mean(0), marks[:2].mean(0))
        np.testing.assert_allclose(out - out[0], CELEBA_TEMPLATE - CELEBA_TEMPLATE[0], atol=1e-9)   # a rotation, nothing else


def test_align_eyes_keeps_the_canvas():
    image, matrix = align_eyes(gradient(60, 50), [(10, 10), (30, 20), (20, 25), (12, 40), (30, 42)])
    assert image.size == (60, 50) and matrix.shape == (2, 3)
    box = move_box(matrix, (5, 5, 20, 30))
    assert box[2:].tolist() == pytest.approx([20, 30])                  # width and height are kept


@pytest.mark.parametrize("marks", [[(np.nan, 1)]*5, [(1, 1)]*5, [(1, 1)]*4, np.zeros((5, 3))])
def test_unusable_landmarks(marks):
    with pytest.raises(ValueError, match="landmarks|eyes"): eye_rotation(marks)
    with pytest.raises(ValueError): celeba_similarity(marks)


def test_similarity_recovers_what_made_it():
    rng = np.random.default_rng(2)
    for _ in range(20):
        p, angle, s, t = rng.uniform(0, 100, (5, 2)), rng.uniform(-3, 3), rng.uniform(.2, 4), rng.uniform(-50, 50, 2)
        turn = s*np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        np.testing.assert_allclose(similarity(p, p @ turn.T + t), np.column_stack([turn, t]), atol=1e-9)


PUBLISHED = [  # rows quoted in public: list_landmarks_celeba, list_landmarks_align_celeba
    ([165, 184, 244, 176, 196, 249, 194, 271, 266, 260], [69, 109, 106, 113, 77, 142, 73, 152, 108, 154]),
    ([140, 204, 220, 204, 168, 254, 146, 289, 226, 289], [69, 110, 107, 112, 81, 135, 70, 151, 108, 153])]

def test_celeba_transform_gives_the_published_landmarks():
    for wild, aligned in PUBLISHED:
        wild, aligned = (np.reshape(v, (5, 2)) for v in (wild, aligned))
        assert np.abs(move_points(celeba_similarity(wild), wild) - aligned).max() < .8


def test_the_least_squares_fit_keeps_the_middle_of_the_triangle():
    "So every published row tells the template: the middle of eyes and mouth is the same for all of them, up to rounding"
    rows = np.array([r for _, r in PUBLISHED] + [[76, 112, 104, 106, 108, 128, 74, 156, 98, 158], [72, 113, 108, 108, 101, 138, 71, 155, 101, 151],
        [66, 114, 112, 112, 86, 119, 71, 147, 104, 150], [71, 111, 106, 110, 94, 131, 74, 154, 102, 153], [70, 112, 108, 111, 85, 135, 72, 152, 104, 152],
        [71, 110, 106, 111, 84, 137, 73, 155, 104, 153]]).reshape(-1, 5, 2)
    middles = np.stack([rows[:, 0], rows[:, 1], rows[:, 3:].mean(1)], 1).mean(1)
    assert np.abs(middles - crops.CELEBA_TRIANGLE.mean(0)).max() < .8 and np.abs(middles.mean(0) - crops.CELEBA_TRIANGLE.mean(0)).max() < .25


def test_align_celeba_puts_the_eyes_where_they_belong():
    image = Image.new("RGB", (400, 500))
    wild = np.array([(165, 184), (244, 176), (196, 249), (194, 271), (266, 260.)])
    for x, y in wild[:2].astype(int): image.paste((255, 255, 255), (x - 6, y - 6, x + 7, y + 7))
    out = np.asarray(align_celeba(image, wild).convert("L")).astype(float)
    assert out.shape == CELEBA_SIZE[::-1]
    y, x = np.mgrid[:218, :178]
    for want, half in zip(move_points(celeba_similarity(wild), wild)[:2], (x < 89, x >= 89)):
        weight = out*half
        np.testing.assert_allclose([(weight*x).sum()/weight.sum(), (weight*y).sum()/weight.sum()], want, atol=.6)


def test_template_scales_with_the_image():
    np.testing.assert_allclose(template_box((356, 436)), 2*template_box())
    assert central_box((300, 100)).tolist() == [127.5, 27.5, 45, 45]

# ---- choosing and detecting ----------------------------------------------------------------------------------------------------

def faces(*boxes): return Faces(np.array(boxes, float).reshape(-1, 4), np.zeros((len(boxes), 5, 2)), np.ones(len(boxes)))

def test_overlap():
    assert overlap([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 5, 5]], (0, 0, 10, 10)).tolist() == pytest.approx([1, 1/3, 0])


def test_failure_rules():
    box, marks = (28, 28, 10, 12), np.ones((5, 2))
    assert choose_face(faces((0, 0, 9, 9), (30, 30, 9, 9)), (50, 50), "train", box).box.tolist() == [30, 30, 9, 9]
    for split in ("train", "valid"): assert choose_face(NO_FACES, (50, 50), split, box, marks) is None
    face = choose_face(NO_FACES, (50, 50), "test", box, marks)
    assert face.source == "annotated" and face.box.tolist() == list(box) and face.landmarks.tolist() == marks.tolist()
    lone = choose_face(NO_FACES, (250, 250), "test")
    assert lone.source == "central" and lone.landmarks is None and lone.box.tolist() == [68.75, 68.75, 112.5, 112.5]
    assert choose_face(NO_FACES, (250, 250), "test", np.full(4, np.nan), np.full((5, 2), np.nan)).source == "central"
    assert choose_face(faces((0, 0, 5, 5)), (50, 50), "train", box) is None                                # not this person
    assert choose_face(faces((0, 0, 30, 30), (90, 90, 60, 60)), (250, 250), "test").box.tolist() == [90, 90, 60, 60]  # no annotation: the middle one


def test_attribute_crops_without_landmarks_are_plain_crops():
    image, box = gradient(178, 218), template_box()
    out = attribute_crops(image, Face(box, None, "annotated"), "ae", 64)
    assert list(out) == ["a", "e"] and all(c.size == (64, 64) for c in out.values())
    np.testing.assert_array_equal(np.asarray(out["e"]), np.asarray(crop_square(image, *face_crop(box, .1, .5), 64)))


def test_border_and_side_reach_every_step():
    "Zeros also where turning uncovers the canvas; `side` is that of `face_crop`"
    white, box, marks = Image.new("RGB", (100, 100), "white"), (0, 0, 100, 100), np.array([(30, 30), (70, 60), (50, 60), (40, 80), (60, 80.)])
    turned = {b: np.asarray(attribute_crops(white, Face(box, marks, "annotated"), "a", 50, b)["a"]) for b in ("zero", "replicate")}
    assert (turned["zero"] == 0).any() and (turned["replicate"] == 255).all()
    image, wide = gradient(120, 120), (10, 20, 100, 60)
    for side in ("longer", "height"):
        out = attribute_crops(image, Face(wide, None, "annotated"), "a", 40, side=side)["a"]
        np.testing.assert_array_equal(np.asarray(out), np.asarray(crop_square(image, *face_crop(wide, 0, 0, side), 40)))


def test_missing_detector_is_named(monkeypatch):
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name == "facenet_pytorch": raise ImportError(name)
        return real(name, *args, **kwargs)
    crops._mtcnn.cache_clear(); monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install symbiosis_nb\[detect\]"): detect_faces(Image.new("RGB", (40, 40)))


@needs_mtcnn
def test_detector_weights_are_plain_tensors():
    "They are read with weights_only, so nothing is unpickled; and the package brings them along"
    import facenet_pytorch, torch
    for net in ("pnet", "rnet", "onet"):
        weights = torch.load(Path(facenet_pytorch.__file__).parent/"data"/f"{net}.pt", weights_only=True)
        assert all(isinstance(v, torch.Tensor) for v in weights.values())


@needs_mtcnn
def test_pictures_without_a_face():
    for image in (Image.new("RGB", (80, 60)), Image.new("L", (30, 30), 200), Image.new("RGB", (5, 90)), Image.new("RGB", (20, 20))):
        found = detect_faces(image)
        assert len(found) == 0 and found.boxes.shape == (0, 4) and found.landmarks.shape == (0, 5, 2)


@needs_mtcnn
@pytest.mark.data
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real sample is not here")
def test_detected_faces_agree_with_the_template():
    images = [Image.open(p).convert("RGB").resize(CELEBA_SIZE, Image.BICUBIC) for p in sorted(SAMPLE.glob("*.jpg"))[10:2010:100]]
    chosen = [choose_face(detect_faces(i), i.size, "train", template_box()) for i in images]
    found = [c for c in chosen if c is not None]
    assert len(found) >= 18
    assert np.abs(np.median([c.box for c in found], 0) - template_box()).max() < 8
    assert np.abs(np.median([c.landmarks for c in found], 0) - CELEBA_TEMPLATE).max() < 4
