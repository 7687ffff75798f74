"""CelebA's size without CelebA: where the time and the memory of a whole study go, on made-up files and made-up predictions.

    python scripts/full_size.py layout FOLDER      # 202,599 hard links to 4,000 drawn faces, in the official layout; some minutes
    python scripts/full_size.py reading FOLDER     # the table and its digest, twice
    python scripts/full_size.py plan FOLDER        # what all methods with three seeds would cost here, profile "paper"
    python scripts/full_size.py sampling FOLDER    # runs in FOLDER: average pooling on pictures decoded, averaged and sampled, and sampled alone; what it costs in AP, in FOLDER/sampling.csv
    python scripts/full_size.py card FOLDER OUT    # 19 methods x 3 seeds of made-up predictions in OUT: tables and page, made anew and read again
    python scripts/full_size.py study FOLDER OUT   # one epoch of avg_pool and ssp at 40x32 on all 162,770: from the files to the page; then all of it again, read

Every part prints seconds and the peak of the process's resident memory. Nothing here is a result: the predictions of `card` are noise around
the labels, the faces of `study` are 4,000 drawn ones, many times, and `sampling` compares on drawn faces alone."""
import argparse
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from symbiosis_nb import metrics, stats
from symbiosis_nb.claims import Ledger, scored_card
from symbiosis_nb.data.official import celeba
from symbiosis_nb.data.parts import parsing_part
from symbiosis_nb.data.pixels import SizedStore
from symbiosis_nb.data.sources import open_faces, open_parsing
from symbiosis_nb.data.synthetic import make_faces
from symbiosis_nb.jobs import make_job
from symbiosis_nb.kept import FILES, Run, is_finished, keep, score
from symbiosis_nb.methods import METHODS
from symbiosis_nb.needs import base
from symbiosis_nb.page import write_html
from symbiosis_nb.plan import plan
from symbiosis_nb.report import Card, write_tables
from symbiosis_nb.runs import run
from symbiosis_nb.training import _forget_peak, _peak_memory

SPLITS = (162_770, 19_867, 19_962)   # training, validation, test: 8,192, 985 and 1,000 people


PEAKS = []   # of what was measured inside of what is being measured


@contextmanager
def measured(what: str):
    "Print seconds and peak memory of a block"
    outside, PEAKS[:] = list(PEAKS), []
    _forget_peak()
    start, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, busy = time.perf_counter() - start, time.process_time() - cpu
    peak = max([_peak_memory(), *PEAKS])
    PEAKS[:] = [*outside, peak]
    print(f"{what:60} {seconds:8.1f} s  ({busy:.1f} s of computing)  {peak:8,.0f} MiB", flush=True)


def rows_of(file: Path) -> list:
    "Lines of an annotation without its headings"
    return [line for line in file.read_text().splitlines() if ".jpg" in line]


