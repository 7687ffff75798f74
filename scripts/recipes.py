"Write reports/recipes.csv: what profile=\"paper\" trains, for every method on every data set whose numbers its paper prints. Usage: python scripts/recipes.py [FILE]"
import sys
from pathlib import Path

import pandas as pd

from symbiosis_nb.jobs import helper_recipes, paper_recipe
from symbiosis_nb.methods import METHODS, VARIANTS, get_method
from symbiosis_nb.published import published

NAMES = dict(CelebA="CelebA", LFWA="LFWA", WIDER_Attribute="WIDER", Berkeley_Attributes_of_People="Berkeley")   # as printed tables call a set


def printed_on(method):
    "The data sets on which a method's rows are printed"
    rows = {(r[0], r[2]) for r in get_method(method).rows}
    found = {d for paper, row in rows for d in published(paper).query("method == @row").dataset}
    return [NAMES[d] for d in NAMES if d in found] or ["CelebA", "LFWA"]


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]/"reports"/"recipes.csv")
    names = [*METHODS, *VARIANTS]
    rows = [paper_recipe(m, d) for m in names for d in printed_on(m)]
    rows += [paper_recipe(m, "CelebA", trunk) for m in names for trunk in get_method(m).trunks] + helper_recipes()
    pd.DataFrame(rows, dtype=object).to_csv(out, index=False)
    print(f"{out}: {len(rows)} rows")
