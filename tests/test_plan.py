"What is said before hours of training: which networks, how long, what fits; and many runs as jobs of their own that may die"
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers import picture_table, stopped_after
from symbiosis_nb.campaign import Campaign, run_all, said_time, study_jobs, train_all
from symbiosis_nb.core import DataError
from symbiosis_nb.data.sources import open_faces, open_parsing
from symbiosis_nb.jobs import weights_for
from symbiosis_nb.methods import METHODS, PSE_RECIPE, PSE_SE
from symbiosis_nb.plan import Plan, job_of, joined, length, pieces, plan, plan_jobs
from symbiosis_nb.runs import run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(): return open_faces(profile="smoke"), open_parsing(profile="smoke")


def test_every_method_has_a_plan_that_ends_at_zero(data, tmp_path):
    "Before: hours for each; after training it: none, and every network that was planned is finished"
    table, parsing = data
    before = plan(["ssp_ssg", "dual_path", "g2s_123", "sa", "bbox"], table, "smoke", 1, tmp_path, parsing, "scratch")
    assert (before.rows.hours > 0).all() and (before.rows.done == 0).all() and before.rows.networks.tolist() == [3, 2, 5, 1, 1]
    assert (before.rows["disk GiB"] > 0).all() and (before.rows["memory GiB"] > 0).all()
    for name in ("ssp_ssg", "dual_path", "g2s_123"): run(name, table, "smoke", out=tmp_path, parsing=parsing, weights="scratch")
    after = plan(["ssp_ssg", "dual_path", "g2s_123"], table, "smoke", 1, tmp_path, parsing, "scratch")
    assert after.hours == 0 and (after.rows.networks == after.rows.done).all() and "all 3 runs are finished" in after.first_line()


def test_a_chain_that_was_cut_off_counts_what_is_there(data, tmp_path):
    table, _ = data
    run("g2s_1", table, "smoke", out=tmp_path, weights="scratch")
    p = plan(["g2s_12"], table, "smoke", 1, tmp_path, None, "scratch")
    assert p.rows.networks.tolist() == [3] and p.rows.done.tolist() == [1]


def test_shared_networks_count_once(data, tmp_path):
    table, parsing = data
    assert plan(["ssp", "ssg", "ssp_ssg"], table, "smoke", 1, tmp_path, parsing).rows.networks.tolist() == [2, 1, 0]
    assert plan(["avg_pool", "inception"], table, "smoke", 2, tmp_path).rows.networks.tolist() == [1, 0, 1, 0]   # one run serves both
    assert plan(["avg_pool", "avg_pool_twice"], table, "smoke", 2, tmp_path).rows.networks.tolist() == [1, 1, 1, 1]   # of its two networks one is there


