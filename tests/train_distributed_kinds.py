"Train one kind of batch (masks, mixed, crops, adversarial) on as many processes as torchrun started; rank 0 writes world size and weights."
import json
import os
import sys

import numpy as np
import torch
from torch import nn

from symbiosis_nb.core import seed_everything
from symbiosis_nb.data.loaders import Field, attribute_dls, mixed_dls
from symbiosis_nb.data.tables import AttributeTable, ParsingTable
from symbiosis_nb.learner import adversarial_learner, attribute_learner, distributed
from symbiosis_nb.losses import JointLoss
from symbiosis_nb.methods import Recipe
from symbiosis_nb.models.abstraction import GlobalGenerator, MultiscaleDiscriminator, init_gan
from symbiosis_nb.models.adversarial import Adversary
from symbiosis_nb.needs.abstraction import PairDL
from fastai.data.core import DataLoaders
from symbiosis_nb.vocab import CELEBA, HELEN

out, bs, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
rng, n, cpu = np.random.default_rng(0), 96, torch.device("cpu")
bytes_of = lambda *shape: rng.integers(0, 255, shape, dtype=np.uint8)
table = AttributeTable("noise", CELEBA, [f"{i}.jpg" for i in range(n)], rng.integers(0, 2, (n, 40)), np.ones((n, 40)), ["train"]*64 + ["valid"]*32)
image = Field("image", bytes_of(n, 16, 16, 3), crop=(12, 12) if kind == "crops" else None)


class Net(nn.Module):
    "A trunk without batch statistics; masks lie beside the picture"
    def __init__(self, masks=0):
        super().__init__()
        self.first, self.head = nn.Conv2d(3 + masks, 4, 3, 2, 1), nn.Linear(4, 40)
    def forward(self, x, *more): return self.head(self.first(torch.cat([x, *more], 1)).relu().mean((2, 3)))


class Joint(Net):
    "Both answers while it is trained, logits alone otherwise"
    joint = False
    def __init__(self): super().__init__(); self.parts = nn.Conv2d(4, len(HELEN), 1)
    def forward(self, x):
        x = self.first(x).relu(); logits = self.head(x.mean((2, 3)))
        return (logits, self.parts(x)) if self.joint else logits
    def training_outputs(self, x): return self.forward(x)


def masks():
    fields = [image, Field("maps", bytes_of(n, len(HELEN), 16, 16), HELEN)]
    return attribute_learner(attribute_dls(table, fields, bs, None, device=cpu), Net(len(HELEN)), precision="float32", metrics=[])


def crops(): return attribute_learner(attribute_dls(table, [image], bs, None, device=cpu), Net(), precision="float32", metrics=[])


def mixed():
    parsing = ParsingTable("noise", HELEN, [f"{i}.jpg" for i in range(48)], ["train"]*32 + ["valid"]*16, lambda i: None)
    labels = bytes_of(48, 16, 16) % len(HELEN)
    dls = mixed_dls(table, image, parsing, Field("image", bytes_of(48, 16, 16, 3)), labels, bs, None, device=cpu)
    return attribute_learner(dls, Joint(), JointLoss(), precision="float32", metrics=[])


def adversarial():
    pictures = [Field("image", bytes_of(64, 32, 32, 3)), Field("picture", bytes_of(64, 32, 32, 3))]
    def one(train):
        dl = PairDL(list(range(64)), pictures, None, bs=bs, shuffle=train, drop_last=train, num_workers=0, device=cpu); dl.n_inp = 1
        return dl
    model = Adversary(init_gan(GlobalGenerator(4, 2, 1)), init_gan(MultiscaleDiscriminator(4, 1)))
    return adversarial_learner(DataLoaders(one(True), one(False)), model, precision="float32")


seed_everything(0)
learn = dict(masks=masks, crops=crops, mixed=mixed, adversarial=adversarial)[kind]()
model = learn.model
flat = lambda: torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
start = flat()
rate = 1e-3 if kind == "adversarial" else .05
with distributed(learn), learn.no_bar(), learn.no_logging(): learn.fit_recipe(Recipe(lr=rate, epochs=2, optimizer="sgd", wd=0.))
world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
assert world == int(os.environ.get("WORLD_SIZE", 1))
if int(os.environ.get("RANK", 0)) == 0:
    with open(out, "w") as f: json.dump(dict(world=world, start=start, weights=flat()), f)
