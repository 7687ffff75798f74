"The models' contract: hooks of any module, and rooms that import nothing they do not need"
import os
import subprocess
import sys
from pathlib import Path

import pytest, torch
from torch import nn

from symbiosis_nb.models.abstraction import AbstractionNet, DualPath
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.contract import AttributeModel, hooks
from symbiosis_nb.models.controls import GridSSP, NormedAvgPool, TemplateSSP, UnparsedSA
from symbiosis_nb.models.gating import Averaged, SSGNet
from symbiosis_nb.models.ladder import BLAN
from symbiosis_nb.models.pooling import AvgPool, BBoxNet, NaiveNet, SPPNet, SSPNet
from symbiosis_nb.models.position import GroupNet, PSENet
from symbiosis_nb.models.specific import JointNet
from symbiosis_nb.models.symbiotic import SANet
from symbiosis_nb.models.ungated import UngatedSSG

ROOT = Path(__file__).parents[1]
ROOMS = sorted(f"symbiosis_nb.models.{p.stem}" for p in (ROOT/"symbiosis_nb"/"models").glob("*.py") if p.stem != "__init__")
HEAVY = {"timm", "torchvision", "fastai", "pandas", "matplotlib", "scipy", "sklearn", "cv2", "IPython"}


@pytest.mark.parametrize("room", ["symbiosis_nb.core", "symbiosis_nb.vocab", *ROOMS])
def test_a_fresh_import_loads_nothing_heavy(room):
    code = f"import sys, {room}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "symbiosis_nb" in loaded and not HEAVY & loaded


def test_there_are_rooms_to_look_at():
    assert {f"symbiosis_nb.models.{r}" for r in "backbones contract caffe pooling ladder adversarial specific".split()} <= set(ROOMS)


def small(**kw): return backbone("small", width=.25, **kw)


GROUPS, SIZE = [[0, 1], [2, 3]], (40, 32)
MODELS = {
    "avg_pool": (lambda: AvgPool(small(), 4), ""), "spp_net": (lambda: SPPNet(small(), 4), ""),
    "ssp": (lambda: SSPNet(small(), 4), "where"), "ssp_template": (lambda: TemplateSSP(small(), 4, 3, SIZE), "where"),
    "ssp_grid": (lambda: GridSSP(small(), 4), "where"), "bbox": (lambda: BBoxNet(small(), 4), "where"),
    "naive": (lambda: NaiveNet(small(in_channels=6), 4), ""), "avg_pool_bn": (lambda: NormedAvgPool(small(), 4), ""),
    "ssg": (lambda: SSGNet(small(), 4, 3), ""), "ssg_ungated": (lambda: UngatedSSG(small(), 4), ""),
    "averaged": (lambda: Averaged([AvgPool(small(), 4), SPPNet(small(), 4)]), ""),
    "sa": (lambda: SANet(small(), 4, 3), "where parse training_outputs"), "sa_alone": (lambda: UnparsedSA(SANet(small(), 4, 3)), "where"),
    "blan": (lambda: BLAN(4, small(), SIZE), "where loss training_outputs sgd_parameters"),
    "dmtl": (lambda: GroupNet(small(), GROUPS, SIZE), "loss"), "pse_b": (lambda: PSENet(small(), GROUPS, "conv", SIZE), "loss where"),
    "g2s": (lambda: JointNet(small(), 4), "loss inherit"), "abstraction": (lambda: AbstractionNet(small(), 4), ""),
    "dual_path": (lambda: DualPath(small(), small(), 4), "")}
OPTIONAL = ("training_outputs", "loss", "inherit", "parse", "where")


@pytest.mark.parametrize("name", MODELS)
def test_hooks_of_every_model(name):
    make, offered = MODELS[name]
    model = make(); found = hooks(model)
    assert {h for h in OPTIONAL if getattr(found, h) is not None} == set(offered.split()) - {"sgd_parameters"}
    assert bool(found.sgd_parameters) == ("sgd_parameters" in offered)
    listed = [p for g in found.param_groups for p in g]
    assert len(set(map(id, listed))) == len(listed) == len(list(model.parameters()))      # every parameter once
    if hasattr(model, "backbone"): assert found.last is (model.last if name == "dual_path" else model.backbone.stages[-1])
    if "training_outputs" in offered: assert model.joint is False


def test_a_plain_module_has_the_defaults():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)); found = hooks(model)
    assert [len(g) for g in found.param_groups] == [2] and found.sgd_parameters == [] and found.last is None
    assert all(getattr(found, h) is None for h in OPTIONAL)


def test_old_places_still_have_the_base():
    from symbiosis_nb.models import pooling
    assert pooling.AttributeModel is AttributeModel


def test_a_plain_module_trains_with_the_learner():
    from symbiosis_nb.learner import split_groups
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 40))
    assert [p for g in split_groups(model) for p in g] == [p for g in hooks(model).param_groups for p in g]
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 40)
