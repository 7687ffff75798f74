"Caffe's files: read bytes written by hand, compute as Caffe does, compare with the trunk that loads the converted weights"
import struct

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from symbiosis_nb.core import DataError
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.caffe import convert_alexnet_cvgj, read_caffemodel
from symbiosis_nb.models.position import PSENet

WIDTH = .1
CONV = {1: dict(stride=4), 2: dict(padding=2, groups=2), 3: dict(padding=1), 4: dict(padding=1, groups=2), 5: dict(padding=1, groups=2)}


# ---- a writer of the wire format
def varint(n): return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])
def field(number, data): return varint(number << 3 | 2) + varint(len(data)) + data
def blob(t, double=False):
    values = struct.pack(f"<{t.numel()}{'d' if double else 'f'}", *t.flatten().tolist())
    return field(7, field(1, b"".join(map(varint, t.shape)))) + field(8 if double else 5, values)
def layer(name, *tensors, kind="Convolution"):
    return field(100, field(1, name.encode()) + field(2, kind.encode()) + field(10, b"\x01") + b"".join(field(7, blob(t)) for t in tensors))


@pytest.fixture
def net():
    "Random AlexNet-cvgj, thin: what Caffe stores of it; sums of statistics over a count, as its moving averages are"
    torch.manual_seed(0)
    count, r = 4., lambda *s: torch.randn(*s)
    layers = {"data/bn": [count * (110 + 10 * r(3)), count * (4_000 + 500 * r(3)), torch.tensor([count])]}
    layers["data/scale"] = [1 + .3 * r(3), r(3)]
    shapes = [m.weight.shape for m in backbone("alexnet_bn", width=WIDTH).modules() if isinstance(m, torch.nn.Conv2d)]
    for i, s in enumerate(shapes, 1):
        layers[f"conv{i}"] = [r(*s) / s[1:].numel() ** .5, r(s[0])]
        layers[f"conv{i}/bn"] = [count * r(s[0]), count * (.5 + torch.rand(s[0])), torch.tensor([count])]
    return layers | {"fc6": [r(8, 4), r(8)], "fc8": [r(5, 8), r(5)]}


def write(path, layers):
    path.write_bytes(field(1, b"AlexNet") + b"".join(layer(n, *t) for n, t in layers.items()) + layer("relu1", kind="ReLU"))
    return path


def by_caffe(layers, pixels):
    "Every map of conv1..conv5 from blue, green, red in 0..255, in float64"
    x, maps = pixels.double(), []
    def bn(x, name):
        mean, var, count = (t.double() for t in layers[name])
        return (x - (mean / count)[:, None, None]) / ((var / count)[:, None, None] + 1e-5).sqrt()
    gain, shift = (t.double()[:, None, None] for t in layers["data/scale"])
    x = bn(x, "data/bn") * gain + shift
    for i, how in CONV.items():
        w, b = (t.double() for t in layers[f"conv{i}"])
        x = bn(F.conv2d(x, w, b, **how), f"conv{i}/bn").relu()
        if i < 3: x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        maps.append(x)
    return maps


def ours(pixels):
    "The same pictures as this library hands them over: red, green, blue, ImageNet normalisation"
    mean, std = torch.tensor([.485, .456, .406])[:, None, None], torch.tensor([.229, .224, .225])[:, None, None]
    return (pixels.flip(1) / 255 - mean) / std


def test_the_converted_network_computes_what_caffe_does(net, tmp_path):
    file = convert_alexnet_cvgj(write(tmp_path/"net.caffemodel", net), tmp_path/"alexnet.safetensors")
    pixels = torch.randint(0, 256, (2, 3, 99, 99)).float()
    trunk = backbone("alexnet_bn", width=WIDTH, weights=file).eval()
    for got, want in zip(trunk.taps(ours(pixels)), by_caffe(net, pixels)):
        torch.testing.assert_close(got.double(), want, atol=2e-3, rtol=1e-3)


def test_what_is_loaded_and_what_not(net, tmp_path):
    file = convert_alexnet_cvgj(write(tmp_path/"net.caffemodel", net), tmp_path/"alexnet.safetensors")
    state, trunk = load_file(file), backbone("alexnet_bn", width=WIDTH, weights=file)
    wanted = {k for k in trunk.state_dict() if not k.endswith("num_batches_tracked")}
    assert set(state) == wanted                                              # every tensor of the trunk, nothing of fc6..fc8
    torch.testing.assert_close(trunk.stages[0][1].weight, net["conv1"][0].flip(1))
    torch.testing.assert_close(trunk.stages[1][0].weight, net["conv2"][0])
    model = PSENet(trunk, [[0, 1], [2]], "conv", (99, 99))
    torch.testing.assert_close(model.backbone.stages[4][0].weight, net["conv5"][0])     # the branches' start leaves the trunk alone


def test_a_file_without_biases(net, tmp_path):
    plain = {n: t[:1] if n.startswith("conv") and len(t) == 2 else t for n, t in net.items()}
    file = convert_alexnet_cvgj(write(tmp_path/"net.caffemodel", plain), tmp_path/"alexnet.safetensors")
    pixels = torch.randint(0, 256, (1, 3, 99, 99)).float()
    zero = {n: [t[0], torch.zeros(len(t[0]))] if len(t) == 1 else t for n, t in plain.items()}
    trunk = backbone("alexnet_bn", width=WIDTH, weights=file).eval()
    torch.testing.assert_close(trunk(ours(pixels)).double(), by_caffe(zero, pixels)[-1], atol=2e-3, rtol=1e-3)


def test_double_data_old_sides_and_old_layers(tmp_path):
    t = torch.randn(2, 3, dtype=torch.float64)
    sides = b"".join(varint(n << 3) + varint(s) for n, s in zip((1, 2, 3, 4), (1, 1, 2, 3))) + field(5, struct.pack("<6f", *range(6)))
    new, old = field(100, field(1, b"a") + field(7, blob(t, double=True))), field(2, field(4, b"b") + field(6, sides))
    (tmp_path/"x.caffemodel").write_bytes(new + old)
    found = read_caffemodel(tmp_path/"x.caffemodel")
    torch.testing.assert_close(found["a"][0], t.float()); assert torch.equal(found["b"][0], torch.arange(6.).view(1, 1, 2, 3))


def test_another_network_is_refused(net, tmp_path):
    convert = lambda name, layers: convert_alexnet_cvgj(write(tmp_path/f"{name}.caffemodel", layers), tmp_path/f"{name}.safetensors")
    with pytest.raises(DataError, match="no conv4/bn"): convert("a", {n: t for n, t in net.items() if n != "conv4/bn"})
    with pytest.raises(DataError, match="also has conv6"): convert("b", net | {"conv6": [torch.ones(1)]})
    with pytest.raises(DataError, match="is missing"): read_caffemodel(tmp_path/"none.caffemodel")
    file = convert("c", net)
    with pytest.raises(DataError, match="does not fit this trunk"): backbone("alexnet_bn", weights=file)      # another width
    assert not list(tmp_path.glob("[ab].safetensors"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes")/"x.caffemodel"
    for content in (data, layer("conv", torch.ones(2, 2))[:len(data)] + data):
        path.write_bytes(content)
        try: found = read_caffemodel(path)
        except DataError as e: assert str(path) in str(e)
        else: assert all(isinstance(t, torch.Tensor) for blobs in found.values() for t in blobs)
