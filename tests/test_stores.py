"What lies on disk at CelebA's size: pixels once, what is computed beside them compressed; and what a kill leaves"
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from symbiosis_nb.core import DataError
from symbiosis_nb.data.loaders import Augment, Field, transform
from symbiosis_nb.data.pixels import DRAWN, SOFT, array_store
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.models.pooling import fit_masks
from symbiosis_nb.vocab import CELEBA, FACE7, HELEN

SPLITS = (162_770, 19_867, 19_962)   # of CelebA


def soft_masks(n, seed=0):
    "Probabilities of seven regions with soft borders, as bytes"
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(n, 7, 6, 5)).astype(np.float32))*6
    return (torch.nn.functional.interpolate(coarse, (40, 32), mode="bicubic").softmax(1)*255).round().byte().numpy()


def test_masks_come_back_as_they_were_at_a_fraction_of_the_room(tmp_path):
    "So that every layer sees the same after its own pooling, mirrored or not"
    soft = soft_masks(20)
    store = array_store("masks", "k", 20, soft.shape[1:], lambda rows: soft[rows], codec=SOFT, root=tmp_path)
    rows = [3, 19, 3, 0]
    assert torch.equal(store[rows], torch.from_numpy(soft[rows])) and store.shape == (7, 40, 32) and len(store) == 20
    assert (tmp_path/"masks.zip-k"/"data.bin").stat().st_size < .5*soft.nbytes
    how = Augment(flip=1.).draw(4)
    packed, plain = (fit_masks(transform(Field("maps", s, FACE7), Field("maps", s, FACE7).gather(rows), how), (5, 4)) for s in (store, soft))
    assert torch.equal(packed, plain)


KILLED = """
import os, sys, numpy as np
from symbiosis_nb.data.pixels import SOFT, DRAWN, array_store
codec, root, stop = {"zip": SOFT, "jpeg": DRAWN}[sys.argv[1]], sys.argv[2], int(sys.argv[3])
def make(rows):
    for r in rows:
        if r == stop: os.kill(os.getpid(), 9)
        open(os.path.join(root, "made"), "a").write(f"{r} ")
        yield np.full((12, 10, 3), 10*r, np.uint8)
array_store("x", "k", 9, (12, 10, 3), make, chunk=2, root=root, codec=codec)
"""


@pytest.mark.parametrize("codec", [SOFT, DRAWN], ids=lambda c: c.name)
def test_a_compressed_store_survives_kills(codec, tmp_path):
    "Killed twice by the system, then finished: every row is made once, but for the one that was under way, and is right"
    (tmp_path/"made").touch()
    for stop in (3, 8):
        done = subprocess.run([sys.executable, "-c", KILLED, codec.name, str(tmp_path), str(stop)], env=os.environ | dict(SYMBIOSIS_QUIET="1"))
        assert done.returncode == -signal.SIGKILL and not (tmp_path/f"x.{codec.name}-k"/"meta.json").exists()
    made = []
    def make(rows):
        for r in rows: made.append(int(r)); yield np.full((12, 10, 3), 10*r, np.uint8)
    store = array_store("x", "k", 9, (12, 10, 3), make, chunk=2, root=tmp_path, codec=codec)
    assert (tmp_path/"made").read_text().split() == list("01234567") and made == [8]
    assert all(np.abs(store[[r]].numpy().astype(int) - 10*r).max() <= 1 for r in range(9)) and store.ok.all()


def test_opening_reads_no_row_and_damage_is_said(tmp_path):
    soft = soft_masks(4)
    def never(rows): raise AssertionError("a finished store is made again")
    folder = array_store("masks", "k", 4, soft.shape[1:], lambda rows: soft[rows], codec=SOFT, root=tmp_path).folder
    array_store("masks", "k", 4, soft.shape[1:], never, codec=SOFT, root=tmp_path)
    os.truncate(folder/"data.bin", 20)
    with pytest.raises(DataError, match="is damaged"): array_store("masks", "k", 4, soft.shape[1:], never, codec=SOFT, root=tmp_path)


