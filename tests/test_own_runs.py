"Every method that can trains on a table of one's own: six attributes, a CSV file, no list of ours; what a method needs beside is said before training."
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from symbiosis_nb.core import DataError
from symbiosis_nb.data.own import parsing_from_folders, table_from_csv
from symbiosis_nb.data.synthetic import make_faces, make_parsing
from symbiosis_nb.learner import Checkpoint
from symbiosis_nb.methods import METHODS
from symbiosis_nb.page import write_html
from symbiosis_nb.report import Card
from symbiosis_nb.runs import Predictor, run
from symbiosis_nb.vocab import HELEN

torch.set_num_threads(2)
SIX = dict(specs="Eyeglasses", cap="Wearing_Hat", grin="Smiling", man="Male", fair="Blond_Hair", beard="Goatee")
GROUPS = dict(eyes="specs", head=("cap", "fair"), face=("grin", "man", "beard"))
CLASH = ((("man", 0), ("beard", 1)),)
SCHEMES = dict(zip(SIX, "aabcde"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "Drawn pictures in a folder, and a CSV of pandas that names six things of them, with gaps; masks as numbered pictures"
    root = tmp_path_factory.mktemp("own")
    old = os.environ.get("SYMBIOSIS_CACHE")
    os.environ["SYMBIOSIS_CACHE"] = str(root/"cache")
    faces = make_faces(root/"drawn", 120, cue_masks=False)
    labels = {ours: faces.labels[:, faces.vocab.index(theirs)[0]] == 1 for ours, theirs in SIX.items()}
    frame = pd.DataFrame(dict(shot=[f"shots/{i}.png" for i in range(120)], person=faces.identity, **labels)).astype({"cap": object})
    frame.loc[3:9, "cap"] = None
    (root/"shots").mkdir()
    for i in range(120): faces.open(i).save(root/"shots"/f"{i}.png")
    frame.to_csv(root/"my.csv")
    for kind in ("pictures", "masks"): (root/"parsing"/kind).mkdir(parents=True)
    parsing = make_parsing(root/"helen", 30)
    from PIL import Image
    for i in range(30):
        parsing.open(i).save(root/"parsing"/"pictures"/f"{i}.png")
        Image.fromarray(parsing.label(i)).save(root/"parsing"/"masks"/f"{i}_mask.png")
    yield root
    if old is not None: os.environ["SYMBIOSIS_CACHE"] = old


def table_of(own, **kwargs): return table_from_csv(own/"my.csv", **{**dict(name="my synthetic six", groups=GROUPS, contradictions=CLASH), **kwargs})
def parsing_of(own, regions=HELEN): return parsing_from_folders(own/"parsing"/"pictures", own/"parsing"/"masks", regions, name="my synthetic masks")


def trained(name, own):
    options = dict(schemes=SCHEMES) if name == "g2s_123" else None
    return run(name, table_of(own), "smoke", out=own/"runs", parsing=parsing_of(own), options=options)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "bbox"])
def test_every_method_trains_answers_and_carries_its_vocabulary(name, own):
    table = table_of(own)
    r = trained(name, own)
    assert list(r.scores.index) == list(SIX) and r.vocab == table.vocab and r.config["beside"] == dict(contradictions=[[["man", 0], ["beard", 1]]])
    answers = Predictor.load(r.folder)(table.paths[:3])
    assert list(answers.index) == list(SIX) and answers.shape == (6, 3) and np.isfinite(answers.to_numpy()).all()


def test_what_a_method_needs_is_said_before_anything_is_decoded(own, tmp_path):
    table, out = table_of(own, groups=None), dict(profile="smoke", out=tmp_path/"runs")
    stores = lambda: sorted((own/"cache"/"stores").glob("*")) if (own/"cache"/"stores").exists() else []
    before = stores()
    with pytest.raises(DataError, match="bbox needs landmarks, and my synthetic six has none.*table_from_csv"): run("bbox", table, **out)
    with pytest.raises(DataError, match="pse_b needs groups of attributes.*pass groups="): run("pse_b", table, **out)
    for name in ("ssp", "ssp_ssg", "sa", "dual_path"):
        with pytest.raises(DataError, match="needs a parsing set.*parsing_from_folders"): run(name, table, **out)
    with pytest.raises(DataError, match="which part of the face shows specs"): run("g2s_123", table, **out)
    with pytest.raises(DataError, match="draws from Helen's eleven regions, and my synthetic masks has others"): run("dual_path", table, parsing=parsing_of(own, [f"r{i}" for i in range(11)]), **out)
    assert stores() == before and not (tmp_path/"runs").exists()


