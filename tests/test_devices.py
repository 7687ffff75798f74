"""No part of a model, loss or helper stays on the CPU when the rest is on a GPU: asked of fake CUDA tensors, which need no GPU and compute nothing."""
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from symbiosis_nb.losses import masked_bce
from symbiosis_nb.methods import METHODS, Build
from symbiosis_nb.models.abstraction import GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator
from symbiosis_nb.models.adversarial import AdversarialLoss, Adversary
from symbiosis_nb.models.segmenters import EncoderDecoder
from symbiosis_nb.needs.abstraction import Abstractor
from symbiosis_nb.vocab import CELEBA

SIZE = (80, 64)


def moved(model):
    "As `model.to('cuda')` does: parameters and buffers; what is neither stays where it is"
    for part in model.modules():
        for k, p in part._parameters.items():
            if p is not None: part._parameters[k] = nn.Parameter(p.to("cuda"), p.requires_grad)
        for k, b in part._buffers.items():
            if b is not None: part._buffers[k] = b.to("cuda")
    return model


@pytest.fixture
def gpu():
    with FakeTensorMode(allow_non_fake_inputs=True): yield lambda *shape: torch.rand(*shape, device="cuda")


def built(name, trunk="small"): return moved(METHODS[name].build(Build(CELEBA, SIZE, trunk, .5, None, 7, {}, None)))


def beside(need, gpu):
    "What a batch holds beside the pictures"
    return dict(masks=[gpu(4, 7, 40, 32)], boxes=[gpu(4, 16, 40, 32)], abstraction=[gpu(4, 3, *SIZE)]).get(need, [])


SINGLE = [n for n, m in METHODS.items() if not (m.parts or m.chain)]


@pytest.mark.parametrize("name", SINGLE)
def test_a_step_of_every_method(name, gpu):
    model, x = built(name), gpu(4, 3, *SIZE)
    inputs, targets = (x, *beside(METHODS[name].needs, gpu)), gpu(4, 40)
    model.joint = METHODS[name].needs != "parsing"
    out = model(*inputs)
    loss = model.loss(out, targets) if hasattr(model, "loss") else masked_bce(out, targets)
    assert loss.device.type == "cuda" and loss.shape == ()
    model.eval()
    assert model(*inputs).device.type == "cuda"
    if hasattr(model, "where"): assert model.where(*inputs).device.type == "cuda"


def test_attributes_and_regions_together(gpu):
    attributes, parsing = built("sa").training_outputs(gpu(8, 3, *SIZE))
    assert (masked_bce(attributes[:4], gpu(4, 40)) + parsing[4:].mean()).device.type == "cuda"


def test_blan_from_every_side(gpu):
    model, x = built("blan"), gpu(4, 3, *SIZE)
    assert all(t.device.type == "cuda" for t in model.loss_terms(model.training_outputs(x), gpu(4, 40)).values())
    assert {model.reconstruct(x).device.type, model.per_classifier(x).device.type, *(g.device.type for g in model.gates(x))} == {"cuda"}


@pytest.mark.parametrize("make", [lambda: GlobalGenerator(4, 2, 1), lambda: LocalEnhancer(4, 2, 1)], ids=["global", "local"])
def test_generators_and_their_judges(make, gpu):
    model = Adversary(moved(make()), moved(MultiscaleDiscriminator(4, 2)))
    photo, real = gpu(2, 3, 64, 64), gpu(2, 3, 64, 64)
    drawn = model.generator(photo)
    for gan in ("lsgan", "log"):
        assert all(s.device.type == "cuda" for s in AdversarialLoss(model.discriminator, gan, pixel=1.).sides(drawn, photo, real))
    assert moved(Abstractor(model.generator, (64, 64)))(photo).device.type == "cuda"


def test_segmenters(gpu):
    assert moved(EncoderDecoder(7))(gpu(2, 3, 64, 64)).device.type == "cuda"


def test_a_tensor_that_stays_behind_is_noticed(gpu):
    "The test tests: a plain attribute is not moved"
    class Forgetful(nn.Module):
        def __init__(self): super().__init__(); self.scale = torch.ones(3)
        def forward(self, x): return x*self.scale
    with pytest.raises(RuntimeError, match="device"): moved(Forgetful())(gpu(2, 3))
