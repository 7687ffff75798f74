"The reproduction notebooks, executed as a user would: whole, misspelt, without an output path, from another folder."
import json
import shutil
import os
import subprocess
import sys
from pathlib import Path

import pytest

from symbiosis_nb.data.synthetic import make_faces, make_parsing

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT/"nbs"/"reproduce_celeba.ipynb"


def papermill(*args, cwd, cache):
    env = {**os.environ, "SYMBIOSIS_CACHE": str(cache), "SYMBIOSIS_QUIET": "1"}
    return subprocess.run([sys.executable, "-m", "papermill", *map(str, args), "-k", "python3", "--no-progress-bar"], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory): return tmp_path_factory.mktemp("cache")


def test_smoke_from_another_folder(tmp_path, cache):
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "methods", "avg_pool inception ssp", "-p", "once", "avg_pool_twice", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path/"results"/"celeba.html").read_text()
    assert "synthetic" in page and "Avg. pooling" in page and "src=\"http" not in page
    cells = json.loads((tmp_path/"out.ipynb").read_text())["cells"]
    first = next("".join(o["text"]) for c in cells for o in c.get("outputs", []) if o["output_type"] == "stream")
    assert "synthetic" in first.splitlines()[0], "the first line must say that the faces are synthetic"
    assert len(list((tmp_path/"results"/"runs").glob("*/done.json"))) == 5  # two methods (one run serves two rows), the parser, an average and its second network
    assert "Avg. pooling, two" in page
    assert (tmp_path/"results"/"celeba"/"localisation.csv").is_file() and "Where the models look" in page


def test_original_images(tmp_path, cache):
    "Printed numbers are those of the original images, and cue masks, which are in the aligned frame, are not asked"
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "methods", "avg_pool", "-p", "variant", "original", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path/"results"/"celeba.html").read_text()
    assert "Table 1, original" in page and "Table 1, aligned" not in page
    assert not (tmp_path/"results"/"celeba"/"localisation.csv").exists() and "Where the models look" not in page


def test_unknown_parameter_is_refused(tmp_path, cache):
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", "-p", "profil", "smoke", cwd=tmp_path, cache=cache)
    assert done.returncode != 0 and "unknown parameter 'profil'" in done.stderr


@pytest.mark.parametrize("name, asked, says", [("celeba", ["methods", "avg_pol ssp"], "did you mean avg_pool?"), ("celeba", ["once", "avg_pool"], "method avg_pool is named 2 times"), ("lfwa", ["once", "avg_pool"], "method avg_pool is named 2 times"), ("lfwa", ["seeds", 0], "seeds is 0: give a whole number, 1 or more"), ("pse", ["profile", "paper"], "weights that no package brings")])
def test_what_cannot_be_meant_is_refused_before_data(name, asked, says, tmp_path, cache):
    done = papermill(ROOT/"nbs"/f"reproduce_{name}.ipynb", tmp_path/"out.ipynb", "-p", *asked, cwd=tmp_path, cache=tmp_path/"empty")
    assert done.returncode != 0 and says in done.stderr and not (tmp_path/"empty"/"synthetic").exists()


def test_photographs_and_drawings_are_refused(tmp_path, cache):
    "A CelebA folder without a parsing set: drawn regions would teach the real faces' networks"
    make_faces(tmp_path/"celeba", 40)
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "data_root", tmp_path/"celeba", "-p", "methods", "ssp", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode != 0 and "holds photographs, synthetic parsing is drawn: pass parsing_root" in done.stderr and not (tmp_path/"results").exists()


