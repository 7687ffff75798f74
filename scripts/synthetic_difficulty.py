"""How hard are the synthetic faces? Plain average pooling at the demo profile's size and schedule, between its floor and its ceiling.

    python scripts/synthetic_difficulty.py [FOLDER]    # writes reports/synthetic_difficulty.json; minutes on two cores

Floor: every score equal, so the average precision is the prevalence. Ceiling: the same trunk and schedule, but told for every face and attribute which
pixels belong to it (the cue mask, which is the same whether the attribute is on or off), features averaged there as well. Limit: what the true labels
would score against the written, noisy ones. Decoys, poses and sizes of cues were set by looking at the first and second rows alone."""
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits

from symbiosis_nb.core import cache_dir, write_json
from symbiosis_nb.data import synthetic as S
from symbiosis_nb.data.tables import read_image
from symbiosis_nb.methods import PROFILES
from symbiosis_nb.models.backbones import backbone

DEMO = PROFILES["demo"]
SIZE, EPOCHS, BATCH, LR = DEMO.size, DEMO.recipe.epochs, DEMO.recipe.bs, DEMO.recipe.lr


class Pooled(nn.Module):
    "Average pooling; with masks, also averages over each attribute's own place on the last two maps"
    def __init__(self, places):
        super().__init__()
        self.trunk, self.places = backbone("small"), places
        *_, c, d = self.trunk.channels
        self.head = nn.Linear(d, 40)
        if places: self.own = nn.ParameterList([torch.randn(40, k)*k**-.5 for k in (c, d)])

    def forward(self, x, masks):
        *_, a, b = self.trunk.taps(x)
        logits = self.head(b.mean((2, 3)))
        for maps, weight in zip((a, b), self.own if self.places else ()):
            share = adaptive_avg_pool2d(masks.float(), maps.shape[-2:])
            logits = logits + torch.einsum("bahw,bchw,ac->ba", share/(share.sum((2, 3), keepdim=True) + 1e-3), maps, weight)
        return logits


def run(places, x, masks, labels, train, test):
    "Train on the written labels of `train`; probabilities (n, 40) for `test`"
    torch.manual_seed(0)
    model, order = Pooled(places), np.random.default_rng(0)
    opt = torch.optim.AdamW(model.parameters(), LR, weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, LR, total_steps=EPOCHS*(len(train)//BATCH), pct_start=.25)

    def step(rows, flip=False):
        m = torch.from_numpy(np.unpackbits(masks[rows], -1).reshape(-1, 40, *SIZE)) if places else None
        views = x[rows].float()/255 - .45
        return model(views.flip(-1) if flip else views, m.flip(-1) if flip and places else m)
    for _ in range(EPOCHS):
        for rows in order.permutation(train)[:len(train)//BATCH*BATCH].reshape(-1, BATCH):
            loss = binary_cross_entropy_with_logits(step(rows, order.random() < .5), torch.from_numpy(labels[rows]).float())
            opt.zero_grad(); loss.backward(); opt.step(); schedule.step()
    model.eval()
    with torch.no_grad(): return torch.cat([step(rows) for rows in np.array_split(test, 10)]).sigmoid().numpy()


def main(folder=None):
    folder = Path(folder or cache_dir()/"synthetic_faces")
    table, faces = S.make_faces(folder), S.sample_faces(5000)[0]
    train, test = (np.flatnonzero(table.split == s) for s in ("train", "test"))
    x = torch.from_numpy(np.stack([np.asarray(read_image(p).resize(SIZE[::-1], 2)) for p in table.paths])).permute(0, 3, 1, 2)
    masks = np.concatenate(S.in_parallel(lambda r: np.packbits(S.cues(faces.take(r)).reshape(-1, 40, 5120), -1), 5000, "cue masks", 125))
    truth, written = faces.labels[test], table.labels[test]
    rows = {"floor": written.mean(0)[None].repeat(len(test), 0), "average pooling": run(False, x, masks, table.labels, train, test),
            "ceiling": run(True, x, masks, table.labels, train, test), "limit": truth.astype(float)}
    ap = lambda y, p: [round(float(average_precision_score(y[:, j], p[:, j])), 4) for j in range(40)]
    write_json(Path(__file__).parents[1]/"reports/synthetic_difficulty.json", dict(
        what="synthetic faces, n=5000, seed=0, 1,000 test pictures; average precision against written and against true labels",
        schedule=dict(size=SIZE, epochs=EPOCHS, batch=BATCH, lr=LR, trunk="small", seed=0), version=S.VERSION, names=table.names,
        rows={k: dict(written=ap(written, p), true=ap(truth, p), accuracy=round(float(((p > .5) == written).mean()), 4)) for k, p in rows.items()}))


if __name__ == "__main__": main(*sys.argv[1:])
