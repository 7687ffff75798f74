"Runs survive what happens to runs: kill -9 at any moment, two processes at once, a full disk, rubbish in the folder."
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import picture_table, training
from symbiosis_nb import core
from symbiosis_nb.core import DataError
from symbiosis_nb.data import pixels
from symbiosis_nb.runs import FILES, Run, run

EPOCHS = "epochs=12"


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return Run(Path(out.strip().splitlines()[-1]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "An uninterrupted run"
    home = tmp_path_factory.mktemp("whole")
    return home, finished(training(home/"pictures", home/"runs", home/"cache", EPOCHS))


@pytest.mark.slow
def test_killed_at_random_moments_ends_in_the_same_numbers(whole, tmp_path):
    home, reference = whole
    moments, kills = random.Random(0), 0
    for attempt in range(12):
        process = training(home/"pictures", tmp_path/"runs", home/"cache", EPOCHS)
        deadline, seen = time.time() + 60, moments.randint(0, 9)
        log = lambda: len(list((tmp_path/"runs").glob("*/checkpoint.pt")))
        while not log() and process.poll() is None and time.time() < deadline: time.sleep(.02)
        time.sleep(.05*seen)
        if process.poll() is not None: break
        process.send_signal(signal.SIGKILL); process.wait(); kills += 1
        for folder in (tmp_path/"runs").glob("avg_pool*"):
            with pytest.raises(DataError): Run(folder)  # nothing half-written is read as finished
    again = finished(training(home/"pictures", tmp_path/"runs", home/"cache", EPOCHS))
    assert kills >= 1
    for key, value in reference.arrays.items(): assert np.array_equal(value, again.arrays[key], equal_nan=value.dtype.kind == "f"), key
    assert reference.log.drop(columns=[]).equals(again.log)
    assert not list(again.folder.glob("*.tmp")) and not (again.folder/"checkpoint.pt").exists()


@pytest.mark.slow
def test_two_processes_on_one_folder(whole, tmp_path):
    home, reference = whole
    both = [training(home/"pictures", tmp_path/"runs", tmp_path/"cache", EPOCHS) for _ in range(2)]
    first, second = [finished(p) for p in both]
    assert first.folder == second.folder and first.arrays.keys() == reference.arrays.keys()
    assert np.array_equal(first.arrays["test_last"], reference.arrays["test_last"])


def test_missing_file_is_not_finished(tmp_path):
    table = picture_table(tmp_path/"pictures")
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs")
    (r.folder/"scores.parquet").unlink()
    with pytest.raises(DataError, match="scores.parquet missing"): Run(r.folder)
    again = run("avg_pool", table, "smoke", out=tmp_path/"runs")
    assert again.folder == r.folder and (again.folder/"scores.parquet").is_file()


@pytest.mark.parametrize("kind", ["run", "parser", "generator"])
def test_a_folder_with_a_file_missing_is_made_under_its_lock(tmp_path, monkeypatch, kind):
    "done.json alone said that there was nothing to lock, and two processes trained into one folder"
    from symbiosis_nb import runs
    from symbiosis_nb.data.sources import open_parsing
    from symbiosis_nb.needs import abstraction, masks
    from symbiosis_nb.recipes import make_profile
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    held, (room, trains) = [], dict(run=(runs, "_make"), parser=(masks, "_train_parser"), generator=(abstraction, "_train_generator"))[kind]
    def train(*args, real=getattr(room, trains)):
        folder = next(a for a in args[::-1] if isinstance(a, Path)); held.append((folder/".holder").exists()); return real(*args)
    monkeypatch.setattr(room, trains, train)
    if kind == "run": ask, table = run, ("avg_pool", picture_table(tmp_path/"pictures"), "smoke")
    else: ask, table = (masks.parser_run, abstraction.generator_run)[kind == "generator"], (open_parsing(profile="smoke"), make_profile("smoke"))
    folder = ask(*table, out=tmp_path/"runs").folder
    (folder/"scores.parquet").unlink(); ask(*table, out=tmp_path/"runs"); ask(*table, out=tmp_path/"runs")
    assert held == [True, True] and (folder/"scores.parquet").is_file()


def test_every_setting_has_its_own_folder(tmp_path):
    table = picture_table(tmp_path/"pictures")
    folders = {run("avg_pool", table, "smoke", out=tmp_path/"runs", **k).folder.name for k in ({}, dict(seed=1), dict(lr=1e-3), dict(width=.5))}
    changed = table.take(slice(1, None))
    folders.add(run("avg_pool", changed, "smoke", out=tmp_path/"runs").folder.name)
    assert len(folders) == 5
    with pytest.raises(ValueError, match="unknown setting"): run("avg_pool", table, "smoke", out=tmp_path/"runs", epoch=3)


def test_full_disk_leaves_no_result(tmp_path, monkeypatch):
    table = picture_table(tmp_path/"pictures")
    def full(*args): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(core.os, "fsync", full)
    with pytest.raises(OSError, match="disk full while writing"): run("avg_pool", table, "smoke", out=tmp_path/"runs")
    assert not list((tmp_path/"runs").glob("*/done.json")) and not list((tmp_path/"runs").rglob("*.tmp"))
    monkeypatch.undo()
    assert run("avg_pool", table, "smoke", out=tmp_path/"runs").scores.notna().any().any()


def test_full_disk_is_noticed_before_decoding(tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(pixels.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="the disk has no room"): pixels.array_store("x", "k", 4, (3,), lambda rows: [], root=tmp_path)
    assert not list(tmp_path.rglob("data.bin"))


def test_unreadable_checkpoint_says_what_to_do(tmp_path):
    table = picture_table(tmp_path/"pictures")
    folder = run("avg_pool", table, "smoke", out=tmp_path/"runs").folder
    (folder/"done.json").unlink(); (folder/"checkpoint.pt").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="delete it to start"): run("avg_pool", table, "smoke", out=tmp_path/"runs")


def test_pickle_from_outside_is_refused(tmp_path):
    import pickle, torch
    class Bomb:
        def __reduce__(self): return (os.system, (f"touch {tmp_path/'boom'}",))
    table = picture_table(tmp_path/"pictures")
    folder = run("avg_pool", table, "smoke", out=tmp_path/"runs").folder
    (folder/"done.json").unlink(); torch.save(Bomb(), folder/"checkpoint.pt")
    with pytest.raises(DataError): run("avg_pool", table, "smoke", out=tmp_path/"runs")
    assert not (tmp_path/"boom").exists()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    "torchrun with two real processes equals one process at the same effective batch, on a trunk without batch statistics"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SYMBIOSIS_QUIET": "1", "SYMBIOSIS_CACHE": str(tmp_path/"cache")}
    script = Path(__file__).with_name("train_distributed.py")
    one = subprocess.run([sys.executable, script, tmp_path/"one.json", "32"], env=env, capture_output=True, text=True, timeout=240)
    assert one.returncode == 0, one.stderr[-2000:]
    two = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, tmp_path/"two.json", "16"],
                         env=env, capture_output=True, text=True, timeout=240)
    assert two.returncode == 0, two.stderr[-2000:]
    one, two = (json.loads((tmp_path/f).read_text()) for f in ("one.json", "two.json"))
    assert (one["world"], two["world"]) == (1, 2)
    assert np.allclose(one["weights"], two["weights"], atol=1e-5)
    assert not np.allclose(one["weights"], one["start"], atol=1e-3), "nothing was trained"


