"""What every method got to choose: three learning rates on the validation split of the synthetic faces, with a seed that no report uses.

    python scripts/tuning.py RUNS [METHOD ...]    # writes reports/tuning_synthetic.csv from finished and new runs in the folder RUNS

The demo profile trains all methods at one rate; the file shows what that costs each of them. The test split is not looked at."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from symbiosis_nb import metrics as M
from symbiosis_nb.core import atomic_write
from symbiosis_nb.data.sources import open_faces, open_parsing
from symbiosis_nb.methods import METHODS, PROFILES
from symbiosis_nb.runs import run

RATES, SEED = (2e-3, 4e-3, 8e-3), 100
MAY_CHOOSE = [m for m in METHODS.values() if not m.parts and not m.chain and not m.same_as]


def main(runs, *names):
    table, parsing, rows = open_faces(profile="demo"), open_parsing(profile="demo"), []
    for name in names or [m.name for m in MAY_CHOOSE]:
        score = {lr: 100*np.nanmean(M.average_precision(*run(name, table, "demo", SEED, runs, parsing, lr=lr).predictions("valid"))) for lr in RATES}
        used = score[PROFILES["demo"].recipe.lr]
        rows.append(dict(method=name, **{f"rate {lr:g}": round(v, 2) for lr, v in score.items()}, lost_by_the_common_rate=round(max(score.values()) - used, 2)))
        print(rows[-1], flush=True)
    with atomic_write(Path(__file__).parents[1]/"reports/tuning_synthetic.csv") as tmp: pd.DataFrame(rows).to_csv(tmp, index=False)


if __name__ == "__main__": main(*sys.argv[1:])
