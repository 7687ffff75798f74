"""What every method got to choose: three learning rates on the validation split, with a seed that no report uses.

    python scripts/tuning.py RUNS [METHOD ...]                               # synthetic faces, demo: reports/tuning_synthetic.csv
    python scripts/tuning.py RUNS --lfwa ROOT --parsing ROOT [METHOD ...]    # LFWA, a pretrained trunk: reports/tuning_lfwa.csv

A profile trains all methods at one rate; the file shows what that costs each of them. Finished runs in the folder RUNS are read, others
are trained. The test split is not looked at."""
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

SEED = 100
DRAWN, REAL = "demo", "onecycle size=112x92 epochs=4"
RATES = {DRAWN: (2e-3, 4e-3, 8e-3), REAL: (2e-3, 6e-3, 2e-2)}
MAY_CHOOSE = [m.name for m in METHODS.values() if not m.parts and not m.chain and not m.same_as]
REAL_METHODS = "avg_pool", "ssp"   # a rate takes ten minutes here


def opened(a) -> tuple:
    "Profile, faces, parsing pictures, and the file's name"
    if a.lfwa is None: return DRAWN, open_faces(profile="demo"), open_parsing(profile="demo"), "tuning_synthetic.csv"
    faces = held_out(open_lfwa(a.lfwa, REAL, "aligned", valid_share=0), .1)
    return REAL, faces, parsing_part(open_parsing(a.parsing, REAL)), "tuning_lfwa.csv"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", help="folder of runs")
    p.add_argument("methods", nargs="*")
    p.add_argument("--lfwa", help="folder of LFWA")
    p.add_argument("--parsing", help="folder of CelebAMask-HQ or Helen")
    a = p.parse_args()
    if bool(a.lfwa) != bool(a.parsing): p.error("--lfwa and --parsing go together: region methods learn regions from photographs")
    profile, faces, parsing, file = opened(a)
    used, rows = make_profile(profile).recipe.lr, []
    for name in a.methods or (REAL_METHODS if a.lfwa else MAY_CHOOSE):
        valid = lambda lr: run(name, faces, profile, SEED, a.runs, parsing, lr=lr).predictions("valid")
        score = {lr: 100*np.nanmean(M.average_precision(*valid(lr))) for lr in RATES[profile]}
        rows.append(dict(method=name, **{f"rate {lr:g}": round(v, 2) for lr, v in score.items()}, lost_by_the_common_rate=round(max(score.values()) - score[used], 2)))
        print(rows[-1], flush=True)
    with atomic_write(Path(__file__).parents[1]/"reports"/file) as tmp: pd.DataFrame(rows).to_csv(tmp, index=False)


if __name__ == "__main__": main()
