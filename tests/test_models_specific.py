"General to specific: VGG-16 with pairs against a literal transcription, inheritance, the joined network, chains of runs, faces of a photograph"
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from symbiosis_nb import combine
from symbiosis_nb.core import DataError
from symbiosis_nb.data import crops
from symbiosis_nb.data.loaders import Augment, Field, transform
from symbiosis_nb.data.sources import open_faces
from symbiosis_nb.data.loaders import PATCHES
from symbiosis_nb.data.parts import held_out
from symbiosis_nb.inputs import NO_FACE, detected_faces, limit_table, resolve, square
from symbiosis_nb.jobs import Job, job_of
from symbiosis_nb.learner import Checkpoint, attribute_learner, split_groups
from symbiosis_nb.losses import two_way_softmax
from symbiosis_nb.methods import Build, Recipe, get_method, make_profile
from symbiosis_nb.models.backbones import backbone, n_parameters
from symbiosis_nb.models.specific import Joined, JointNet
from symbiosis_nb.plan import pieces
from symbiosis_nb.runs import Predictor, Run, one_attribute, run
from symbiosis_nb.vocab import CELEBA


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1); torch.manual_seed(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SYMBIOSIS_CACHE", str(tmp_path_factory.mktemp("cache"))); m.setenv("SYMBIOSIS_QUIET", "1")
        yield open_faces(profile="smoke"), tmp_path_factory.mktemp("runs")


# ---- the network
def thin_vgg(n=4): return JointNet(backbone("vgg16", width=1/16), n, (64, 64), hidden=16).double().eval()


def literal_vgg16(net, x):
    convs = [m for m in net.backbone.modules() if isinstance(m, nn.Conv2d)]
    for i, c in enumerate(convs):
        x = F.conv2d(x, c.weight, c.bias, padding=1).clamp(min=0)
        if i in (1, 3, 6, 9, 12): x = F.max_pool2d(x, 2)
    x = x.reshape(len(x), -1)
    for fc in (net.head.fc6, net.head.fc7): x = (x @ fc.weight.T + fc.bias).clamp(min=0)
    return x @ net.head.fc8.weight.T + net.head.fc8.bias   # attribute t: outputs 2t (absent) and 2t + 1 (present)


def test_vgg16_literal():
    net, x = thin_vgg(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    z = literal_vgg16(net, x)
    torch.testing.assert_close(net.pairs(x).flatten(1), z)
    torch.testing.assert_close(net(x).sigmoid(), torch.stack([z[:, 2*t:2*t + 2].softmax(1)[:, 1] for t in range(4)], 1))
    y = torch.tensor([[0, 1, 1, 0], [1, 0, float("nan"), 1]])
    want = sum(-(z[b, 2*t:2*t + 2].log_softmax(0)[int(y[b, t])]) for b in range(2) for t in range(4) if not y[b, t].isnan())/2
    torch.testing.assert_close(net.loss(net(x), y).double(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net.loss(net(x), y), two_way_softmax(net.pairs(x).flatten(1), y))


def test_parameter_oracles():
    with torch.device("meta"):
        assert n_parameters(JointNet(backbone("vgg16"), 40, (224, 224))) == 134_588_304
        assert n_parameters(JointNet(backbone("vgg16"), 1, (224, 224))) == 134_268_738
        assert n_parameters(backbone("vgg16")) == 14_714_688


def test_rates_are_those_of_the_paper():
    "1 for all convolutions, 3, 5, 8 for fc6, fc7, fc8 (general_to_specific, 4); a trunk with one layer behind it has 1 and 8"
    net, recipe = thin_vgg(), get_method("g2s_1").recipe
    from symbiosis_nb.learner import _group_rates, _of_trunk
    for net, after in ((thin_vgg(), [3, 5, 8]), (JointNet(backbone("small"), 3), [8])):
        groups, own = split_groups(net), net.backbone.param_groups()
        assert [len(g) for g in groups] == [*map(len, own), *[2]*len(after)]
        rates = _group_rates(recipe, len(groups), _of_trunk(net, groups))
        np.testing.assert_allclose(rates, [1e-4]*len(own) + [1e-4*f for f in after])
    np.testing.assert_allclose([recipe.lr*recipe.schedule(p) for p in (0, 1/12, 1/3, 1)], [1e-4, 7.071e-5, 4.472e-5, 2.774e-5], rtol=1e-3)
    assert (recipe.bs, recipe.mom, recipe.wd, recipe.optimizer) == (128, .9, 5e-4, "sgd")


def test_sgd_has_its_momentum():
    "The recipe's momentum reaches the optimiser: two steps against the formula"
    from symbiosis_nb.learner import OPTIMIZERS
    from functools import partial
    p = nn.Parameter(torch.ones(1)); opt = partial(OPTIMIZERS["sgd"], mom=.9)([p], lr=.1, wd=0.)
    for _ in range(2): p.grad = torch.ones(1); opt.step()
    torch.testing.assert_close(p.data, torch.tensor([1 - .1 - .1*1.9]))


# ---- inheritance
def test_every_attribute_is_inherited_exactly():
    joint, x = thin_vgg(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for t in range(4):
        one = thin_vgg(1); one.load_state_dict(one.inherit(joint.state_dict(), [t]))
        torch.testing.assert_close(one(x)[:, 0], joint(x)[:, t])
    fresh = thin_vgg(1); before = fresh.head.fc8.weight.clone()
    fresh.load_state_dict(fresh.inherit(joint.state_dict(), [2], rows=False), strict=False)
    assert torch.equal(fresh.head.fc8.weight, before) and torch.equal(fresh.head.fc7.weight, joint.head.fc7.weight)


def test_joined_is_the_single_networks():
    make = lambda n: JointNet(backbone("small", width=.25), n).double().eval()
    nets = {t: (make(1), s) for t, s in enumerate("gaeg")}
    joined, x = Joined(nets, 4), torch.randn(3, 3, 3, 32, 32, dtype=torch.float64)
    assert joined.schemes == ("a", "e", "g")
    for t, (net, s) in nets.items(): torch.testing.assert_close(joined(x)[:, t], net(x[:, "aeg".index(s)])[:, 0])
    with pytest.raises(ValueError, match="1 attributes have no network"): Joined({t: nets[t] for t in range(3)}, 4)


# ---- crops as inputs
def test_training_patches_stay_inside_the_margin():
    f = Field("image", None, crop=(224, 224)); x = torch.zeros(64, 3, 240, 240, dtype=torch.uint8)
    x[:, 0] = torch.arange(240)[None, :, None]; x[:, 1] = torch.arange(240)[None, None]
    still = replace(PATCHES, flip=0.)
    torch.manual_seed(0); rows = transform(f, x, still.draw(64))
    from symbiosis_nb.data.loaders import MEAN, STD
    pixel = (rows*STD[:, None, None] + MEAN[:, None, None])*255
    top = pixel[:, 0, 0, 0]
    assert rows.shape == (64, 3, 224, 224) and top.min() >= -.01 and top.max() <= 16.01 and top.std() > 2
    torch.testing.assert_close(pixel[:, 0, -1, 0] - top, torch.full((64,), 223.), atol=.05, rtol=0)
    centre = (transform(f, x, None)*STD[:, None, None] + MEAN[:, None, None])*255
    assert round(centre[0, 0, 0, 0].item()) == round(centre[0, 1, 0, 0].item()) == 8   # 240 -> the middle 224


@pytest.mark.parametrize("scheme", "aeg")
def test_stored_crops_are_those_of_equation_3(scheme, data):
    table, _ = data
    m = get_method("g2s_1")
    job = Job(m, table, resolve(make_profile("smoke"), m), 0, options=dict(scheme=scheme))
    store = job.need.pictures(job)
    image = Image.open(table.paths[3]).convert("RGB")
    M, O = crops.SCHEMES[scheme]; X, Y, W, H = crops.template_box(image.size)
    want = crops.crop_square(image, X - ((1 + M)*H - W)/2, Y + (2*O - M)*H/2, (1 + M)*H, 34)
    assert np.array_equal(store[[3]][0].numpy(), np.asarray(want))
    assert job.profile.size == square((40, 32)) == (32, 32) and square((224, 224)) == (224, 224)


def test_detection_drops_training_images_and_falls_back_on_test(data, monkeypatch):
    table, _ = data
    table = limit_table(table, 12); box = np.array([[40, 60, 90, 110.]])
    table = replace(table, frame="whole", boxes=np.repeat(box, len(table), 0), name=f"{table.name}, boxed")
    found = crops.Faces(box + 1, np.array([[(60, 100), (110, 105), (85, 130), (65, 150), (105, 152.)]]), np.ones(1))
    calls = iter(range(10**6)); monkeypatch.setattr(crops, "detect_faces", lambda image: crops.NO_FACES if next(calls) % 2 else found)
    m = get_method("g2s_1")
    job = Job(m, table, resolve(make_profile("smoke"), m), 0, options=dict(faces="detected"))
    store = job.need.pictures(job)
    odd = np.arange(len(table)) % 2 == 1
    assert np.array_equal(store.ok, ~odd | (table.split == "test"))
    assert all(NO_FACE in p for p in store.problems)
    assert not detected_faces(table).ok[odd & (table.split == "train")].any() and next(calls) == len(table)   # looked at once


# ---- chains
def smoke(name, data, **kwargs):
    table, out = data
    return run(name, table, "smoke", out=kwargs.pop("out", out), precision="float32", **kwargs)


def test_chain_gathers_columns(data):
    table, out = data
    r, joint = smoke("g2s_123", data), smoke("g2s_1", data)
    names = ("Eyeglasses", "Male")
    assert tuple(r.done["networks"]) == names and r.done["joint"] == joint.folder.name and r.done["crops"] == dict(Eyeglasses="g", Male="c")
    assert "38 of 40" in r.done["note"]
    for t, n in enumerate(table.names):
        column = Run(out/r.done["networks"][n]).arrays["test_selected"][:, 0] if n in names else joint.arrays["test_selected"][:, t]
        assert np.array_equal(r.arrays["test_selected"][:, t], column)
    for n in names:
        third = Run(out/r.done["networks"][n]); second = Run(out/third.config["start"])
        assert second.config["start"] == joint.folder.name and third.config["attributes"] == second.config["attributes"] == [n]
        assert third.config["options"] == dict(scheme=r.done["crops"][n]) and second.config["options"] == {}
    assert r.done["cost"]["training_seconds"] > joint.done["cost"]["training_seconds"]


def test_a_chain_without_the_joint_step_begins_at_its_start(data):
    "`start=` reaches the first network of every attribute; it stood in the chain's name and reached none"
    table, out = data
    first = smoke("g2s_1", data)
    planned = pieces(job_of("g2s_2", table, "smoke", out=out, precision="float32", start=first.folder))
    plain, begun = smoke("g2s_2", data), smoke("g2s_2", data, start=first.folder)
    for n, name in begun.done["networks"].items():
        assert Run(out/name).config["start"] == first.folder.name and name != plain.done["networks"][n]
    assert {Path(p.key).name for p in planned if p.kind == "attributes"} >= set(begun.done["networks"].values())


def test_chains_share_their_steps(data):
    _, out = data
    smoke("g2s_123", data)
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/done.json")}
    r = smoke("g2s_12", data)
    after = {p for p in out.glob("*/done.json")} - set(before)
    assert after <= {r.folder/"done.json"} and all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert set(r.done["crops"].values()) == {"a"}


def test_interrupted_chain_goes_on_to_the_same_numbers(data, tmp_path, monkeypatch):
    whole = smoke("g2s_123", data)
    after, done = Checkpoint.after_epoch, []
    def cut(self):
        after(self); done.append(1)
        if len(done) == 3: raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, "after_epoch", cut)
    with pytest.raises(KeyboardInterrupt): smoke("g2s_123", data, out=tmp_path)
    assert len(list(tmp_path.glob("*/done.json"))) == 2   # step 1, and step 2 of the first attribute; its step 3 was cut off
    again = smoke("g2s_123", data, out=tmp_path)
    assert again.folder.name == whole.folder.name and len(done) == 5
    for k in ("test_last", "test_selected", "valid_selected"): assert np.array_equal(again.arrays[k], whole.arrays[k])


def test_other_combinations_and_options(data):
    _, out = data
    one = ("Eyeglasses",)
    starts = {}
    for name in ("g2s_2", "g2s_3", "g2s_13", "g2s_23"):
        r = smoke(name, data, attributes=one); last = Run(out/r.done["networks"]["Eyeglasses"])
        chain = [last]
        while "start" in chain[-1].config: chain.append(Run(out/chain[-1].config["start"]))
        starts[name] = [f"{c.config['method']}:{c.config['options'].get('scheme', 'a')}" for c in chain[::-1]]
    assert starts == dict(g2s_2=["g2s_one:a"], g2s_3=["g2s_one:g"], g2s_13=["g2s_1:a", "g2s_one:g"], g2s_23=["g2s_one:a", "g2s_one:g"])
    assert smoke("g2s_3", data, attributes=one, options=dict(schemes=dict(Eyeglasses="e"))).done["crops"] == dict(Eyeglasses="e")
    with pytest.raises(DataError, match="no attribute Spectacles"): smoke("g2s_12", data, attributes=("Spectacles",))


def test_search_takes_the_best_crop_on_validation(data):
    _, out = data
    r = smoke("g2s_13", data, attributes=("Male",), options=dict(schemes="search"))
    tried = [Run(p.parent) for p in out.glob("g2s_one*/done.json")]
    tried = [t for t in tried if t.config["attributes"] == ["Male"] and t.config.get("start") == r.done["joint"] and len(t.config["options"]) <= 1]
    own = {t.config["options"].get("scheme", "a"): combine.valid_score(t) for t in tried}
    assert len(own) == 8 and own[r.done["crops"]["Male"]] == max(own.values())
    seconds = [t.done["cost"]["training_seconds"] for t in [*tried, Run(out/r.done["joint"])]]
    assert r.done["cost"]["training_seconds"] == pytest.approx(sum(seconds)), "all that was trained for it, not the winner alone"


def test_a_search_without_a_validation_part_is_refused(data):
    table, _ = data
    with pytest.raises(DataError, match="best on validation, and .* has no validation part"):
        smoke("g2s_13", (held_out(table, 0.), data[1]), attributes=("Male",), options=dict(schemes="search"))


@pytest.mark.slow
def test_networks_in_other_processes_give_the_same_numbers(data, tmp_path):
    pytest.importorskip("submitit")
    here, there = smoke("g2s_12", data), smoke("g2s_12", data, out=tmp_path, executor="local")
    assert here.folder.name == there.folder.name
    assert np.array_equal(here.arrays["test_selected"], there.arrays["test_selected"])


def test_predictor_reads_every_crop_once(data, monkeypatch):
    table, _ = data
    r = smoke("g2s_123", data)
    test = [p for p, s in zip(table.paths, table.split) if s == "test"][:3]
    ask, cuts = Predictor.load(r.folder), []
    monkeypatch.setattr(crops, "crop_square", (lambda f: lambda *a: cuts.append(1) or f(*a))(crops.crop_square))
    asked = ask(test, aligned=True).values.T
    np.testing.assert_allclose(asked, 1/(1 + np.exp(-r.predictions()[0][:3])), atol=1e-4)
    assert len(cuts) == 3*3   # three pictures, crops a, c and g
    with pytest.raises(ValueError, match="ONNX cannot cut"): ask.to_onnx("x.onnx")


# ---- any photograph
def photograph(table, at=((30, 40), (260, 70))):
    "Two aligned pictures pasted into a large one, and where their faces are"
    scene = Image.new("RGB", (520, 340), (90, 110, 130))
    marks = []
    for (x, y), path in zip(at, table.paths):
        scene.paste(Image.open(path).convert("RGB"), (x, y)); marks.append(crops.CELEBA_TEMPLATE + (x, y))
    boxes = np.array([[x + 46, y + 67, 84, 114.] for x, y in at])
    return scene, crops.Faces(boxes, np.array(marks), np.array([.99, .98]))


@pytest.mark.parametrize("name", ["original", "g2s_1", "g2s_123"])
def test_faces_of_a_photograph(name, data, monkeypatch):
    table, _ = data
    r = smoke(name, data); scene, found = photograph(table)
    monkeypatch.setattr(crops, "detect_faces", lambda image: found if image.width > 178 else crops.NO_FACES)
    ask = Predictor.load(r.folder)
    rows = ask.faces(scene)
    assert list(rows.columns[:5]) == ["x", "y", "width", "height", "score"] and len(rows) == 2
    np.testing.assert_allclose(rows[["x", "y", "width", "height"]].values, found.boxes)
    np.testing.assert_allclose(rows[list(table.names)].values, ask(table.paths[:2], aligned=True).values.T, atol=.03)   # aligned again: the same picture up to resampling
    with pytest.raises(DataError, match="no face found"): ask.faces(Image.new("RGB", (100, 100)))


def test_photographs_for_runs_on_whole_pictures(data, monkeypatch):
    table, out = data
    wild = replace(table, frame="whole", boxes=np.repeat([[46, 67, 84, 114.]], len(table), 0), name="synthetic, as taken")
    r = run("g2s_1", wild, "smoke", out=out)
    scene, found = photograph(table)
    ask = Predictor.load(r.folder)
    monkeypatch.setattr(crops, "detect_faces", lambda image: found)
    nearest = ask(scene).iloc[:, 0]   # the middle of the picture is nearer to the second face
    np.testing.assert_allclose(nearest.values, ask.faces(scene)[list(table.names)].values[1], atol=1e-6)
    monkeypatch.setattr(crops, "detect_faces", lambda image: crops.NO_FACES)
    with pytest.raises(DataError, match="no face found"): ask(scene)
