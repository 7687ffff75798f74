"""What people met who left the pages' order: edits that were not seen, rows in another order, other groups, other processes.

Each of these gave a wrong number without a word, or a message that named another cause."""
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import picture_table
from symbiosis_nb.campaign import run_all
from symbiosis_nb.core import DataError, make_folder
from symbiosis_nb.jobs import job_of, limit_table, make_job
from symbiosis_nb.kept import Run, keep_small, named_again
from symbiosis_nb.methods import METHODS, Method, register
from symbiosis_nb.needs.base import Need, register_need
from symbiosis_nb.report import Card
from symbiosis_nb.runs import run
from symbiosis_nb.training import output_names, start_from
from symbiosis_nb.vocab import AttributeVocab

torch.set_num_threads(1)
FOUR = AttributeVocab("four", ("a", "b", "c", "d"), dict(eyes=("a", "b"), mouth=("c", "d")))


@pytest.fixture(autouse=True)
def registry():
    before = dict(METHODS)
    yield
    for name in set(METHODS) - set(before): METHODS.pop(name)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    os.environ["SYMBIOSIS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return picture_table(tmp_path_factory.mktemp("data")/"pictures")


def four(table, vocab=FOUR): return replace(table, vocab=vocab, labels=table.labels[:, :4], known=table.known[:, :4])


def smoke(method, table, out, **how): return run(method, table, "smoke", out=out/"runs", precision="float32", **how)


# starting from a finished run

def test_a_start_under_a_name_of_its_own_goes_by_its_weights(table, tmp_path):
    "Another network put into the same folder was answered for by the run on the first one"
    import shutil
    one, two = (smoke("avg_pool", table, tmp_path, seed=s) for s in (0, 1))
    names = []
    for r in (one, two):
        shutil.rmtree(tmp_path/"start", ignore_errors=True); shutil.copytree(r.folder, tmp_path/"start")
        asked = smoke("avg_pool", table, tmp_path, start=tmp_path/"start", epochs=0)
        np.testing.assert_array_equal(asked.predictions()[0], r.predictions()[0]); names.append(asked.config["start"])
    assert names[0] != names[1] and all(n.startswith("start ") for n in names)
    assert job_of("avg_pool", table, "smoke", start=one.folder).config()["start"] == one.folder.name   # its own name says all


@pytest.mark.parametrize("method", ["dmtl", "pse_b"])
def test_branches_are_not_measured_under_other_groups(table, tmp_path, method):
    "Branch by branch the groups' order decides whose output is whose"
    first = smoke(method, four(table), tmp_path)
    turned = four(table, replace(FOUR, groups=dict(mouth=FOUR.groups["mouth"], eyes=FOUR.groups["eyes"])))
    with pytest.raises(DataError, match="groups, or their order"): smoke(method, turned, tmp_path, start=first.folder, epochs=0)
    again = smoke(method, four(table), tmp_path, start=first.folder, epochs=0)
    np.testing.assert_array_equal(again.predictions()[0], first.predictions()[0])


class Plain(nn.Module):
    "A trunk that is not called backbone, whose kernels are as wide as there are attributes"
    def __init__(self, n):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, n)
    def forward(self, x): return self.head(self.trunk(x).mean((2, 3)))


def test_a_start_for_other_attributes_leaves_outputs_behind_not_kernels(table, tmp_path):
    register(Method("plain", "", "Plain", lambda b: Plain(b.n)))
    three = lambda *names: replace(table, vocab=AttributeVocab("three", names), labels=table.labels[:, :3], known=table.known[:, :3])
    first, net = smoke("plain", three("a", "b", "c"), tmp_path), Plain(3)
    left = start_from(net, first.folder, ("a", "c", "b"), outputs=output_names(make_job("plain", three("a", "c", "b"), "smoke")))
    assert {"head.weight", "head.bias"} <= set(left) and not any(k in left for k in ("trunk.2.weight", "trunk.2.bias"))
    torch.testing.assert_close(net.trunk[2].weight, first.weights()["trunk.2.weight"])


# code of one's own

def module(folder, name, text):
    (folder/f"{name}.py").write_text(text); sys.modules.pop(name, None)
    __import__(name); return sys.modules[name]


def test_what_a_builder_imports_in_its_body_belongs_to_its_code(table, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path)); monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []
    for pool in ("mean", "amax"):
        module(tmp_path, "lazy_nets", f"from torch import nn\nclass Net(nn.Module):\n    def __init__(s, n):\n        super().__init__(); s.head = nn.Linear(3, n)\n"
                                      f"    def forward(s, x): return s.head(x.{pool}((2, 3)))\n")
        built = module(tmp_path, "lazy_build", "def build(b):\n    from lazy_nets import Net\n    return Net(b.n)\n")
        register(Method("lazy", "", "Lazy", built.build)); names.append(job_of("lazy", table, "smoke").folder.name)
    assert names[0] != names[1]


class Blurred(Need):
    "Pictures with something done to them"
    name = "blurred"
    def __init__(self, how): self.how = how


def test_the_values_of_a_need_belong_to_its_code(table):
    names = []
    for how in (3, 200, 3):
        register_need(Blurred(how)); register(Method("with_need", "", "With", lambda b: Plain(b.n), needs="blurred"))
        names.append(job_of("with_need", table, "smoke").folder.name)
    assert names[0] == names[2] != names[1]