def test_bad_rows_are_kept_apart(tmp_path):
    make = lambda rows: (DataError("no such picture") if r else np.full((1, 2, 2), 7, np.uint8) for r in rows)
    store = array_store("x", "k", 2, (1, 2, 2), make, codec=SOFT, root=tmp_path)
    assert store.ok.tolist() == [True, False] and store.problems == ["row 1: no such picture"] and store[[0, 1]].sum() == 28
    none = array_store("x", "none", 2, (1, 2, 2), lambda rows: [DataError("no such picture")]*len(rows), codec=SOFT, root=tmp_path)
    assert not none.ok.any() and none[[0]].sum() == 0


def test_drawings_as_jpeg_are_a_level_or_so_off():
    "Synthetic abstraction images of paper size: what training sees, beside what was drawn"
    from symbiosis_nb.data.sources import open_parsing
    from symbiosis_nb.needs.abstraction import frame_view, target_store, to_regions
    table = to_regions(open_parsing(profile="smoke"), HELEN)
    drawn = target_store(table, (224, 224), frame_view(table, (224, 224), "celeba"))[range(8)].numpy()
    kept = [DRAWN.encode(d) for d in drawn]
    off = np.abs(np.stack([DRAWN.decode(k, np.uint8, None) for k in kept]).astype(int) - drawn)
    assert off.mean() < 1 and np.percentile(off, 99) <= 10
    assert np.mean([len(k) for k in kept]) < DRAWN.share*drawn[0].nbytes


def all_stores(table, profile) -> dict:
    "What the plan counts for every row, shared stores once"
    from symbiosis_nb.data.crops import SCHEMES
    from symbiosis_nb.methods import METHODS
    from symbiosis_nb.plan import job_of, stores
    found = {}
    for name, m in METHODS.items():
        options = [dict(scheme=s) for s in SCHEMES] if name == "g2s_1" else [None]
        if not m.parts and not m.chain:   # averages and chains are made of the others
            for o in options: found |= stores(job_of(name, table, profile, weights="scratch", options=o))
    return found


@pytest.mark.parametrize("profile", ["paper", "onecycle"])
def test_all_rows_on_aligned_celeba_need_at_most_thirty_gigabytes(profile, monkeypatch):
    from symbiosis_nb import plan
    monkeypatch.setattr(plan, "has_pixels", lambda *args: False)
    n = sum(SPLITS)
    table = AttributeTable("made up", CELEBA, ["none.jpg"]*n, np.zeros((n, 40)), np.ones((n, 40)), np.repeat(["train", "valid", "test"], SPLITS),
                           landmarks=np.ones((n, 5, 2)), frame="aligned")
    found = all_stores(table, profile)
    assert found["made up, whole, 218 x 178"] == n*218*178*3 and len(found) == 3   # pixels once, masks, abstraction images
    assert sum(found.values()) < 30e9


@pytest.mark.slow
@pytest.mark.parametrize("method, kind, kept", [("ssp", "masks.zip", {}), ("dual_path", "abstraction.jpeg", dict(kept="jpeg"))])
def test_a_run_of_real_size_keeps_them_compressed_and_a_small_one_does_not(method, kind, kept, tmp_path, monkeypatch):
    "Also where the picture's sides cannot be halved as often as the generator does it"
    from symbiosis_nb.data.sources import open_faces, open_parsing
    from symbiosis_nb.recipes import PROFILES
    from symbiosis_nb.runs import run
    faces, parsing = open_faces(profile="smoke"), open_parsing(profile="smoke")
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path))
    small = PROFILES["smoke"]
    how = dict(size=(44, 36), backbone="small", width=.25, weights="scratch", stride=None, limit=24, parser_recipe=small.parser_recipe, recipe=small.recipe,
               generator=small.generator.__class__(**{**vars(small.generator), "n_down": 3}), out=tmp_path, parsing=parsing)
    r = run(method, faces, "onecycle", **how)
    assert np.isfinite(r.arrays["test_selected"]).all() and r.config["view"] == kept
    assert {p.name.split("-")[0] for p in (tmp_path/"stores").iterdir()} & {kind, kind.split(".")[0]} == {kind}
    run(method, faces, "smoke", **{**how, "size": (40, 32)})
    assert list((tmp_path/"stores").glob(f"{kind.split('.')[0]}-*"))


