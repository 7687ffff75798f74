"A run is found again by everything that decided it: also by values that one's own code uses"
import importlib
import sys
from functools import partial

import pytest

from symbiosis_nb.code import code_digest, function_name

BEFORE = {
    "a keyword of partial": "from functools import partial\ndef made(b, hidden): pass\nbuild = partial(made, hidden=8)",
    "what it closed over": "def outer(n):\n    def build(b): return n\n    return build\nbuild = outer(8)",
    "a constant": "HIDDEN = 8\ndef build(b): return HIDDEN",
    "a constant of a class": "HIDDEN = 8\nclass Net:\n    def loss(self): return HIDDEN\ndef build(b): return Net()",
    "a class in a dictionary": "class A:\n    def f(self): return 8\nKINDS = dict(a=A)\ndef build(b): return KINDS['a']()",
    "an object that is called": "class Builder:\n    def __init__(self, n): self.n = n\n    def __call__(self, b): return self.n\nbuild = Builder(8)",
    "a default": "def build(b, hidden=8): return hidden",
    "the name of a keyword": "from functools import partial\ndef made(b, **how): pass\nbuild = partial(made, **{'hidden8': 1})",
    "a second closure of one factory": "def make(n):\n    def inner(b): return n\n    return inner\nA = make(3), make(8)\ndef build(b): return A",
    "a second lambda": "A = [lambda b: 3, lambda b: 8]\ndef build(b): return A",
    "an attribute of a class": "H = 8\nclass Net:\n    hidden = H\ndef build(b): return Net()",
    "a default by keyword": "H = 8\ndef build(b, *, hidden=H): return hidden",
    "a property": "H = 8\nclass Net:\n    @property\n    def h(self): return H\ndef build(b): return Net()",
    "a cached helper": "from functools import cache\n@cache\ndef h(): return 8\ndef build(b): return h()",
    "a method of an object": "class B:\n    def __init__(self, n): self.n = n\n    def make(self, b): return self.n\nbuild = B(8).make",
    "an array": "import numpy as np\nA = np.arange(8)\ndef build(b): return A",
    "a tensor": "import torch\nA = torch.ones(8, dtype=torch.bfloat16)\ndef build(b): return A",
    "a layer's constant": "from torch import nn\nA = nn.LeakyReLU(8)\ndef build(b): return A",
    "slots": "from dataclasses import dataclass\n@dataclass(slots=True)\nclass C:\n    n: int\nA = C(8)\ndef build(b): return A",
    "functions in a set": "def f(): return 8\nA = {f}\ndef build(b): return A",
    "a module of one's own": "import own_layers_of_the_test as layers\ndef build(b): return layers.make(b)",
}

