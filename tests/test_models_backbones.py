"Trunks: parameter counts of the specifications, the protocol on every family, weights in every form"
import urllib.error

import pytest, timm, torch, torchvision
from safetensors.torch import save_file
from torch import nn

from symbiosis_nb.core import DataError
from symbiosis_nb.models import backbones as bb
from symbiosis_nb.models.backbones import backbone, imagenet_file, n_parameters, peak_bytes, saved_bytes
from symbiosis_nb.models.vgg_face import VGGFaceHead, load_vgg_face

FAMILIES = [*bb.TRUNKS, "timm:resnet26d", "timm:mobilenetv3_small_100"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name,count", [("vgg16", 14_714_688), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("inception_v3", 21_785_568),
                                        ("se_resnet50", 26_039_024), ("alexnet_bn", 2_332_710), ("small", 485_392)])
def test_parameter_counts(name, count):
    with torch.device("meta"): assert n_parameters(backbone(name)) == count


def test_vgg_like_count_without_slopes():
    trunk = backbone("vgg_like")
    assert n_parameters(trunk) - sum(m.num_parameters for m in trunk.modules() if isinstance(m, nn.PReLU)) == 23_567_808
    assert all(m.num_parameters > 1 for m in trunk.modules() if isinstance(m, nn.PReLU))
    assert n_parameters(nn.Linear(trunk.channels[-1], 40)) == 41_000


@pytest.mark.parametrize("outputs,total", [(80, 134_588_304), (2, 134_268_738)])
def test_vgg_face_counts(outputs, total):
    with torch.device("meta"): assert n_parameters(backbone("vgg16")) + n_parameters(VGGFaceHead(outputs)) == total


def test_vgg_like_sizes_follow_ceil_mode():
    sizes = [tuple(m.shape[2:]) for m in backbone("vgg_like", width=.125).taps(torch.zeros(1, 3, 218, 178))]
    assert sizes == [(109, 89), (55, 45), (28, 23), (14, 12), (14, 12), (14, 12)]


def test_inception_taps_at_299():
    trunk = backbone("inception_v3", width=.25).eval()
    with torch.no_grad(): assert [m.shape[-1] for m in trunk.taps(torch.zeros(1, 3, 299, 299))] == [35, 35, 17, 8, 8]
    with torch.device("meta"): assert backbone("inception_v3").channels == [192, 288, 768, 1280, 2048]


def test_se_resnet50_ends_7_by_7():
    with torch.device("meta"): assert backbone("se_resnet50")(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 2048, 7, 7)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("in_channels", [3, 10])
def test_protocol(name, in_channels):
    trunk = backbone(name, width=.25, in_channels=in_channels).eval()
    x = torch.rand(1, in_channels, 128, 128)
    maps = trunk.taps(x)
    assert len(maps) == len(trunk.stages) == len(trunk.channels) == len(trunk.strides)
    assert [m.shape[1] for m in maps] == trunk.channels and trunk.strides == sorted(trunk.strides)
    assert torch.equal(trunk(x), maps[-1]) and torch.isfinite(maps[-1]).all() and maps[-1].std() > 0
    grouped = [id(p) for g in trunk.param_groups() for p in g]
    assert sorted(grouped) == sorted(id(p) for p in trunk.parameters())


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "vgg16", "small"])
def test_training_step_changes_every_parameter(name):
    trunk = backbone(name, width=.25)
    trunk(torch.randn(2, 3, 96, 96)).square().mean().backward()
    assert all(p.grad is not None for p in trunk.parameters())


def test_width_scales_both_ways():
    small, normal, large = (n_parameters(backbone("small", width=w)) for w in (.5, 1, 2))
    assert small * 3 < normal and normal * 3 < large


def test_timm_stages_equal_its_own_features():
    net = timm.create_model("regnety_002", features_only=True, pretrained=False).eval()
    trunk = backbone("timm:regnety_002").eval()
    trunk.load_state_dict(dict(zip(trunk.state_dict(), net.state_dict().values())))
    x = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(trunk.taps(x), net(x), strict=True): torch.testing.assert_close(ours, theirs)


def test_unknown_names():
    with pytest.raises(ValueError, match="one of vgg_like"): backbone("alexnet")
    with pytest.raises(ValueError, match="no width factor"): backbone("timm:convnext_atto", width=.5)
    with pytest.raises(ValueError, match="convolutional trunk"): backbone("timm:vit_tiny_patch16_224")


