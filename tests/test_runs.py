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
