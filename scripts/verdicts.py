"""Which verdicts of the side-by-side cards changed since an older commit, and by which repair.

    python scripts/verdicts.py COMMIT     # writes reports/verdicts.csv

Numbers are read from the kept `claims.csv`, `own_comparisons.csv` and `comparisons.csv`, then and now; the words say what was repaired in between."""
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
CARDS = dict(celeba_synthetic="synthetic faces", celeba_sample="a sample: 10,000 CelebA faces")
SSG = "SSG's convolutions start by He, and its BN makes every region normal"
PARSER = "the parser learns from more pictures, and for twice as many passes"
GENERATOR = "the generator is trained in the frame that it is used in, and moved as widely as the parser"
PSE = "PSE's loss is summed, its head is the paper's"
BLAN = "BLAN's gates are alive at the start, and its fusion learns in a short run"
# the claim as it was worded, its id today (or the row of comparisons that is no claim of a paper), what was repaired
PAIRS = (
    ("SSP beats average pooling (symbiosis)", "symbiosis-06", PARSER),
    ("SSG beats average pooling (symbiosis)", "symbiosis-07", f"{SSG}; {PARSER}"),
    ("SSP + SSG beats SSP (symbiosis)", "symbiosis-10", f"one claim of two parts now; {SSG}"),
    ("SSP + SSG beats SSG (symbiosis)", "symbiosis-10", f"one claim of two parts now; {SSG}"),
    ("SPPNet* is not better than average pooling (symbiosis)", "symbiosis-12", "worded as in the list: the pyramid is worse"),
    ("Naive and average pooling are about equal (symbiosis)", "symbiosis-13", f"a margin fixed beforehand; {PARSER}"),
    ("masks beat boxes (symbiosis)", "symbiosis-16", PARSER),
    ("SA beats its baseline (symbiosis)", "symbiosis-19", "SA sees the parsing set's tuning pictures too"),
    ("BLAN beats average pooling (blan)", "BLAN − Avg. pooling", f"a comparison of our own now; {BLAN}"),
    ("PSE(a) beats its baseline (pse)", "pse-01", f"asked in accuracy, as the paper does; {PSE}"),
    ("PSE(b) beats its baseline (pse)", "pse-02", f"asked in accuracy, as the paper does; {PSE}"),
    ("PSE(a) and PSE(b) are about equal (pse)", "pse-05", f"asked in accuracy, with a margin fixed beforehand; {PSE}"),
    ("photo and abstraction beat photo (abstraction)", "abstraction-01", f"one order in accuracy now; {GENERATOR}"),
    ("photo beats abstraction alone (abstraction)", "abstraction-01", f"one order in accuracy now; {GENERATOR}"),
    ("step 2 adds to step 1 (general_to_specific)", "general_to_specific-10", "asked in accuracy, of both later steps together"),
    ("step 3 adds to steps 1 and 2 (general_to_specific)", "general_to_specific-10", "asked in accuracy, of both later steps together"))


def then(commit, path):
    "A kept table as it was; None where it was not kept"
    done = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode else pd.read_csv(io.StringIO(done.stdout), dtype=str, keep_default_na=False)


def now(card):
    "Every tested row of a card by its id, those of our own by their name"
    text = dict(dtype=str, keep_default_na=False)
    rows = {r["id"]: r for r in pd.read_csv(ROOT/"reports"/card/"claims.csv", **text).to_dict("records")}
    own = ROOT/"reports"/card/"comparisons.csv"
    for r in pd.read_csv(own, **text).to_dict("records"):
        name = next(iter(r.values()))
        verdict = {"above": "holds", "below": "does not hold"}.get(r["standing"], "cannot tell")
        rows[name] = {**r, "metric": "AP", "interval": f"[{r['low']}, {r['high']}]", "verdict": verdict}
    return rows


def main():
    out, commit = [], sys.argv[1]
    for card, measured in CARDS.items():
        before, today = then(commit, f"reports/{card}/claims.csv"), now(card)
        before = {r["claim"]: r for r in before.to_dict("records")}
        for claim, id, repair in PAIRS:
            if claim not in before or id not in today: continue
            old, new = before[claim], today[id]
            short = lambda v: v.split(":")[0]
            was, found = short(old["verdict"]), short(new["verdict"])
            out.append({"measured on": measured, "claim": claim, "id": id, "before (AP)": f"{old['difference']} {old['interval']}",
                        "verdict before": was, "metric now": new["metric"], "now": f"{new['difference']} {new['interval']}",
                        "verdict now": found, "changed": "yes" if was != found else "", "repair": repair})
    pd.DataFrame(out).to_csv(ROOT/"reports"/"verdicts.csv", index=False)


if __name__ == "__main__": main()