# ---- weights
def test_published_inception_file(tmp_path):
    net = torchvision.models.inception_v3(weights=None, init_weights=False)   # with auxiliary head and classifier, like the published file
    torch.save(net.state_dict(), tmp_path/"inception.pth")
    trunk = backbone("inception_v3", weights=tmp_path/"inception.pth").eval()
    net.eval().transform_input = True                                         # what torchvision sets with its ImageNet weights
    x, got = torch.randn(1, 3, 299, 299), {}
    net.Mixed_7c.register_forward_hook(lambda m, i, o: got.update(last=o))
    with torch.no_grad(): net(x); torch.testing.assert_close(trunk(x), got["last"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name,theirs", [("resnet18", "resnet18"), ("vgg16", "vgg16")])
def test_published_torchvision_file(tmp_path, name, theirs):
    with torch.device("meta" if name == "vgg16" else "cpu"): net = getattr(torchvision.models, theirs)(weights=None)
    draw = lambda v: torch.randn(v.shape) * .05 if v.is_floating_point() else torch.zeros_like(v, device="cpu")
    state = {k: draw(v) for k, v in net.state_dict().items() if "classifier" not in k}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path/"w.pth")
    trunk = backbone(name, weights=tmp_path/"w.pth")
    first = next(m for m in trunk.modules() if isinstance(m, nn.Conv2d))
    assert torch.equal(first.weight, next(v for k, v in state.items() if v.ndim == 4))


def test_published_timm_file(tmp_path):
    net = timm.create_model("resnet18d", pretrained=False).eval()
    save_file(net.state_dict(), tmp_path/"w.safetensors")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone("timm:resnet18d", weights=tmp_path/"w.safetensors").eval()(x), net.forward_features(x))
        four = torch.cat([x, torch.zeros(1, 1, 64, 64)], 1)
        assert backbone("timm:resnet18d", weights=tmp_path/"w.safetensors", in_channels=4)(four).shape == (1, 512, 2, 2)


def test_trunk_of_a_saved_attribute_model(tmp_path):
    trunk = backbone("small", width=.5)
    save_file({"head.weight": torch.zeros(2, 2), **{f"backbone.{k}": v for k, v in trunk.state_dict().items()}}, tmp_path/"model.safetensors")
    again = backbone("small", width=.5, weights=tmp_path/"model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(trunk.state_dict().values(), again.state_dict().values()))


def test_weights_that_do_not_fit_name_everything(tmp_path):
    state = backbone("small", width=.5).state_dict()
    state["stages.9.weight"] = state.pop("stages.0.0.weight")
    save_file(state, tmp_path/"w.safetensors")
    with pytest.raises(DataError) as e: backbone("small", width=.5, weights=tmp_path/"w.safetensors")
    assert e.value.problems == ["stages.0.0.weight is missing", "stages.9.weight is unknown"]
    with pytest.raises(DataError, match="needed"): backbone("small", width=1, weights=tmp_path/"w.safetensors")


class Evil:
    def __reduce__(self): return (print, ("this must never run",))


@pytest.mark.parametrize("content", ["html", "pickle", "pointer", "empty", "missing"])
def test_bad_weight_files(tmp_path, content, capsys):
    path = tmp_path/"w.pth"
    if content == "html": path.write_text("<!DOCTYPE html><html>404</html>")
    if content == "pointer": path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    if content == "empty": path.touch()
    if content == "pickle": torch.save({"a": Evil()}, path)
    with pytest.raises(DataError, match="missing" if content == "missing" else "not a weights file"): backbone("small", weights=path)
    assert "never run" not in capsys.readouterr().out


def test_imagenet_offline_says_which_file_to_put_where(tmp_path, monkeypatch):
    def no_network(*a, **k): raise urllib.error.URLError("no network")
    monkeypatch.setattr("urllib.request.urlopen", no_network); monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path))
    for name, file in [("resnet34", "resnet34-b627a593.pth"), ("timm:resnet18", "resnet18_a1_0-d63eafa0.pth"), ("se_resnet50", "se_resnet50-ce0d4300.pth")]:
        with pytest.raises(DataError) as e: backbone(name, weights="imagenet")
        assert str(tmp_path/"weights"/file) in str(e.value) and "https://" in str(e.value)
        assert not (tmp_path/"weights"/file).exists()
    (tmp_path/"weights").mkdir(exist_ok=True)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path/"weights"/"resnet18-f37072fd.pth")
    assert imagenet_file("resnet18").name == "resnet18-f37072fd.pth" and n_parameters(backbone("resnet18", weights="imagenet")) == 11_176_512
    with pytest.raises(ValueError, match="no ImageNet weights for small"): backbone("small", weights="imagenet")


def test_vgg_face_by_order(tmp_path):
    trunk, head = backbone("vgg16", width=1/16), VGGFaceHead(2, channels=32, size=(1, 1), hidden=16)
    layers = [m for net in (trunk, head) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    port = {f"{i}.{k}": torch.randn_like(v) for i, m in enumerate(layers) for k, v in m.state_dict().items()}
    port["15.weight"], port["15.bias"] = torch.randn(2622, 16), torch.randn(2622)     # fc8 of the published net: 2,622 people
    torch.save(port, tmp_path/"vgg_face.pth")
    before = head.fc8.weight.clone()
    load_vgg_face(trunk, head, tmp_path/"vgg_face.pth", rgb=False)
    assert torch.equal(trunk.stages[0][0].weight, port["0.weight"]) and torch.equal(head.fc7.bias, port["14.bias"]) and torch.equal(head.fc8.weight, before)
    load_vgg_face(trunk, head, tmp_path/"vgg_face.pth", rgb=True)
    assert torch.equal(trunk.stages[0][0].weight, port["0.weight"].flip(1))
    with pytest.raises(DataError, match="not those of VGG-Face"): load_vgg_face(backbone("vgg16", width=1/8), head, tmp_path/"vgg_face.pth")


# ---- cost counters
def test_counters():
    w = torch.ones(1000, requires_grad=True)
    assert saved_bytes(lambda: w.exp().sum()) == 4000
    assert saved_bytes(lambda: (w * w).sum(), besides=[w]) == 0
    assert peak_bytes(lambda: w.exp().exp().sum()) >= 8000
    def loop():
        for _ in range(10): torch.ones(1000)
    assert peak_bytes(loop) == 4000