def test_people_stay_known_when_images_are_left_out(tmp_path):
    table = picture_table(tmp_path/"pictures")
    test = np.flatnonzero(table.split == "test")
    table.paths[test[1]].write_bytes(b"no picture")
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs", on_bad="skip", limit=None)
    kept = np.delete(test, 1)
    assert r.done["bad_images"] == 1 and r.identity.tolist() == table.identity[kept].tolist() and len(r.predictions()[0]) == len(kept)
    assert r.arrays["test_names"].tolist() == [table.paths[i].name for i in kept]


def test_boxes_survive_an_unreadable_first_image(tmp_path):
    from dataclasses import replace
    from symbiosis_nb.inputs import box_masks, resolve
    from symbiosis_nb.methods import get_method, make_profile
    table = replace(picture_table(tmp_path/"pictures"), frame="aligned", landmarks=np.tile(np.array([[10, 15], [25, 15], [18, 25], [11, 33], [25, 33]]), (96, 1, 1)))
    size = resolve(make_profile("smoke"), get_method("bbox")).mask_size
    whole = box_masks(table, size).store[[5]]
    table.paths[0].write_bytes(b"no picture")
    from symbiosis_nb.data.pixels import cache_dir
    import shutil; shutil.rmtree(cache_dir()/"boxes", ignore_errors=True)
    assert (box_masks(table, size).store[[5]] == whole).all() and whole[0, 1:].any()