@pytest.fixture(scope="module")
def faces():
    from symbiosis_nb.data.sources import open_faces
    return open_faces(profile="smoke")


@pytest.mark.parametrize("size", [(224, 224), (160, 128), (112, 92), (80, 64), (40, 32), (300, 60)])
def test_a_sampled_picture_of_any_size_is_decode_and_resize(faces, size, tmp_path):
    "But for one grey level of rounding, because what becomes smaller is averaged first; skipping pixels makes another picture"
    from symbiosis_nb.data.pixels import SizedStore, pixel_store
    few = faces.paths[:6]
    native, own = pixel_store(few, (218, 178), root=tmp_path), pixel_store(few, size, root=tmp_path)[range(6)].float()
    off = lambda **how: (SizedStore(native, size, **how)[range(6)].float() - own).abs()
    assert off().max() <= 1
    if min(size) < 100: assert off(smooth=False).mean() > 1


@pytest.mark.parametrize("method, options", [("avg_pool", {}), ("g2s_1", dict(scheme="e")), ("g2s_1", dict(scheme="g"))])
def test_one_store_for_small_pictures_too(faces, method, options, monkeypatch, tmp_path):
    "Where it is asked for: the same batches as from a store of their own, moved or not, and a run with another name"
    from dataclasses import replace
    from symbiosis_nb.data.loaders import PATCHES
    from symbiosis_nb.plan import job_of, stores
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path))
    job = job_of(method, faces, "smoke", size=(64, 64), options=options, native=True)
    own = replace(job, profile=replace(job.profile, native=None))
    assert job.config()["native"] == [218, 178] and "native" not in own.config() and job.folder != own.folder
    assert list(stores(job)) == [f"{faces.name}, whole, 218 x 178"]
    a, b = (j.need.fields(j, j.need.pictures(j))[0] for j in (job, own))
    torch.manual_seed(0); how = PATCHES.draw(3)
    grey = lambda how: ((transform(a, a.gather([0, 1, 2]), how) - transform(b, b.gather([0, 1, 2]), how)).abs()*.225*255).mean()
    most = .3 if method == "avg_pool" else 3   # a crop is averaged by whole factors, then sampled
    assert grey(None) < most and grey(how) < most + 1.2


@pytest.mark.parametrize("method, kind", [("ssp", "parser"), ("dual_path", "generator")])
def test_a_helper_of_other_weights_makes_its_own_pictures(method, kind, tmp_path, monkeypatch):
    "Trained elsewhere in another precision it has the same name: its masks were those of the first, and not of the network kept beside the run"
    from safetensors.torch import load_file, save_file
    from symbiosis_nb.data.sources import open_faces, open_parsing
    from symbiosis_nb.inputs import prepare
    from symbiosis_nb.jobs import make_job
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    job = make_job(method, open_faces(profile="smoke"), "smoke", out=tmp_path/"runs", parsing=open_parsing(profile="smoke"))
    made = lambda: next(f.store for f in prepare(job).fields if f.kind != "image")
    first, again = made(), made()
    weights, = (tmp_path/"runs").glob(f"{kind}-*/model.safetensors")
    save_file({k: v*1.5 if v.is_floating_point() else v for k, v in load_file(weights).items()}, weights)
    other = made()
    assert first.digest == again.digest != other.digest and (first[[0]] != other[[0]]).any()