def test_steps_are_those_of_the_training(data, tmp_path):
    table, _ = data
    job = job_of("avg_pool", table, "smoke", out=tmp_path, epochs=3, bs=10)
    r = run("avg_pool", table, "smoke", out=tmp_path, epochs=3, bs=10)
    assert length(pieces(job)[0]) == (3*(r.config["counts"]["train"]//10), 3) and pieces(job)[0].done


def test_what_does_not_fit_is_refused_by_name(data, tmp_path, monkeypatch):
    table, _ = data
    from symbiosis_nb import plan as room
    monkeypatch.setattr(room, "free_memory", lambda: 1000)
    p = plan(["avg_pool"], table, "smoke", 1, tmp_path)
    with pytest.raises(DataError, match="avg_pool: a step takes about .* GiB of memory"): p.go()
    with pytest.raises(SystemExit): p.go(only=True)
    monkeypatch.undo()
    full = plan(["avg_pool"], table, "smoke", 1, tmp_path); full.free = 1
    with pytest.raises(DataError, match="are free: set SYMBIOSIS_CACHE"): joined(full).go()


@pytest.mark.parametrize("method, helper", [("ssp", "parser"), ("dual_path", "generator")])
def test_what_a_helper_makes_of_all_pictures_takes_time_too(data, tmp_path, monkeypatch, method, helper):
    "Once for all rows that share it; nothing where it is there"
    from symbiosis_nb import plan as room
    from symbiosis_nb.inputs import prepare
    table, parsing = data
    ask = lambda seeds=1: plan([method], table, "smoke", seeds, tmp_path, parsing, weights="scratch").hours*3600
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(room, "measure", lambda piece: dict(step=0., image=float(piece.kind == helper), memory=1., weights=1.))
    job = job_of(method, table, "smoke", out=tmp_path, parsing=parsing, weights="scratch"); n, parts = len(job.table), parsing.counts()
    looked = length(room._helpers(job)[0])[1]*parts["valid"] + 2*(parts["valid"] + parts["test"])
    assert ask() == ask(2) == looked + n
    job.need.helpers(job); assert ask() == n
    prepare(job); assert ask() == 0


def test_a_checkpoint_shortens_the_plan(data, tmp_path, monkeypatch):
    table, _ = data
    with stopped_after(monkeypatch, 1): run("avg_pool", table, "smoke", out=tmp_path, epochs=4)
    job = job_of("avg_pool", table, "smoke", out=tmp_path, epochs=4)
    half, whole = plan_jobs([job]).hours, plan_jobs([replace(job, out=tmp_path/"elsewhere")]).hours
    assert .4 < half/whole < .9


def test_the_line_of_all_runs(monkeypatch, capsys):
    card = Campaign(3)
    assert str(card) == "0 of 3 runs done, 0 running, 3 to come"
    card.running, card.done = ["a, seed 0"], {0: 600.}
    assert str(card) == "1 of 3 runs done, 1 running (a, seed 0), 1 to come, about 20 min left"
    assert [said_time(s) for s in (5, 600, 7200, 10*86400)] == ["5 s", "10 min", "2.0 h", "10.0 days"]


def kill_some(folder, stop, killed, n=2):
    "Kill the first processes that have begun a checkpoint's epoch"
    while not stop.is_set() and len(killed) < n:
        for file in folder.glob("submitit/*_submitted.pkl"):
            pid = int(file.name.split("_")[0])
            if pid in killed or len(killed) >= n: continue
            time.sleep(np.random.default_rng(pid).uniform(2, 6))
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass
            killed.append(pid)
        time.sleep(.05)


@pytest.mark.slow
def test_jobs_that_die_go_on_where_they_were(tmp_path, monkeypatch):
    "Runs as processes of their own, two of them killed at random: all finish, with the numbers of runs that nobody disturbed"
    pytest.importorskip("submitit")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    table, names = picture_table(tmp_path/"pictures"), ["avg_pool", "spp_net", "bbox"][:2]
    how = dict(precision="float32", epochs=6, limit=None)
    here = train_all(names, table, None, "smoke", 2, tmp_path/"here", **how)
    stop, killed = threading.Event(), []
    thread = threading.Thread(target=kill_some, args=(tmp_path/"there", stop, killed)); thread.start()
    try: there = train_all(names, table, None, "smoke", 2, tmp_path/"there", executor="local", **how)
    finally: stop.set(); thread.join()
    assert len(killed) == 2
    for a, b in zip(here, there):
        assert a.method == b.method
        for key in a.arrays:
            if key.endswith(("_selected", "_last")): np.testing.assert_array_equal(a.arrays[key], b.arrays[key])
    logs = list((tmp_path/"there"/"submitit").glob("*_log.out"))
    assert len(logs) >= len(there)


class Here:
    "An executor that trains at once, and notes in which order it was asked"
    def __init__(self): self.asked = []
    def submit(self, f, job):
        self.asked.append(job.method.name); f(job)
        return SimpleNamespace(done=lambda: True, exception=lambda: None, result=lambda: None)


def test_the_longest_run_goes_first(data, tmp_path):
    "So that what others wait for, a parser, is begun early; results stay in the order of the methods"
    table, parsing = data
    names = ["avg_pool", "spp_net", "ssp"]
    planned = plan(names, table, "smoke", 1, tmp_path, parsing)
    planned.rows["hours"] = [.1, .3, .2]
    given, kept = Here(), Here()
    there = train_all(names, table, parsing, "smoke", 1, tmp_path, planned=planned, executor=given)
    assert given.asked == ["spp_net", "ssp", "avg_pool"] and [r.config["method"] for r in there] == names
    train_all(names, table, parsing, "smoke", 1, tmp_path/"unplanned", executor=kept)
    assert kept.asked == names


@pytest.mark.slow
def test_a_fault_of_ones_own_is_not_tried_again(tmp_path):
    pytest.importorskip("submitit")
    table = picture_table(tmp_path/"pictures"); table.paths[0].write_text("no picture")
    with pytest.raises(Exception, match="1 of 96 images cannot be used"):
        run_all([job_of("avg_pool", table, "smoke", out=tmp_path/"runs", limit=None)], "local")
    assert len(list((tmp_path/"runs"/"submitit").glob("*_submitted.pkl"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masks", "mixed", "crops", "adversarial"])
def test_two_processes_train_as_one(kind, tmp_path):
    "Every kind of batch under torchrun: half as many pictures in each of two processes, the same weights"
    pytest.importorskip("accelerate")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = str(Path(__file__).with_name("train_distributed_kinds.py"))
    commands = dict(one=[sys.executable, script], two=[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script])
    found = {}
    for name, command in commands.items():
        done = subprocess.run([*command, str(tmp_path/name), "32" if name == "one" else "16", kind], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = json.loads((tmp_path/name).read_text())
    assert [found[k]["world"] for k in commands] == [1, 2]
    np.testing.assert_allclose(found["one"]["weights"], found["two"]["weights"], atol=1e-5)
    assert not np.allclose(found["one"]["weights"], found["one"]["start"], atol=1e-4), "nothing was trained"


def test_the_plan_comes_first_and_nothing_waits():
    "make reproduce: the hours are the first line; what follows is passed on line by line, not in blocks"
    script = [sys.executable, str(Path(__file__).parents[1]/"scripts/plan_first.py")]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as p:
        for line in ("Executing\n", "plan: 2 hours\n", "first run\n"): p.stdin.write(line); p.stdin.flush()
        assert [p.stdout.readline() for _ in range(3)] == ["plan: 2 hours\n", "Executing\n", "first run\n"]   # while more may come
        p.stdin.close()
    done = subprocess.run(script, input="no plan\n", capture_output=True, text=True)
    assert done.stdout == "no plan\n"


@pytest.mark.parametrize("weights, begins", [("", "imagenet"), ("scratch", None)])
def test_both_trunks_of_pse_can_be_planned(weights, begins, data, tmp_path):
    "The notebook's own cell: the SE-ResNet starts from ImageNet by itself, AlexNet from what was given"
    cells = json.loads((Path(__file__).parents[1]/"nbs"/"reproduce_pse.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next(s for c in cells if "planned = joined(" in (s := "".join(c["source"])))
    jobs, ends = [], SimpleNamespace(go=lambda only: None)
    given = dict(plan=lambda *a, **k: jobs.append(study_jobs(*a, **k)), joined=lambda *plans: ends, PSE_RECIPE=PSE_RECIPE, PSE_SE=PSE_SE, weights_for=weights_for)
    exec(source, given | dict(paper=False, trunk_list=["alexnet_bn", "se_resnet50"], names=["dmtl", "pse_b"], table=data[0], profile="smoke", seeds=1,
                              folder=tmp_path, weights=weights, small_rows=[], on_bad="raise", plan_only=True))
    used = [(j.profile.backbone, j.profile.weights) for of_trunk in jobs for j in of_trunk]
    assert used[2:] == [("se_resnet50", begins)]*2 and [trunk for trunk, _ in used[:2]] == ["alexnet_bn"]*2


def test_other_processes_import_what_lies_beside_a_script(tmp_path):
    "From another folder they ended in a bare ModuleNotFoundError"
    pytest.importorskip("submitit")
    (tmp_path/"scripts").mkdir(); (tmp_path/"elsewhere").mkdir()
    (tmp_path/"scripts"/"beside.py").write_text("def twice(x): return 2*x\n")
    (tmp_path/"scripts"/"start.py").write_text(
        "from pathlib import Path\nfrom beside import twice\nfrom symbiosis_nb.combine import map_jobs\n"
        "print(map_jobs(twice, [2, 3], 'local', Path('logs')))\n")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "../scripts/start.py"], cwd=tmp_path/"elsewhere", env=clean, capture_output=True, text=True)
    assert done.stdout.strip() == "[4, 6]", done.stderr[-1500:]