def make_layout(root: Path, drawn: int = 4000):
    "The official layout at its official size, every file a hard link to one of a few drawn faces"
    source, n = root/"drawn", sum(SPLITS)
    make_faces(source, drawn, cue_masks=True)
    images = root/"Img"/"img_align_celeba"; images.mkdir(parents=True, exist_ok=True)
    names = [f"{i + 1:06d}.jpg" for i in range(n)]
    first = sorted(p.name for p in (source/"Img"/"img_align_celeba").iterdir())
    for i, name in enumerate(names):
        if not (images/name).exists(): os.link(source/"Img"/"img_align_celeba"/first[i % drawn], images/name)
    for file in ("Anno/list_attr_celeba.txt", "Anno/list_landmarks_align_celeba.txt"):
        lines = (source/file).read_text().splitlines()
        heading, values = lines[1], [line.split(maxsplit=1)[1] for line in lines[2:]]
        write(root/file, [str(n), heading, *(f"{name} {values[i % drawn]}" for i, name in enumerate(names))])
    part = np.repeat([0, 1, 2], SPLITS)
    people = np.concatenate([start + np.arange(k)*m//k for start, k, m in zip((1, 8193, 9178), SPLITS, (8192, 985, 1000))])
    write(root/"Eval"/"list_eval_partition.txt", [f"{name} {p}" for name, p in zip(names, part)])
    write(root/"Anno"/"identity_CelebA.txt", [f"{name} {p}" for name, p in zip(names, people)])


def write(file: Path, lines: list):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def reading(root: Path):
    "The table, and the digest of its pictures"
    with measured("table of 202,599 pictures"): table = celeba(root)
    with measured("digest of the pictures"): table.pixels_digest
    with measured("table again"): table = celeba(root)
    with measured("digest again"): table.pixels_digest
    return table


def whole_plan(root: Path, out: Path, seeds: int = 3):
    "The plan of the paper profile for every method, weights that no package brings from scratch; then again, when every method was timed"
    table = replace(celeba(root), name="synthetic faces, as many as CelebA's")
    with measured("digest of the pictures"): table.digest
    parsing = open_parsing(profile="smoke")
    for again in ("", " again"):
        with measured(f"plan of {seeds*len(METHODS)} runs{again}"): planned = plan(list(METHODS), table, "paper", seeds, out/"planned", parsing, "scratch")
    print(planned.first_line(), planned, *planned.refusals, sep="\n")


def made_up(table, skill: float, seed: int) -> dict:
    "Predictions of a run of a certain skill, as `predictions.npz` has them"
    rng, arrays = np.random.default_rng(seed), {}
    for split in ("valid", "test"):
        rows = table.split == split
        targets = np.where(table.known[rows], table.labels[rows], np.nan).astype(np.float32)
        for which in ("selected", "last"):
            noise = rng.normal(size=targets.shape).astype(np.float32)
            arrays[f"{split}_{which}"] = noise + skill*(2*np.nan_to_num(targets) - 1) - 1
        arrays[f"{split}_targets"] = targets
    test = table.split == "test"
    names = np.array([table.paths[i].name for i in np.flatnonzero(test)])
    return arrays | dict(test_names=names, test_identity=table.identity[test], train_prevalence=table.prevalence("train"))


def made_up_run(name: str, table, seed: int, out: Path) -> Run:
    "A finished folder that nothing was trained for"
    folder = out/f"{name}-made-up-s{seed}"
    if is_finished(folder, FILES): return Run(folder)
    arrays = made_up(table, 1 + .02*list(METHODS).index(name), 100*seed + list(METHODS).index(name))
    settings = dict(name="paper", size=[218, 178], backbone="made up", width=1., weights=None, recipe={})
    config = dict(method=name, paper=METHODS[name].paper, data=table.name, data_digest=table.digest, frame=table.frame, counts=table.counts(), vocab=table.vocab.name,
                  attributes=list(table.names), profile=settings, seed=seed, options={}, parsing=None, learned_from=[table.name])
    costs = dict(parameters=1, multiply_adds=1, training_seconds=1., predict_images_per_second=1., peak_memory_mib=1., hardware="none: made up")
    log = pd.DataFrame(dict(epoch=[0, 1], train_loss=[.7, .5], valid_loss=[.7, .6], mAP=[.5, .6], balanced_accuracy=[.5, .6], accuracy=[.8, .9]))
    keep(folder, config, dict(cost=costs, notes=[], selected_epoch=1, bad_images=0), score(arrays, table.vocab), log, predictions=arrays)
    return Run(folder)


def whole_card(runs: list, table, out: Path, again: str = ""):
    "Everything that a reproduction notebook makes of its runs, but for pictures of the data"
    card = Card(runs, table)
    with measured(f"bootstrap replicates of all runs{again}"): card.each
    with measured(f"score frames of all runs{again}"): card.scored
    with measured(f"tables{again}"): write_tables(card, out/"tables")
    with measured(f"claims{again}"):
        ledger = Ledger("all", table.name, out/"tables")
        ledger.test("symbiosis-02 symbiosis-03 symbiosis-04 symbiosis-10", scored_card(card))
    with measured(f"page{again}"): write_html(card, out/"card.html", "Made up, no result", claims=ledger.shown())


def card(root: Path, out: Path, seeds: int = 3):
    "The card of every method with three seeds, made anew and read again"
    table = reading(root)
    with measured(f"{seeds*len(METHODS)} made-up runs (not part of a study)"):
        runs = [made_up_run(name, table, seed, out/"runs") for seed in range(seeds) for name in METHODS]
    for kept in (out/"runs").glob("*/computed/*"): kept.unlink()
    r = runs[0]
    with measured("one run: weights of 1,000 replicates"): weights = stats.cluster_weights(r.clusters, len(r.predictions()[0]))
    with measured("one run: 1,000 replicates of average precision"): stats.bootstrap(metrics.average_precision, *r.predictions(), weights)
    with measured("one run: score frame with tuned thresholds"): score(r.arrays, table.vocab)
    with measured("the whole card"): whole_card(runs, table, out)
    with measured("the whole card, again"): whole_card([Run(r.folder) for r in runs], table, out, ", again")


def study(root: Path, out: Path):
    "What a person with all of CelebA goes through, with the smallest network: reading, plan, two trainings, predictions, card, page"
    table = replace(reading(root), name="synthetic faces, as many as CelebA's")
    parsing, profile, names = parsing_part(open_parsing(profile="demo")), "demo size=40x32 epochs=1", ["avg_pool", "ssp"]
    with measured("plan"): planned = plan(names, table, profile, 1, out/"runs", parsing)
    print(planned.first_line(), planned, *planned.refusals, sep="\n")
    for again in ("", ", again"):
        with measured(f"average pooling: pixels, one epoch, predictions{again}"): first = run("avg_pool", table, profile, out=out/"runs", parsing=parsing)
        with measured(f"SSP: parser, masks, one epoch, predictions{again}"): second = run("ssp", table, profile, out=out/"runs", parsing=parsing)
        with measured(f"card and page{again}"): whole_card([first, second], table, out, again)
    for r in (first, second): print(r.method, {k: round(v, 1) for k, v in r.done["cost"].items() if isinstance(v, float)})


WAYS = dict(decoded=dict(native=False), averaged=dict(native=True), skipped=dict(native=True))   # how pictures come to their size


def sampling(out: Path, profile: str = "demo", seeds: int = 3):
    "Average pooling on drawn faces at the profile's size, trained on pictures of each way: differences of mean AP in points, with the interval over test people"
    table, runs = open_faces(profile=profile), {}
    for way, how in WAYS.items():
        base.SizedStore = partial(SizedStore, smooth=way != "skipped")
        with measured(f"{seeds} runs, {way}"): runs[way] = [run("avg_pool", table, profile, seed=s, out=out/way, precision="float32", **how) for s in range(seeds)]
    for way in ("averaged", "skipped"):
        each = [stats.compare(metrics.average_precision, b.predictions()[0], a.predictions()[0], *a.predictions()[1:], a.clusters) for a, b in zip(runs["decoded"], runs[way])]
        print(f"{way} - decoded, seed by seed:", *(f"{100*e['difference']:+.2f} [{100*e['low']:+.2f}, {100*e['high']:+.2f}]" for e in each))
    found = compared(runs).round(2)
    found.to_csv(out/"sampling.csv", index_label="pictures")
    print(found.to_string())


def compared(runs: dict) -> pd.DataFrame:
    "Differences of the mean over seeds, in points of AP; replicates draw test people, the same for all runs"
    first = runs["decoded"][0]
    weights = stats.cluster_weights(first.clusters, len(first.predictions()[0]))
    drawn = {way: np.mean([stats.bootstrap_mean(metrics.average_precision, *r.predictions(), weights) for r in rs], 0) for way, rs in runs.items()}
    found = {way: np.mean([np.nanmean(metrics.average_precision(*r.predictions())) for r in rs]) for way, rs in runs.items()}
    spread = {way: np.std([np.nanmean(metrics.average_precision(*r.predictions())) for r in rs], ddof=1) if len(rs) > 1 else np.nan for way, rs in runs.items()}
    rows = {f"{way} - decoded": stats.paired(found[way] - found["decoded"], drawn[way] - drawn["decoded"]) for way in ("averaged", "skipped")}
    points = 100*pd.DataFrame(rows).T.assign(seeds_apart=[spread[w] for w in ("averaged", "skipped")])
    return points[["difference", "low", "high", "seeds_apart"]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layout", "reading", "plan", "sampling", "card", "study"))
    parser.add_argument("root", type=Path, help="folder of the layout")
    parser.add_argument("out", type=Path, nargs="?", help="folder of runs")
    parser.add_argument("--profile", default="demo", help="of `sampling`: \"smoke\" tries it, changes may follow, as in \"demo epochs=12\"")
    parser.add_argument("--seeds", type=int, default=3, help="of `sampling`")
    given = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    if given.what == "layout": make_layout(given.root)
    if given.what == "reading": reading(given.root)
    if given.what == "plan": whole_plan(given.root, given.out or given.root)
    if given.what == "sampling": sampling(given.root, given.profile, given.seeds)
    if given.what == "card": card(given.root, given.out or sys.exit("give a folder for the made-up runs"))
    if given.what == "study": study(given.root, given.out or sys.exit("give a folder for the runs"))
