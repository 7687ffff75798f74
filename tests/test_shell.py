"The command: files and folders, a table, JSON, boxes; bad files among good ones; what nothing can be asked of."
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from symbiosis_nb import shell
from symbiosis_nb.data import crops
from symbiosis_nb.data.sources import open_faces
from symbiosis_nb.runs import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("shell")
    old, os.environ["SYMBIOSIS_CACHE"] = os.environ.get("SYMBIOSIS_CACHE"), str(root/"cache")
    faces = open_faces(profile="smoke")
    yield faces, run("avg_pool", faces, "smoke", out=root/"runs").folder
    if old is not None: os.environ["SYMBIOSIS_CACHE"] = old


@pytest.fixture
def photos(trained, tmp_path, monkeypatch):
    "A folder: two faces, none, and no picture at all; a detector that knows them by their size"
    folder = tmp_path/"photos"; folder.mkdir()
    group, marks = Image.new("RGB", (520, 340), "grey"), []
    for x, path in zip((20, 280), trained[0].paths): group.paste(Image.open(path), (x, 60)); marks.append(crops.CELEBA_TEMPLATE + (x, 60))
    group.save(folder/"group.png"); Image.new("RGB", (300, 300), "green").save(folder/"meadow.jpg"); (folder/"torn.jpg").write_bytes(b"\xff\xd8 and no more")
    found = crops.Faces(np.array([[66, 127, 84, 114.], [326, 127, 84, 114.]]), np.array(marks), np.array([.99, .98]))
    monkeypatch.setattr(crops, "detect_faces", lambda image: found if image.width == 520 else crops.NO_FACES)
    return folder


def test_a_folder_as_table_and_boxes(trained, photos, tmp_path, capsys):
    assert shell.main([str(photos), "--run", str(trained[1]), "--out", str(tmp_path/"boxes"), "--most", "3"]) == 1
    out, err = capsys.readouterr()
    assert "face 1 at x 66, y 127, 84 x 114" in out and "face 2 at x 326" in out and "meadow.jpg: no face found" in out and "torn.jpg" in out
    assert "not for photographs" in err and [p.name for p in (tmp_path/"boxes").iterdir()] == ["group.jpg"]
    table = [l for l in out.splitlines() if l.startswith("    ")]
    values = [float(l.split()[-1]) for l in table]
    assert len(values) == 6 and values[:3] == sorted(values[:3], reverse=True)
    orange = np.asarray(Image.open(tmp_path/"boxes"/"group.jpg")).astype(int)[130:230, 66]   # the left edge of the first box
    assert (orange[:, 0] > 200).mean() > .9 and (orange[:, 2] < 100).mean() > .9


def test_a_second_run_is_not_asked_about_the_answers_of_the_first(trained, photos, monkeypatch):
    monkeypatch.chdir(photos)
    asked = lambda place: (shell.main([place, "--run", str(trained[1]), "--json", "o.json"]), [os.path.relpath(s["file"], photos) for s in json.loads((photos/"o.json").read_text())])
    for _ in range(2): assert asked(".") == (1, ["group.png", "meadow.jpg", "torn.jpg"])
    assert (photos/"symbiosis_faces"/"group.jpg").exists() and asked("symbiosis_faces")[1] == [os.path.join("symbiosis_faces", "group.jpg")]   # by its name it is


def test_json(trained, photos, tmp_path, capsys):
    shell.main([str(photos/"group.png"), str(photos/"meadow.jpg"), "--run", str(trained[1]), "--json", "--no-pictures"])
    said = json.loads(capsys.readouterr().out)
    assert len(said[0]["faces"]) == 2 and len(said[0]["faces"][0]["attributes"]) == 40 and said[0]["faces"][1]["box"] == [326, 127, 84, 114] and "no face" in said[1]["error"]
    assert shell.main([str(trained[0].paths[0]), "--run", str(trained[1]), "--aligned", "--json", str(tmp_path/"a.json"), "--no-pictures"]) == 0
    assert json.loads((tmp_path/"a.json").read_text())[0]["faces"][0]["box"] is None and "No Beard" in capsys.readouterr().out


@pytest.mark.parametrize("given, says", [(["nowhere.jpg"], "there is no such file"), (["."], "there are no pictures in this folder")])
def test_nothing_to_ask_about(trained, given, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert shell.main([*given, "--run", str(trained[1])]) in (1, 2) and says in "".join(capsys.readouterr())
    assert shell.main([*given, "--run", str(tmp_path)]) == 2 and "not a finished run" in capsys.readouterr().err


def test_from_a_shell(trained, tmp_path):
    "A process of its own; help names every option"
    command = [sys.executable, "-m", "symbiosis_nb"]
    done = subprocess.run([*command, str(trained[0].paths[0]), "--run", str(trained[1]), "--aligned", "--no-pictures"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "No Beard" in done.stdout, done.stderr
    assert all(o in subprocess.run([*command, "--help"], capture_output=True, text=True).stdout for o in ("--run", "--json", "--aligned", "--out"))
