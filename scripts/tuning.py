"""What every method got to choose: three learning rates on the validation split.

    python scripts/tuning.py RUNS [METHOD ...]                                    # synthetic faces, demo: reports/tuning_synthetic.csv
    python scripts/tuning.py RUNS --lfwa ROOT --parsing ROOT [METHOD ...]         # a pretrained trunk: reports/tuning_lfwa.csv
    python scripts/tuning.py RUNS --celeba_46k ROOT --parsing ROOT [METHOD ...]   # the same on more faces: reports/tuning_celeba_46k.csv

A profile trains all methods at one rate; the files show what that costs each of them. Finished runs in the folder RUNS are read, others
are trained. The test split is not looked at. The seed is one that no report uses; on photographs, where a run takes up to half an hour, it is theirs."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from symbiosis_nb import metrics as M
from symbiosis_nb.core import atomic_write
from symbiosis_nb.data.parts import held_out, parsing_part
from symbiosis_nb.data.sources import open_faces, open_lfwa, open_parsing
from symbiosis_nb.methods import METHODS, make_profile
from symbiosis_nb.runs import run

MAY_CHOOSE = [m.name for m in METHODS.values() if not m.parts and not m.chain and not m.same_as]
SETS = dict(   # profile, rates, seed, methods
    synthetic=("demo", (2e-3, 4e-3, 8e-3), 100, MAY_CHOOSE),
    lfwa=("onecycle size=112x92 epochs=4", (2e-3, 6e-3, 1.2e-2), 0, ("avg_pool", "ssp", "sa")),
    celeba_46k=("onecycle size=112x92 epochs=2", (2e-3, 6e-3, 1.2e-2), 0, ("avg_pool",)))


def faces_of(name: str, root: str, profile: str):
    if name == "lfwa": return held_out(open_lfwa(root, profile, "aligned", valid_share=0), .1)
    return open_faces(root or "", profile=profile)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", help="folder of runs")
    p.add_argument("methods", nargs="*")
    one = p.add_mutually_exclusive_group()
    one.add_argument("--lfwa", help="folder of LFWA")
    one.add_argument("--celeba_46k", help="folder of CelebA, or of a part of it")
    p.add_argument("--parsing", help="folder of CelebAMask-HQ or Helen")
    a = p.parse_args()
    name = "lfwa" if a.lfwa else "celeba_46k" if a.celeba_46k else "synthetic"
    root = a.lfwa or a.celeba_46k
    if bool(root) != bool(a.parsing): p.error("a set of photographs and --parsing go together: region methods learn regions from photographs")
    profile, rates, seed, methods = SETS[name]
    faces, parsing = faces_of(name, root, profile), open_parsing(a.parsing or "", profile)
    if root: parsing = parsing_part(parsing)
    used, rows = make_profile(profile).recipe.lr, []
    for method in a.methods or methods:
        valid = lambda lr: run(method, faces, profile, seed, a.runs, parsing, lr=lr).predictions("valid")
        score = {lr: 100*float(np.nanmean(M.average_precision(*valid(lr)))) for lr in rates}
        lost = max(score.values()) - score[used]
        rows.append(dict(method=method, **{f"rate {lr:g}": round(v, 2) for lr, v in score.items()}, lost_by_the_common_rate=round(lost, 2)))
        print(rows[-1], flush=True)
    with atomic_write(Path(__file__).parents[1]/f"reports/tuning_{name}.csv") as tmp: pd.DataFrame(rows).to_csv(tmp, index=False)


if __name__ == "__main__": main()