@pytest.mark.slow
def test_figures_of_the_users_own_pictures(tmp_path, cache):
    "Figures 2 and 6 are made of one's own photographs where asked for, and left out where not"
    make_faces(tmp_path/"celeba", 160); make_parsing(tmp_path/"helen", 40)
    roots = ["-p", "profile", "smoke", "-p", "data_root", tmp_path/"celeba", "-p", "parsing_root", tmp_path/"helen", "-p", "methods", "avg_pool ssp", "-p", "out", tmp_path/"results"]
    for more, there in ((["-p", "pictures", "True"], True), ([], False)):
        done = papermill(NOTEBOOK, tmp_path/"out.ipynb", *roots, *more, cwd=tmp_path, cache=cache)
        assert done.returncode == 0, done.stderr[-2000:]
        page = (tmp_path/"results"/"celeba.html").read_text()
        assert ("(Figure 2)" in page) == ("(Figure 6)" in page) == there
    claims = (tmp_path/"results"/"celeba"/"claims.csv").read_text()
    for weights in (tmp_path/"results"/"runs").glob("[!p]*/model.safetensors"): weights.unlink()   # as of runs that were adopted
    for parser in (tmp_path/"results"/"runs").glob("*/parser"): shutil.rmtree(parser)
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", *roots, "-p", "pictures", "True", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    page, said = (tmp_path/"results"/"celeba.html").read_text(), (tmp_path/"out.ipynb").read_text()
    assert "(Figure 6)" not in page and "No weights here, as of rows adopted from a report: avg_pool (seed 0), ssp (seed 0)" in said
    assert "symbiosis-28" in claims and (tmp_path/"results"/"celeba"/"claims.csv").read_text() == claims   # local channels: asked before


@pytest.mark.slow
@pytest.mark.parametrize("name, more", [("blan", ["experiments", "classifiers cost"]), ("pse", ["lfwa_methods", ""])])
def test_what_a_network_showed_outlives_its_weights(name, more, tmp_path, cache):
    "A reproduction over runs as they are adopted, without weights: every claim is tested as before"
    make_faces(tmp_path/"celeba", 160)
    rest = ["-p", "profile", "smoke", "-p", "data_root", tmp_path/"celeba", "-p", *more, "-p", "out", tmp_path/"results"]
    claims = []
    for again in (False, True):
        done = papermill(ROOT/"nbs"/f"reproduce_{name}.ipynb", tmp_path/"out.ipynb", *rest, cwd=tmp_path, cache=cache)
        assert done.returncode == 0, done.stderr[-2000:]
        claims.append((tmp_path/"results"/name/"claims.csv").read_text())
        for weights in (tmp_path/"results"/"runs").glob("*/model.safetensors"): weights.unlink()
    assert len(claims[0].splitlines()) > 2 and claims[1] == claims[0]