OTHERS = {   # what another package has, named by one's own code -> (text, one, another)
    "a layer": ("from torch import nn\nACT = nn.{}\ndef build(b): return ACT()", "ReLU", "Sigmoid"),
    "an imported layer": ("from torch.nn import {} as Act\ndef build(b): return Act()", "ReLU", "Sigmoid"),
    "a function": ("import torch.nn.functional as F\nPOOL = F.{}\ndef build(b): return POOL(b, 2)", "max_pool2d", "avg_pool2d"),
    "a built-in function": ("import torch\nACT = torch.{}\ndef build(b): return ACT(b)", "relu", "sigmoid"),
    "a layer with a setting": ("from functools import partial\nfrom torch import nn\nNORM = partial(nn.{}, eps=1e-5)\ndef build(b): return NORM(8)", "BatchNorm2d", "InstanceNorm2d"),
    "a layer given to a factory": ("from torch import nn\ndef make(act):\n    def build(b): return act()\n    return build\nbuild = make(nn.{})", "ReLU", "GELU"),
    "a model of this package": ("from symbiosis_nb.models import pooling\nHead = pooling.{}\ndef build(b): return Head(b.trunk(), b.n)", "AvgPool", "SPPNet"),
    "a precision": ("import torch\nD = torch.{}\ndef build(b): return b.to(D)", "float32", "float64"),
    "a choice": ("from inspect import _ParameterKind as K\nKIND = K.{}\ndef build(b): return KIND", "VAR_KEYWORD", "KEYWORD_ONLY"),
    "a namespace": ("from types import SimpleNamespace\nc = SimpleNamespace(n={})\ndef build(b): return c.n", "8", "16"),
    "parsed arguments": ("from argparse import Namespace\nc = Namespace(n={})\ndef build(b): return c.n", "8", "16"),
    "a cached property": ("from functools import cached_property\ndef h(): return {}\nclass Net:\n    @cached_property\n    def n(self): return h()\ndef build(b): return Net()", "8", "16"),
    "a function by kinds": ("from functools import singledispatch\n@singledispatch\ndef f(x): return 1\n@f.register\ndef _(x: int): return {}\ndef build(b): return f(b)", "8", "16"),
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    "Text -> what `build` is in a module of it, as another process would import it"
    monkeypatch.syspath_prepend(str(tmp_path)); monkeypatch.setattr(sys, "dont_write_bytecode", True)
    def load(text, name="own_method_of_the_test"):
        (tmp_path/f"{name}.py").write_text(text); sys.modules.pop(name, None); importlib.invalidate_caches()
        return importlib.import_module(name)
    yield load
    for name in ("own_method_of_the_test", "own_layers_of_the_test"): sys.modules.pop(name, None)


@pytest.mark.parametrize("what", BEFORE)
def test_an_edited_value_is_another_method(what, module):
    layers = "def make(b): return 8"
    if "module" in what: module(layers, "own_layers_of_the_test")
    first, again = (code_digest(module(BEFORE[what]).build) for _ in range(2))
    if "module" in what: module(layers.replace("8", "32"), "own_layers_of_the_test")
    edited = code_digest(module(BEFORE[what].replace("8", "32")).build)
    assert first == again != edited


@pytest.mark.parametrize("what", OTHERS)
def test_another_packages_part_is_another_method(what, module):
    "The name stands for it: its code is its version's"
    text, one, another = OTHERS[what]
    first, again, edited = (code_digest(module(text.replace("{}", v)).build) for v in (one, one, another))
    assert first == again != edited


def test_a_comment_is_no_other_method(module):
    text = BEFORE["a constant"]
    assert code_digest(module(text).build) == code_digest(module(text + "\n# a word\n").build)


@pytest.mark.parametrize("text", ["from torch import Tensor\nfrom numpy import ndarray\nclass T(Tensor): pass\ndef build(b): return isinstance(b, (Tensor, ndarray, T))",
                                  "A = []\nA.append(A)\ndef build(b): return A", "class P: pass\nA = {P(), P()}\ndef build(b): return A"])
def test_whatever_is_named_has_a_digest(module, text): assert code_digest(module(text).build) == code_digest(module(text).build)


def test_what_is_no_name_of_it_does_not_count(module):
    device, counted = "device = '{}'\ndef build(b): return b.device", "N = {}\ndef build(b):\n    global N\n    N += 1"
    for text in (device, counted): assert code_digest(module(text.format(1)).build) == code_digest(module(text.format(2)).build)


def test_another_version_of_this_package_is_no_other_method(tmp_path, module, monkeypatch):
    import symbiosis_nb
    from symbiosis_nb.code import own_digest
    build = module(BEFORE["a constant"]).build; before = own_digest(build), code_digest(build)
    monkeypatch.setattr(symbiosis_nb, "__version__", "9.9")
    assert own_digest(build) == before[0] and code_digest(build) != before[1]


def test_objects_that_know_each_other_end(module):
    text = "class P: pass\na, b = P(), P()\na.other, b.other = b, a\ndef build(x): return a"
    assert code_digest(module(text).build) == code_digest(module(text).build)


def test_a_schedules_constant_is_part_of_its_name(module):
    names = [function_name(module(f"DROP = {drop}\ndef falls(pct): return DROP\n").falls) for drop in (.5, .001, .5)]
    assert names[0] == names[2] != names[1] and names[0].startswith("falls [")


def test_a_need_with_an_attribute_is_the_one_that_was_trained(tmp_path, monkeypatch):
    import warnings
    from helpers import picture_table
    from symbiosis_nb.methods import METHODS, VARIANTS, Method, register
    from symbiosis_nb.needs.base import NEEDS, Need, register_need
    from symbiosis_nb.predictor import load_model
    from symbiosis_nb.runs import run
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    class Wide(Need):
        name = "wide"
        def __init__(self): self.margin = 4
    register_need(Wide()); register(Method("mine", "", "Mine", METHODS["avg_pool"].build, needs="wide"))
    try:
        r = run("mine", picture_table(tmp_path/"pictures"), "smoke", out=tmp_path/"runs", precision="float32", limit=None)
        with warnings.catch_warnings(): warnings.simplefilter("error"); load_model(r.folder)
    finally: METHODS.pop("mine", None), VARIANTS.pop("mine", None), NEEDS.pop("wide", None)


def test_an_edited_method_is_not_asked_silently(tmp_path, module, monkeypatch):
    from helpers import picture_table
    from symbiosis_nb.methods import METHODS, VARIANTS, Method, register
    from symbiosis_nb.predictor import load_model
    from symbiosis_nb.runs import run
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    text = ("from symbiosis_nb.models.pooling import AvgPool\nSIGN = 1\nclass Net(AvgPool):\n    def forward(self, x): return SIGN*super().forward(x)\n"
            "def build(b): return Net(b.trunk(), b.n)")
    register(Method("mine", "", "Mine", module(text).build))
    try:
        r = run("mine", picture_table(tmp_path/"pictures"), "smoke", out=tmp_path/"runs", precision="float32", limit=None)
        load_model(r.folder)
        register(Method("mine", "", "Mine", module(text.replace("SIGN = 1", "SIGN = -1")).build))
        with pytest.warns(UserWarning, match="trained by other code"): load_model(r.folder)
    finally: METHODS.pop("mine", None), VARIANTS.pop("mine", None)


def test_options_are_what_a_run_can_be_found_by(tmp_path):
    "A tensor or a function stood in config.json as a text, which another tensor shares and another process does not"
    import torch
    from helpers import picture_table
    from symbiosis_nb.jobs import make_job
    table = picture_table(tmp_path/"pictures")
    for lost in (torch.zeros(3), len, {"hat"}):
        with pytest.raises(ValueError, match="options of spp_net: levels is a"): make_job("spp_net", table, "smoke", options=dict(levels=lost))
    make_job("ssp", table, "smoke", options=dict(area=True))


def test_a_digest_is_of_all_that_went_in():
    "Long tensors beyond what is printed, sets in any order; what has no lasting name is refused"
    import torch
    from symbiosis_nb.core import digest
    a, b = torch.zeros(2000), torch.zeros(2000); b[900] = 1e-7
    assert digest(a) == digest(a.clone()) != digest(b) and digest(a) != digest(a.bfloat16())
    assert digest({"hat", "cap", "scarf"}) == digest({"scarf", "hat", "cap"}) != digest({"hat", "cap"})
    with pytest.raises(ValueError, match="another one in every process"): digest(dict(f=object()))


RECIPES = {   # a class of one's own in a recipe
    "what is done to pictures": "@dataclass(frozen=True)\nclass Mine(Augment):\n    def draw(self, n, device='cpu'):\n        how = super().draw(n, device); how['theta'][:, 1] *= {}; return how\n"
                                "recipe = Recipe(augment=Mine())",
    "a recipe": "@dataclass(frozen=True)\nclass Mine(Recipe):\n    def epochs_on(self, steps): return {}\nrecipe = Mine()",
    "a function in it": "def f(x): return {}\n@dataclass(frozen=True)\nclass Mine(Augment):\n    how: object = f\nrecipe = Recipe(augment=Mine())",
}

@pytest.mark.parametrize("where", ["recipe", "parser_recipe", "tune", "generator"])
@pytest.mark.parametrize("what", RECIPES)
def test_a_class_of_ones_own_in_a_recipe_is_another_run(what, where, module, tmp_path):
    "A subclass was called as the plain one, whose run was then read"
    from helpers import picture_table
    from symbiosis_nb.jobs import make_job
    from symbiosis_nb.recipes import Generator, Recipe
    method = dict(recipe="avg_pool", parser_recipe="avg_pool", tune="g2s_12", generator="dual_path")[where]
    given = lambda r: {where: Generator(recipe=r) if where == "generator" else r}
    name = lambda r: make_job(method, picture_table(tmp_path/"pictures"), "smoke", overrides=given(r)).folder.name
    head = "from dataclasses import dataclass\nfrom symbiosis_nb.recipes import Recipe\nfrom symbiosis_nb.data.loaders import Augment\n"
    of = lambda n: name(module(head + RECIPES[what].format(n)).recipe)
    assert of(1) == of(1) != of(2) and name(Recipe()) not in (of(1), of(2))


BUILDERS = dict(   # registry -> (a method that uses it, its setting, the text of a builder)
    trunk=("avg_pool", "backbone", "from torch import nn\ndef build(width, in_channels): return None, [nn.Conv2d(in_channels, 8, 3, 4), nn.Conv2d(8, 8, 3, 4, {})]"),
    parser=("ssp", "parser", "from symbiosis_nb.models.segmenters import small_parser\ndef build(n, config): return small_parser(n, config['width'] + 0*{})"))

@pytest.mark.parametrize("kind", BUILDERS)
def test_a_builder_that_was_registered_is_part_of_the_name(kind, module, tmp_path, monkeypatch):
    "A trunk's name alone stood for it: replaced by another one, the old run was read"
    from helpers import picture_table
    from symbiosis_nb.data.sources import open_parsing
    from symbiosis_nb.jobs import make_job
    from symbiosis_nb.models import backbones
    from symbiosis_nb.needs import masks
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    method, setting, text = BUILDERS[kind]
    registry, parsing = (backbones.TRUNKS, None) if kind == "trunk" else (masks.PARSERS, open_parsing(profile="smoke"))
    def job(build, name="mine", of=method):
        if build: monkeypatch.setitem(registry, name, build)
        return make_job(of, picture_table(tmp_path/"pictures"), "smoke", overrides={setting: name}, parsing=parsing)
    ours, mine = job(None, "small").folder, [job(module(text.format(n)).build).folder for n in (1, 1, 2)]
    assert mine[0] == mine[1] != mine[2] and "own_builders" not in job(None, "small").config()
    assert job(None, "small").folder == ours != job(module(text.format(1)).build, "small").folder, "ours keeps its name, what stands in its place does not"
    assert job(partial(registry["mine"])).folder != mine[2], "a partial is not what it is around"
    if kind == "parser": assert "own_builders" not in job(None, "mine", "avg_pool").config(), "which takes no masks"
    else: assert len({job(backbones._resnet(n)).folder for n in ("resnet18", "resnet34")}) == 2, "a trunk of ours under another name"


def test_another_trunk_under_the_name_is_not_asked_silently(tmp_path, module, monkeypatch):
    from helpers import picture_table
    from symbiosis_nb.models import backbones
    from symbiosis_nb.predictor import load_model
    from symbiosis_nb.runs import run
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    text = BUILDERS["trunk"][2]
    monkeypatch.setitem(backbones.TRUNKS, "mine", module(text.format(1)).build)
    train = lambda: run("avg_pool", picture_table(tmp_path/"pictures"), "smoke", out=tmp_path/"runs", precision="float32", limit=None, backbone="mine")
    r = train(); load_model(r.folder)
    monkeypatch.setitem(backbones.TRUNKS, "mine", module(text.format(2)).build)
    with pytest.warns(UserWarning, match="trained by other code"): load_model(r.folder)
    assert train().news == "trained"