def test_a_run_names_the_module_that_registers(table, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module(tmp_path, "apart_nets", "from torch import nn\ndef build(b): return nn.Sequential(nn.Flatten(), nn.Linear(3*40*32, b.n))\n")
    module(tmp_path, "apart_study", "from apart_nets import build\nfrom symbiosis_nb.methods import Method, register\nregister(Method('apart', '', 'Apart', build))\n")
    assert job_of("apart", table, "smoke").config()["module"] == "apart_study"


def made(b): return nn.Sequential(nn.Flatten(), nn.Dropout(b.options.get("drop", 0.)), nn.Linear(3*40*32, b.n))
def through_a_helper(b): return made(b)
def without(b): return Plain(b.n)


def test_options_that_a_helper_reads_are_taken(table):
    register(Method("helped", "", "Helped", through_a_helper), Method("bare", "", "Bare", without))
    assert job_of("helped", table, "smoke", options=dict(drop=.5)).options == dict(drop=.5)
    with pytest.raises(ValueError, match="its builder reads none"): job_of("bare", table, "smoke", options=dict(drop=.5))


class Two(Plain):
    def forward(self, x): return super().forward(x), x


def test_two_outputs_need_a_loss_that_takes_them(table, tmp_path):
    register(Method("two", "", "Two", lambda b: Two(b.n)))
    with pytest.raises(ValueError, match="2 outputs and has no `loss`"): smoke("two", table, tmp_path)


def test_code_that_other_processes_cannot_read_is_not_sent_to_them(table, tmp_path, monkeypatch):
    "It trained there under another name, and the run was never found"
    def build(b): return Plain(b.n)
    monkeypatch.setattr(build, "__module__", "__main__"); register(Method("cell", "", "Cell", build))
    with pytest.raises(ValueError, match="builder is defined in a notebook cell"): run_all([job_of("cell", table, "smoke", out=tmp_path)], executor="local")
    def mine(pct): return 1 - pct
    monkeypatch.setattr(mine, "__module__", "__main__")
    with pytest.raises(ValueError, match="schedule is defined in a notebook cell"):
        run_all([job_of("avg_pool", table, "smoke", out=tmp_path, schedule=mine)], executor="local")


# data

def test_a_card_counts_the_pictures_that_were_used(table, tmp_path):
    broken = []
    for i in (*np.flatnonzero(table.split == "train")[:5], *np.flatnonzero(table.split == "valid")[:2]):
        bad = tmp_path/f"bad{i}.png"; bad.write_bytes(b"no picture"); broken.append((i, bad))
    paths = list(table.paths)
    for i, bad in broken: paths[i] = bad
    some = replace(table, paths=paths)
    r, n = smoke("avg_pool", some, tmp_path, on_bad="skip"), some.counts()
    card = Card([r], some, dataset="")
    assert card.counts == r.done["used"] == n | dict(train=n["train"] - 5, valid=n["valid"] - 2)
    assert card.protocol().loc["split"].item().startswith(f"train {n['train'] - 5}")


def test_a_limit_takes_from_all_over_whatever_the_set_is_called(table):
    "A table of one's own with CelebA's names, sorted: its first rows are all of one kind"
    rows = np.flatnonzero(table.split == "train")
    some = limit_table(replace(table, name="CelebA (aligned)"), 16)
    assert some.paths[:16] == [table.paths[i] for i in rows[np.linspace(0, len(rows) - 1, 16).round().astype(int)]]


def test_a_copy_is_not_given_to_rows_in_another_order(table, tmp_path):
    "Pictures with the same labels cannot be told apart: their answers went to one another"
    twins = replace(table, vocab=AttributeVocab("one", ("a",)), labels=table.labels[:, :1], known=table.known[:, :1])
    r = smoke("avg_pool", twins, tmp_path)
    small = Run(keep_small(r, tmp_path/"small"))
    own = {k: r.arrays[k] for k in ("valid_targets", "test_targets", "test_names", "test_identity")}
    back = Run(named_again(small, own, tmp_path/"mine"))
    np.testing.assert_allclose(back.arrays["test_selected"], r.arrays["test_selected"], atol=1e-2)
    mixed = np.random.default_rng(0).permutation(len(own["test_names"]))
    turned = own | {k: v[mixed] for k, v in own.items() if k.startswith("test")}
    with pytest.raises(DataError, match="rows stand in another order"): named_again(small, turned, tmp_path/"other")


def test_contradictions_name_attributes(table):
    with pytest.raises(DataError, match="'bold', which is no attribute"): AttributeVocab("x", ("bald", "fringe"), contradictions=((("bold", 1), ("fringe", 1)),))
    with pytest.raises(DataError, match="contradictions are pairs such as"): AttributeVocab("x", ("bald", "fringe"), contradictions=(("bald", 1), ("fringe", 1)))


def test_groups_may_have_names_with_spaces():
    from symbiosis_nb.data.sources import open_own
    found = open_own(profile="smoke", groups="eyes=glasses; the rest=hat, smiling,fair_hair,moustache,lipstick").vocab.groups
    assert found == {"eyes": ("glasses",), "the rest": ("hat", "smiling", "fair_hair", "moustache", "lipstick")}


def test_a_seed_from_numpy_is_a_seed(table):
    for seed in (np.arange(3)[1], 1.): assert job_of("avg_pool", table, "smoke", seed=seed).folder == job_of("avg_pool", table, "smoke", seed=1).folder


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(Path, "mkdir", lambda self, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(OSError, match="SYMBIOSIS_CACHE"): make_folder(tmp_path/"cache"/"stores")
    with pytest.raises(OSError, match="choose another folder"): make_folder(tmp_path/"elsewhere")


def test_the_command_finds_a_method_in_the_current_folder(tmp_path, monkeypatch, capsys):
    from symbiosis_nb.shell import main
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert main(["photo.jpg", "--run", str(tmp_path/"none")]) == 2 and str(tmp_path) in sys.path