@pytest.mark.slow
def test_the_large_set_of_lfwa_has_settings_of_its_own(tmp_path, cache):
    done = papermill(ROOT/"nbs"/"reproduce_lfwa.ipynb", tmp_path/"out.ipynb", "-p", "profile", "smoke epochs=3", "-p", "large", "epochs=2", "-p", "methods", "avg_pool", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = [json.loads(p.read_text()) for p in (tmp_path/"results"/"runs").glob("avg_pool*/config.json")]
    passes = sorted((c["profile"]["recipe"]["epochs"], "start" in c) for c in runs)
    assert passes == [(2, False), (3, False), (3, True)]


@pytest.mark.slow
@pytest.mark.parametrize("name, share", [("lfwa", "valid_share"), ("wider", "share"), ("berkeley", "valid_share")])
def test_nothing_need_be_held_out(name, share, tmp_path, cache):
    done = papermill(ROOT/"nbs"/f"reproduce_{name}.ipynb", tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", share, 0, "-p", "methods", "inception sa", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    first = next("".join(o["text"]) for c in json.loads((tmp_path/"out.ipynb").read_text())["cells"] for o in c.get("outputs", []) if o["output_type"] == "stream")
    assert "none is held out" in first.splitlines()[0]


def test_without_output_path(tmp_path, cache):
    done = papermill(NOTEBOOK, "-p", "profile", "smoke", "-p", "methods", "avg_pool", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (cache/"reports"/"celeba.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(p.stem for p in sorted((ROOT/"nbs").glob("reproduce_*.ipynb"))), "controls", "strength", "cross"])
def test_every_reproduction_in_smoke(name, tmp_path, cache):
    size = ["trunks", "small: smoke; wider: smoke width=.5"] if name == "strength" else ["profile", "smoke"]
    done = papermill(ROOT/"nbs"/f"{name}.ipynb", tmp_path/"out.ipynb", "-p", *size, "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any((tmp_path/"results"/"runs").glob("*/done.json"))


def test_a_module_has_a_baseline_of_its_own(tmp_path, cache):
    "`pse_b/dmtl`: gained over DMTL; SPPNet* over the first method, and over DMTL too"
    import pandas as pd
    done = papermill(ROOT/"nbs"/"strength.ipynb", tmp_path/"out.ipynb", "-p", "trunks", "small: smoke", "-p", "people", 100, "-p", "methods", "avg_pool spp_net spp_net/dmtl pse_b/dmtl", "-p", "out", tmp_path/"results",
                     cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    read = lambda name: pd.read_csv(tmp_path/"results"/"strength"/f"{name}.csv")
    levels, gains = read("levels").set_index("method").AP, read("gains").query("metric == 'AP'").set_index("method").gain
    over = {"SPPNet*": ("SPPNet*", "Avg. pooling"), "SPPNet* over DMTL (PSE's baseline)": ("SPPNet*", "DMTL (PSE's baseline)"),
            "PSE(b) over DMTL (PSE's baseline)": ("PSE(b)", "DMTL (PSE's baseline)")}
    assert list(gains.index) == list(over)
    for row, (module, baseline) in over.items(): assert abs(gains[row] - (levels[module] - levels[baseline])) < .02


def test_lfwa_asks_general_to_specifics_claims(tmp_path, cache):
    "Its column of Table 1, on the attributes that have networks of their own: not on forty, most of which steps 1 and 2 share"
    import pandas as pd
    from symbiosis_nb.kept import Run
    done = papermill(ROOT/"nbs"/"reproduce_lfwa.ipynb", tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "starts", "alone", "-p", "methods", "g2s_3 g2s_12", "-p", "out", tmp_path/"results",
                     cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    claim = pd.read_csv(tmp_path/"results"/"lfwa"/"claims.csv").set_index("id").loc["general_to_specific-04"]
    third, both = (Run(next((tmp_path/"results"/"runs").glob(f"{m}-*/done.json")).parent) for m in ("g2s_3", "g2s_12"))
    own = list(third.done["networks"])
    assert 0 < len(own) < 40 and own == list(both.done["networks"])
    gap = 100*(third.scores.accuracy[own].mean() - both.scores.accuracy[own].mean())
    assert abs(float(claim.difference) - gap) < .006 and f"mean of {len(own)} attributes" in claim.differs


def test_own_data_in_smoke(tmp_path, cache):
    "The example, and one's own file with a fault: from a folder to a report and a predictor"
    notebook = ROOT/"nbs"/"own_data.ipynb"
    done = papermill(notebook, tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "methods", "avg_pool ssp dmtl", "-p", "groups", "eyes=glasses rest=hat,smiling,fair_hair,moustache,lipstick",
                     "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path/"results"/"own_data.html").read_text()
    assert "my faces, synthetic" in page and "moustache" in page and len(list((tmp_path/"results"/"runs").glob("*/done.json"))) == 4
    csv = next((cache/"synthetic").glob("own-*/faces.csv"))
    (csv.parent/"wrong.csv").write_text(csv.read_text().replace("yes", "maybe", 1))
    done = papermill(notebook, tmp_path/"wrong.ipynb", "-p", "profile", "smoke", "-p", "csv", csv.parent/"wrong.csv", "-p", "out", tmp_path/"more", cwd=tmp_path, cache=cache)
    assert done.returncode != 0 and "'maybe', expected 0 or 1, -1 or 1" in done.stderr and not (tmp_path/"more").exists()


def test_own_data_of_ones_own(tmp_path, cache):
    "Another tool's file under a name of one's own, with drawn regions: said, and not refused"
    import pandas as pd
    from PIL import Image
    (tmp_path/"shots").mkdir()
    for i in range(60): Image.new("RGB", (40, 50), (4*i, 90, 200 - 3*i)).save(tmp_path/"shots"/f"{i:03d}.webp")
    pd.DataFrame(dict(id=[f"{i:03d}" for i in range(60)], bright=[i > 30 for i in range(60)], odd=[i % 2 for i in range(60)])).to_csv(tmp_path/"shots.csv", index=False)
    done = papermill(ROOT/"nbs"/"own_data.ipynb", tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "csv", tmp_path/"shots.csv", "-p", "images", tmp_path/"shots", "-p", "methods", "avg_pool ssp", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "learns its regions from drawings" in (tmp_path/"out.ipynb").read_text() and "shots" in (tmp_path/"results"/"own_data.html").read_text()