def test_balanced_loss_continues_a_run_and_refuses_other_losses(tmp_path):
    table = picture_table(tmp_path/"pictures")
    first = run("avg_pool", table, "smoke", out=tmp_path/"runs", epochs=3)
    tuned = run("avg_pool", table, "smoke", out=tmp_path/"runs", loss="balanced", start=first.folder)
    assert tuned.folder != first.folder and tuned.config["profile"]["loss"] == "balanced" and tuned.config["start"] == first.folder.name
    with pytest.raises(ValueError, match="loss of its own"): run("dmtl", table, "smoke", out=tmp_path/"runs", loss="balanced")
    with pytest.raises(ValueError, match="'balanced'"): run("avg_pool", table, "smoke", out=tmp_path/"runs", loss="focal")


def test_masks_need_no_validation_or_test_part(tmp_path):
    from symbiosis_nb.data.tables import ParsingTable
    from symbiosis_nb.inputs import parser_run, resolve
    from symbiosis_nb.methods import get_method, make_profile
    from symbiosis_nb.vocab import HELEN
    table = picture_table(tmp_path/"pictures")
    label = np.zeros((44, 36), np.uint8); label[10:30, 8:20] = 1
    faces = ParsingTable("train only", HELEN, table.paths[:20], ["train"]*20, read_label=lambda i: label)
    made = parser_run(faces, resolve(make_profile("smoke"), get_method("ssp")), out=tmp_path/"runs")
    assert made.done["parsing"]["measured_on"] == "train"


def test_onnx_keeps_the_frame(tmp_path):
    pytest.importorskip("onnxruntime"); pytest.importorskip("onnx")
    from dataclasses import replace
    from symbiosis_nb.runs import Predictor
    table = replace(picture_table(tmp_path/"pictures"), frame="aligned")
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs")
    file = Predictor.load(r.folder).to_onnx(tmp_path/"model.onnx")
    assert Predictor.load(file).look == Predictor.load(r.folder).look