def test_regions_of_ones_own(own, tmp_path):
    "Region methods take any regions; landmarks in ten columns serve bbox"
    table = table_of(own)
    r = run("ssg", table, "smoke", out=tmp_path, parsing=parsing_of(own, [f"region {i}" for i in range(11)]))
    assert r.config["parsing"]["regions"][3] == "region 3" and Predictor.load(r.folder)(table.paths[0]).shape == (6, 1)
    frame = pd.read_csv(own/"my.csv", index_col=0)
    for k, v in enumerate((70, 112, 108, 112, 88, 130, 72, 155, 105, 155)): frame[f"p{k}"] = v + np.arange(120) % 3
    frame.to_csv(own/"marks.csv")
    marked = table_from_csv(own/"marks.csv", landmarks=[f"p{k}" for k in range(10)], frame="aligned", name="my synthetic six")
    assert marked.landmarks.shape == (120, 5, 2) and run("bbox", marked, "smoke", out=tmp_path).scores.shape[0] == 6


def test_resume_gives_the_same_numbers(own, tmp_path, monkeypatch):
    table, after = table_of(own), Checkpoint.after_epoch
    train = lambda where: run("avg_pool", table, "smoke", out=where, epochs=2)
    whole = train(tmp_path/"whole")
    def cut(self): after(self); raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "after_epoch", cut)
        with pytest.raises(KeyboardInterrupt): train(tmp_path/"cut")
    again = train(tmp_path/"cut")
    assert again.news == "resumed after epoch 1" and np.array_equal(again.arrays["test_last"], whole.arrays["test_last"])


def test_card_page_and_onnx(own, tmp_path):
    "The report speaks of the user's set by its name, and of no printed number; ONNX gives the same answers under the same names"
    table, runs = table_of(own), [trained(n, own) for n in ("avg_pool", "ssp")]
    card = Card(runs, table, dataset="")
    text = write_html(card, tmp_path/"own.html", "My six").read_text()
    assert all(n in text for n in ("my synthetic six", *SIX)) and "CelebA (" not in text
    assert len(card.scores()) >= 2 and not len(card.printed(None)) and set(GROUPS) <= set(card.groups().index)
    ask = Predictor.load(runs[1].folder)
    back = Predictor.load(ask.to_onnx(tmp_path/"own.onnx"))
    assert back.names == tuple(SIX)
    np.testing.assert_allclose(back(table.paths[:3]), ask(table.paths[:3]), atol=1e-4)


def test_a_method_of_ones_own_is_found_by_a_new_process(own, tmp_path):
    "The module that registers a method is named in the run, and imported when the run is opened"
    (tmp_path/"my_room.py").write_text(textwrap.dedent("""
        from symbiosis_nb.all import AvgPool, Method, register
        def build(b): return AvgPool(b.trunk(), b.n)
        register(Method("mine", "", "Mine", build))
        """))
    train = f"""
        import my_room
        from symbiosis_nb.all import *
        print(run("mine", table_from_csv({str(own/'my.csv')!r}), "smoke", out={str(tmp_path/'runs')!r}).folder)"""
    def process(code, **env):
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", **env}
        return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, cwd=own)
    folder = process(train).stdout.strip().splitlines()[-1]
    assert json.loads((Path(folder)/"config.json").read_text())["module"] == "my_room"
    ask = f"from symbiosis_nb.runs import Predictor; print(Predictor.load({folder!r})({str(own/'shots'/'0.png')!r}).shape)"
    assert process(ask).stdout.strip() == "(6, 1)"
    lost = process(ask, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert lost.returncode and "start where my_room can be found" in lost.stderr
