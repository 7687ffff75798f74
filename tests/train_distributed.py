"Train a trunk without batch statistics on as many processes as torchrun started; rank 0 writes world size and weights."
import json
import os
import sys

import numpy as np
import torch
from torch import nn

from symbiosis_nb.core import seed_everything
from symbiosis_nb.data.loaders import Field, attribute_dls
from symbiosis_nb.learner import attribute_learner, distributed
from symbiosis_nb.methods import Recipe
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.vocab import CELEBA

out, bs = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
rng = np.random.default_rng(0)
n = 96
table = AttributeTable("noise", CELEBA, [f"{i}.jpg" for i in range(n)], rng.integers(0, 2, (n, 40)), np.ones((n, 40)), ["train"]*64 + ["valid"]*32)
seed_everything(0)
dls = attribute_dls(table, [Field("image", rng.integers(0, 255, (n, 12, 12, 3), dtype=np.uint8))], bs=bs, augment=None, device=torch.device("cpu"))
model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(100, 40))
flat = lambda: torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
start = flat()
learn = attribute_learner(dls, model, precision="float32", metrics=[])
with distributed(learn), learn.no_bar(), learn.no_logging(): learn.fit_recipe(Recipe(lr=.05, epochs=2, optimizer="sgd", wd=0.))
world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
assert world == int(os.environ.get("WORLD_SIZE", 1))
if int(os.environ.get("RANK", 0)) == 0:
    with open(out, "w") as f: json.dump(dict(world=world, start=start, weights=flat()), f)