def test_boxes_of_one_image_are_resampled_together(tmp_path):
    from dataclasses import replace
    table = picture_table(tmp_path/"pictures")
    boxes = replace(table, identity=None, frame="box", boxes=np.tile([0, 0, 36, 44], (96, 1)), paths=[table.paths[i//2*2] for i in range(96)])
    r = run("avg_pool", boxes, "smoke", out=tmp_path/"runs")
    assert r.identity is None and r.clusters.tolist() == (np.arange(16)//2).tolist()


def test_averages_have_no_weights_to_start_from(tmp_path):
    with pytest.raises(ValueError, match="ssp, ssg"): run("ssp_ssg", picture_table(tmp_path/"pictures"), "smoke", out=tmp_path/"runs", start=tmp_path)


def test_two_networks_of_one_method_differ_by_their_seeds(tmp_path):
    "The first is the row of its own name; the second belongs to no other row; their mean is the combination's"
    from symbiosis_nb.combine import mean_arrays
    from symbiosis_nb.predictor import Predictor
    table, how = picture_table(tmp_path/"pictures"), dict(profile="smoke", out=tmp_path/"runs")
    both = run("avg_pool_twice", table, seed=1, **how)
    each = [run("avg_pool", table, seed=s, **how) for s in (1, 1001)]
    assert both.done["parts"] == [r.folder.name for r in each] and {r.news for r in each} == {"read"}
    assert not np.array_equal(each[0].predictions()[0], each[1].predictions()[0])
    np.testing.assert_array_equal(both.predictions()[0], mean_arrays(each)["test_selected"])
    asked = [Predictor.load(r.folder)(table.paths[0], aligned=True).to_numpy() for r in (both, *each)]
    np.testing.assert_allclose(asked[0], (asked[1] + asked[2])/2, atol=1e-6)


def test_no_epoch_measures_the_start_as_it_is(tmp_path, monkeypatch):
    "On the same pictures the same logits; on another set's test part, without a training there"
    from dataclasses import replace
    from symbiosis_nb.data.protocols import cross
    from symbiosis_nb.report import Card
    table, how = picture_table(tmp_path/"pictures"), dict(profile="smoke", out=tmp_path/"runs")
    first = run("avg_pool", table, epochs=2, **how)
    again = run("avg_pool", table, start=first.folder, epochs=0, **how)
    np.testing.assert_array_equal(again.predictions()[0], first.predictions()[0])
    assert again.folder != first.folder and not len(again.log) and again.config["start"] == first.folder.name
    other = replace(table.take(slice(None, None, -1)), name="another set")
    from symbiosis_nb import training as room
    decoded, prepare = [], room.prepare
    monkeypatch.setattr(room, "prepare", lambda job: decoded.append(job.table.counts()) or prepare(job))
    there = run("avg_pool", cross(table, other), start=first.folder, epochs=0, **how)
    np.testing.assert_array_equal(there.predictions()[0], first.predictions()[0][::-1])
    whole = cross(table, other).counts()
    assert decoded == [whole | dict(train=32)] and whole["train"] > 32 and there.config["counts"] == whole   # nothing is learnt of the rest
    np.testing.assert_array_equal(there.arrays["train_prevalence"], first.arrays["train_prevalence"])
    trained = run("avg_pool", cross(table, other), epochs=2, **how)
    np.testing.assert_array_equal(there.predictions()[0], trained.predictions()[0])   # as if it had been trained for that part
    card = Card([there], cross(table, other)); card.scores(), card.selection(), card.cost(), card.limits(), card.run_rows()
    with pytest.raises(DataError, match="as it is, and this differs: size"): run("avg_pool", table, start=first.folder, epochs=0, size=(48, 40), **how)
    with pytest.raises(DataError, match="differs: width"): run("avg_pool", table, start=first.folder, epochs=0, width=.5, **how)
    with pytest.raises(ValueError, match="epochs is 0: give a whole number, 1 or more"): run("avg_pool", table, epochs=0, **how)
    with pytest.raises(ValueError, match="epochs is 0: give a whole number, 1 or more"): run("avg_pool", table, "smoke epochs=0", out=tmp_path/"runs")


def test_the_last_epoch_is_asked_once_where_it_was_the_best(tmp_path, monkeypatch):
    "Its pictures are not looked at a second time; where an earlier epoch was better both are asked"
    from helpers import picture_table
    from symbiosis_nb import callbacks, training as room
    table, asked, predict = picture_table(tmp_path/"pictures"), [], room.predict
    monkeypatch.setattr(room, "predict", lambda model, dl, *a: asked.append(len(dl.dataset)) or predict(model, dl, *a))
    one = run("avg_pool", table, "smoke", out=tmp_path/"runs")
    assert asked == [16, 16] and one.done["selected_epoch"] == 0
    np.testing.assert_array_equal(one.arrays["test_last"], one.arrays["test_selected"])
    keep, worse = callbacks.Selection.after_epoch, lambda self: keep(self) if self.epoch == 0 else None   # as if the second were worse
    monkeypatch.setattr(room.Selection, "after_epoch", worse); asked.clear()
    two = run("avg_pool", table, "smoke", out=tmp_path/"runs", epochs=2)
    assert len(asked) == 4 and two.done["selected_epoch"] == 0
    assert not np.array_equal(two.arrays["test_last"], two.arrays["test_selected"])
