"The symbiosis paper's layers against slow transcriptions of its equations in float64: outputs, gradients, statistics, memory"
import sys

import pytest, torch
import torch.nn.functional as F
from torch import nn

from symbiosis_nb.bench import ssg_resident
from symbiosis_nb.losses import balance_weights, masked_bce, parsing_ce
from symbiosis_nb.models.backbones import Backbone, backbone, n_parameters, peak_bytes
from symbiosis_nb.models.gating import SSG, Averaged, SSGNet, affine_of_bn, sum_to_one
from symbiosis_nb.models.pooling import SSP, AvgPool, BBoxNet, NaiveNet, SPPNet, SSPNet, landmark_masks
from symbiosis_nb.models.segmenters import ASPP, ASPPNet, EncoderDecoder, Parser, small_parser
from symbiosis_nb.models.symbiotic import SA, JoinTaps, RegionMask, SANet, kernel_atlas


@pytest.fixture(autouse=True)
def float64():
    torch.set_num_threads(1); torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def probabilities(*shape): return torch.randn(*shape).mul(2).softmax(1)


def same(f, g, inputs, params, tol=1e-9):
    "Equal outputs, and equal gradients of a random weighted sum"
    a, b = f(), g()
    a, b = (a, b) if isinstance(a, tuple) else ((a,), (b,))
    weights = [torch.randn_like(t) for t in a]
    for t, u in zip(a, b): torch.testing.assert_close(t, u, atol=tol, rtol=tol)
    total = lambda ts: sum((t * w).sum() for t, w in zip(ts, weights))
    ga = torch.autograd.grad(total(a), [*inputs, *params]); gb = torch.autograd.grad(total(b), [*inputs, *params])
    for t, u in zip(ga, gb): torch.testing.assert_close(t, u, atol=tol, rtol=tol)


def literal_bn(x, bn):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + bn.eps).sqrt() * bn.weight.view(1, -1, 1, 1) + bn.bias.view(1, -1, 1, 1)


def literal_block(block, x, **kw):
    "Convolution, BN and activation of a `conv_block`, written out"
    z = literal_bn(F.conv2d(x, block[0].weight, **{"padding": block[0].padding[0], **kw}), block[1])
    if len(block) < 3: return z
    return torch.where(z > 0, z, z * (block[2].weight.view(1, -1, 1, 1) if isinstance(block[2], nn.PReLU) else 0))


def literal_pool(x):
    "2x2 maxima in ceil mode: the last window may be cut"
    H, W = x.shape[2:]
    return torch.stack([torch.stack([x[:, :, i:i + 2, j:j + 2].amax((2, 3)) for j in range(0, W, 2)], -1) for i in range(0, H, 2)], -2)


def literal_vgg(trunk, x, S=None):
    "The VGG-like trunk, a pool replaced by SSG where the trunk has one"
    for i, (first, second) in enumerate(trunk.stages):
        x = literal_block(first, x)
        if isinstance(second, SSG): x = literal_ssg(second, x, F.adaptive_avg_pool2d(S, x.shape[-2:]))
        else: x = literal_block(second, x); x = literal_pool(x) if i < 4 else x
    return x


def random_norms(net):
    "BN, slopes and zero kernels with values that a mistake would show in"
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d): m.weight.uniform_(.5, 1.5), m.bias.normal_(0, .5)
            if isinstance(m, nn.PReLU): m.weight.uniform_(-.5, .9)
            if isinstance(m, SA): m.phi_s.weight.normal_(), m.phi_a.weight.normal_()
    return net


# ---- SSP: five steps, one number at a time
def literal_ssp(pool, X, S, norm):
    B, C, H, W = X.shape; NS = S.shape[1]; NA = pool.recognise.out_features
    rows = []
    for b in range(B):
        R, L = [], []
        for k in range(NS):
            Xk = X[b] * S[b, k]                                                    # 1. X_k = X * S_k
            v = Xk.sum((1, 2)) / (H * W if norm == "area" else S[b, k].sum() + 1e-6)   # 2. spatial mean
            R.append(pool.recognise.weight @ v + pool.recognise.bias)              # 3. two branches
            L.append(pool.localise.weight @ v + pool.localise.bias)
        logits = []
        for j in range(NA):
            e = torch.stack([L[k][j].exp() for k in range(NS)])                    # 4. softmax over regions
            logits.append(sum(e[k] / e.sum() * R[k][j] for k in range(NS)))        # 5. sum of weighted logits
        rows.append(torch.stack(logits))
    return torch.stack(rows)


@pytest.mark.parametrize("norm", ["area", "mask"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_ssp_literal(norm, channels_last):
    X, S, pool = torch.randn(2, 6, 5, 4), probabilities(2, 3, 5, 4).requires_grad_(), SSP(6, 4, norm=norm)
    if channels_last: X = X.to(memory_format=torch.channels_last)
    X.requires_grad_()
    same(lambda: pool(X, S), lambda: literal_ssp(pool, X, S, norm), [X, S], pool.parameters(), tol=1e-7 if norm == "mask" else 1e-9)


def test_ssp_with_one_region_is_average_pooling():
    X, pool = torch.randn(2, 6, 5, 4), SSP(6, 4)
    torch.testing.assert_close(pool(X, torch.ones(2, 1, 5, 4)), pool.recognise(X.mean((2, 3))))
    assert not torch.allclose(SSP(6, 4)(X, probabilities(2, 3, 5, 4)), pool.recognise(X.mean((2, 3))))


def test_ssp_is_equivariant_in_regions_and_ignores_empty_ones_by_area():
    X, S, pool = torch.randn(2, 6, 5, 4), probabilities(2, 3, 5, 4), SSP(6, 4)
    torch.testing.assert_close(pool(X, S), pool(X, S[:, [2, 0, 1]]))


def literal_copies(pool, X, S):
    v = (X[:, None] * S[:, :, None]).mean((-2, -1))
    R, L = pool.recognise(v), pool.localise(v)
    return (L.softmax(1) * R).sum(1)


def test_ssp_memory_is_a_tenth():
    torch.set_default_dtype(torch.float32)
    X, S, pool = torch.randn(4, 256, 14, 12, requires_grad=True), probabilities(4, 7, 14, 12), SSP(256, 40)
    peak = lambda f: peak_bytes(lambda: f(X, S).sum().backward())
    assert peak(pool) <= peak(lambda X, S: literal_copies(pool, X, S)) / 10
    assert peak(pool) < 1.2 * X.nbytes   # hardly more than the gradient of the map itself


@pytest.mark.parametrize("kw", [dict(scale="regions", even_start=True), dict(after="layer"), dict(after="batch"), dict(after="l2"),
                                dict(norm="mask", scale=3.)])
def test_ssp_options_train(kw):
    pool, X, S = SSP(6, 4, **kw), torch.randn(5, 6, 5, 4, requires_grad=True), probabilities(5, 3, 5, 4)
    loss = pool(X, S).square().sum(); loss.backward()
    assert torch.isfinite(loss) and X.grad.abs().sum() > 0 and pool.recognise.weight.grad.abs().sum() > 0


# ---- pyramid, boxes, naive
def test_sppnet_head():
    with torch.device("meta"): assert SPPNet(backbone("vgg_like"), 40).head.weight.shape == (40, 5 * 1024)


def test_landmark_masks_against_painted_pixels():
    points = torch.tensor([[[30., 40], [60, 40], [45, 60], [3, 80], [58, 119]]])
    got = landmark_masks(points, (120, 90), frame=(120, 90), side=8)
    painted = torch.ones(16, 1200, 900)                                # tenths of a pixel
    ys, xs = (torch.arange(1200) + .5)[:, None] / 10, (torch.arange(900) + .5)[None] / 10
    for i, (x, y) in enumerate(points[0]):
        for r, (w, h) in enumerate([(8, 8), (8 / 2 ** .5, 8 * 2 ** .5), (8 * 2 ** .5, 8 / 2 ** .5)]):
            painted[1 + 3 * i + r] = ((xs - x).abs() < w / 2) & ((ys - y).abs() < h / 2)
    want = F.avg_pool2d(painted[None], 10)[0]
    assert (got[0].double() - want).abs().max() < .06 and (got[0].double() - want).abs().mean() < 1e-3
    assert got.min() >= 0 and got.max() <= 1


def test_bbox_is_ssp_over_sixteen_boxes():
    net, x = BBoxNet(backbone("small", width=.5), 4).float().eval(), torch.rand(2, 3, 80, 64, dtype=torch.float32)
    points = torch.rand(2, 5, 2, dtype=torch.float32) * 150
    torch.testing.assert_close(net(x, points), net.pool(net.backbone(x), landmark_masks(points, (20, 16))))
    assert net.region_weights(x, points).shape == (2, 16, 4)


def literal_boxes(points, size, frame, side):
    "Sixteen boxes, cell by cell: the share of each cell that the box covers"
    masks = torch.ones(len(points), 16, *size)
    cover = lambda centre, width, k, cell: max(0., min(centre + width / 2, (k + 1) * cell) - max(centre - width / 2, k * cell)) / cell
    for b, marks in enumerate(points.tolist()):
        for i, (x, y) in enumerate(marks):
            for r, (w, h) in enumerate([(side, side), (side / 2 ** .5, side * 2 ** .5), (side * 2 ** .5, side / 2 ** .5)]):
                rows = torch.tensor([cover(y, h, p, frame[0] / size[0]) for p in range(size[0])])
                masks[b, 1 + 3 * i + r] = rows[:, None] * torch.tensor([cover(x, w, q, frame[1] / size[1]) for q in range(size[1])])
    return masks


def cells(m):
    "The pyramid of a 4 x 4 map: all of it, and its four quarters"
    quarters = [m[:, :, i:i + 2, j:j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)]
    return torch.cat([m.mean((2, 3)), torch.stack(quarters, 2).flatten(1)], 1)


def literal_sspnet(net, x, S):
    return literal_ssp(net.pool, literal_vgg(net.backbone, x), F.adaptive_avg_pool2d(S, 4), "area")


def literal_naive(net, x, S):
    return net.head(literal_vgg(net.backbone, literal_bn(torch.cat([x, S], 1), net.bn)).mean((2, 3)))


POINTS = torch.tensor([[[60.5, 100], [110, 102], [88, 130.5], [2, 160], [110, 215]], [[70, 90], [120, 95], [90, 120], [75, 150], [105, 150.5]]])
WHOLE = {   # model, extras from masks, its literal form on the trunk's last map or from the picture
    "avg_pool": (lambda t: AvgPool(t(), 4), lambda S: (), lambda net, x: net.head(sum(m for m in literal_vgg(net.backbone, x).flatten(2).unbind(2)) / 16)),
    "spp_net": (lambda t: SPPNet(t(), 4), lambda S: (), lambda net, x: net.head(cells(literal_vgg(net.backbone, x)))),
    "naive": (lambda t: NaiveNet(t(in_channels=6), 4), lambda S: (S,), literal_naive),
    "bbox": (lambda t: BBoxNet(t(), 4), lambda S: (POINTS,), lambda net, x, P: literal_sspnet(net, x, literal_boxes(P, (14, 13), (218, 178), 20))),
    "ssp": (lambda t: SSPNet(t(), 4), lambda S: (S,), lambda net, x, S: literal_sspnet(net, x, S))}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_network_literal(name):
    make, extras, literal = WHOLE[name]
    net = random_norms(make(lambda **kw: backbone("vgg_like", width=.02, **kw)))
    x, given = torch.randn(2, 3, 56, 52, requires_grad=True), extras(probabilities(2, 3, 56, 52))
    same(lambda: net(x, *given), lambda: literal(net, x, *given), [x], net.parameters(), tol=1e-6)


# ---- SSG
def literal_ssg(ssg, x, S):
    "Gate, BN, PReLU, max-pool and the restoring convolution written out, statistics by hand"
    C, NS = ssg.conv.out_channels, S.shape[1]
    y = F.conv2d(x, ssg.conv.weight, padding=1)
    places = y.shape[2] * y.shape[3]
    copies = [y * (S[:, k] / (S[:, k].sum((1, 2), keepdim=True) + 1e-6))[:, None] * places for k in range(NS)]
    g = torch.cat(copies, 1)                                                                     # channel k*C + c
    mean, var = g.mean((0, 2, 3), keepdim=True), g.var((0, 2, 3), correction=0, keepdim=True)
    g = (g - mean) / (var + ssg.bn.eps).sqrt() * ssg.bn.weight.view(1, -1, 1, 1) + ssg.bn.bias.view(1, -1, 1, 1)
    g = torch.where(g > 0, g, g * ssg.act.weight.view(1, -1, 1, 1))
    p = literal_pool(g)
    z = torch.einsum("oc,bchw->bohw", ssg.restore[0].weight[:, :, 0, 0], p)
    bn, act = ssg.restore[1], ssg.restore[2]
    z = literal_bn(z, bn)
    return torch.where(z > 0, z, z * act.weight.view(1, -1, 1, 1))


def random_ssg(*a):
    ssg = SSG(*a).double()
    with torch.no_grad():
        for p in [ssg.bn.weight, ssg.bn.bias, ssg.act.weight, ssg.restore[1].weight, ssg.restore[1].bias]: p.normal_()   # slopes of both signs
    return ssg


@pytest.mark.parametrize("form", ["forward", "literal"])
def test_ssg_literal(form):
    ssg, x, S = random_ssg(3, 4, 3), torch.randn(2, 3, 7, 6, requires_grad=True), probabilities(2, 3, 7, 6).requires_grad_()
    same(lambda: getattr(ssg, form)(x, S), lambda: literal_ssg(ssg, x, S), [x, S], ssg.parameters(), tol=1e-7)


def test_ssg_running_statistics_and_evaluation():
    ours = random_ssg(3, 4, 3); theirs = SSG(3, 4, 3).double(); theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x, S = torch.randn(2, 3, 7, 6), probabilities(2, 3, 14, 12)
        ours(x, S).sum().backward(); theirs.literal(x, S).sum().backward()                       # recomputation must not move them twice
    for (n, a), b in zip(ours.named_buffers(), theirs.buffers()): torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10, msg=n)
    assert ours.bn.num_batches_tracked == 3
    torch.testing.assert_close(ours.eval()(x, S), theirs.eval().literal(x, S), atol=1e-9, rtol=1e-9)


def face(n, size):
    "Probabilities of seven regions: a background of half the places down to eyes of four, as sure as a parser is"
    label = torch.zeros(28, 23, dtype=torch.long)
    label[2:26, 4:19] = 1; label[6:25, 6:17] = 2; label[8, 7:10] = 4; label[8, 13:16] = 4
    label[10, 8:10] = 3; label[10, 13:15] = 3; label[19:21, 9:14] = 5; label[11:16, 10:13] = 6
    maps = torch.stack([F.one_hot(label.roll(i, 1), 7).movedim(-1, 0) * .98 + .02 / 7 for i in range(n)])
    return F.adaptive_avg_pool2d(maps.to(torch.get_default_dtype()), size)


@pytest.mark.parametrize("size", [(28, 23), (14, 12), (109, 89)])
@pytest.mark.parametrize("gain", [1., .2])
def test_bn_after_gating_makes_every_region_normal(size, gain):
    torch.set_default_dtype(torch.float32)
    ssg, x, S = SSG(16, 8, 7), gain * torch.randn(2, 16, *size).relu(), face(2, size)
    spread = lambda normal: normal.transpose(0, 1).unflatten(0, (7, 8)).flatten(2).std(2).mean(1)
    torch.testing.assert_close(spread(ssg.normal(x, S)), torch.ones(7), atol=1e-2, rtol=0)       # background, hair, ..., eyes, mouth
    if gain < 1:                                              # with masks that only sum to one, the eps of BN rules
        y = ssg.conv(x)
        alone = nn.BatchNorm2d(56)((y[:, None] * sum_to_one(S)[:, :, None]).flatten(1, 2))
        assert spread(alone)[0] < .6


def test_ssg_masks_sum_to_one_before_they_are_rescaled():
    ssg, x, S = SSG(3, 4, 3).double(), torch.randn(2, 3, 7, 6), probabilities(2, 3, 14, 12)
    torch.testing.assert_close(ssg.masks_at(ssg.conv(x), S) / 42, sum_to_one(F.adaptive_avg_pool2d(S, (7, 6))))


def test_ssg_starts_by_he():
    torch.manual_seed(0)
    ssg = SSG(256, 512, 7)
    for conv, fan_out in ((ssg.conv, 9 * 512), (ssg.restore[0], 512)):
        assert abs(conv.weight.std().item() / (2 / fan_out) ** .5 - 1) < .02 and conv.bias is None
    with_pool = SSGNet(backbone("vgg_like", width=.25), 4, n_regions=7).backbone.stages[3][-1]
    assert abs(with_pool.conv.weight.std().item() / (2 / (9 * 128)) ** .5 - 1) < .02


def test_ssg_memory_is_a_third():
    torch.set_default_dtype(torch.float32)
    ssg, x, S = SSG(64, 64, 7), torch.randn(4, 64, 28, 23, requires_grad=True), probabilities(4, 7, 28, 23)
    peak = lambda f: peak_bytes(lambda: f(x, S).sum().backward())
    assert peak(ssg) <= peak(ssg.literal) / 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for resident memory")
@pytest.mark.parametrize("channels_last, kept", [(False, False), (True, True)])
def test_ssg_resident_memory_is_a_third(channels_last, kept):
    "By the process's own memory, too: .1 of the literal form's rise was measured, and under a third with libraries and inputs"
    ours, literal = (ssg_resident(form, channels_last=channels_last, kept=kept) for form in ("forward", "literal"))
    assert ours["rise"] <= literal["rise"] / 5 and ours["peak"] <= literal["peak"] / 3, (ours, literal)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_ssg_in_shares_of_the_batch(channels_last, wide, monkeypatch):
    "A batch that is worked off a few images at a time, and places that need more than a byte"
    monkeypatch.setattr("symbiosis_nb.models.gating._shares", lambda y: [slice(0, 2), slice(2, 4), slice(4, 6)])
    size = (3, 300) if wide else (7, 6)
    ssg, x, S = random_ssg(3, 4, 3), torch.randn(5, 3, *size), probabilities(5, 3, *size).requires_grad_()
    if channels_last: ssg, x = ssg.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    same(lambda: ssg(x, S), lambda: literal_ssg(ssg, x, S), [x, S], ssg.parameters(), tol=1e-7)


@pytest.mark.parametrize("side", [(28, 23), (20, 16), (7, 5)])
def test_ssg_shape_equals_the_block_it_replaces(side):
    x, S = torch.randn(2, 3, *side), probabilities(2, 4, *side)
    assert SSG(3, 8, 4)(x, S).shape == F.max_pool2d(torch.empty(2, 8, *side), 2, ceil_mode=True).shape
    torch.testing.assert_close(sum_to_one(S).sum((2, 3)), torch.ones(2, 4), atol=1e-6, rtol=0)


def test_bn_as_affine_equals_batch_norm():
    y, S, bn, twin = torch.randn(3, 4, 5, 6), probabilities(3, 2, 5, 6), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    scale, shift = affine_of_bn(bn, y, S)
    g = y[:, None] * S[:, :, None]
    torch.testing.assert_close((g * scale[..., None, None] + shift[..., None, None]).flatten(1, 2), twin(g.flatten(1, 2)))
    torch.testing.assert_close(bn.running_var, twin.running_var)


@pytest.mark.parametrize("at", [(3,), (2, 4)])
def test_ssgnet_literal(at):
    net = random_norms(SSGNet(backbone("vgg_like", width=.02), 4, n_regions=3, at=at))
    x, S = torch.randn(2, 3, 28, 26, requires_grad=True), probabilities(2, 3, 28, 26)
    same(lambda: net(x, S), lambda: net.head(literal_vgg(net.backbone, x, S).mean((2, 3))), [x], net.parameters(), tol=1e-6)


@pytest.mark.parametrize("at", [(1,), (4,), (1, 2, 3, 4)])
def test_ssgnet_at_any_pools(at):
    trunk = backbone("vgg_like", width=.125)
    net = SSGNet(trunk, 4, n_regions=3, at=at).double()
    x, S = torch.rand(2, 3, 54, 44), probabilities(2, 3, 54, 44)
    loss = net(x, S).square().sum(); loss.backward()
    assert sum(isinstance(m, SSG) for m in net.modules()) == len(at) and all(p.grad is not None for p in net.parameters())
    assert net.features(x, S).shape == (2, trunk.channels[-1], 4, 3)


STRIDED = [("resnet18", {}, 3), ("efficientnet_lite0", {}, 3), ("efficientnet_lite0", dict(stride=16), 3), ("inception_v3", {}, 2)]


@pytest.mark.parametrize("name, how, stage", STRIDED)
def test_ssgnet_on_a_trunk_without_pools(name, how, stage):
    "In place of the block that leads to stride 16; nothing else of the trunk is touched"
    torch.set_default_dtype(torch.float32)
    trunk = backbone(name, width=.25, **how)
    shape, before = trunk.eval()(torch.rand(1, 3, 96, 80)).shape, {k: v.clone() for k, v in trunk.state_dict().items()}
    net = SSGNet(trunk.train(), 4, n_regions=3)
    gates = [k for k, m in net.backbone.named_modules() if isinstance(m, SSG)]
    assert len(gates) == 1 and gates[0].startswith(f"stages.{stage}.") and net.backbone.training
    after = {k: v for k, v in net.backbone.state_dict().items() if not k.startswith(gates[0] + ".")}
    assert after and all(torch.equal(v, before[k]) for k, v in after.items())
    x, S = torch.rand(2, 3, 96, 80), probabilities(2, 3, 96, 80).float()
    more = [ours - theirs for ours, theirs in zip(net.eval().features(x, S).shape[1:], shape[1:])]
    assert more[0] == 0 and min(more) == 0 and max(more) <= (name == "inception_v3")   # whose blocks do not pad: a place fewer
    net.train()(x, S).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("at", [(), (0,), (2,), (6,)])
def test_ssgnet_names_the_places_there_are(at):
    with pytest.raises(ValueError, match=r"stages \[1, 3, 4, 5\] halve its map"): SSGNet(backbone("resnet18", width=.25), 4, 3, at=at)


def test_a_stem_of_stride_4_moves_no_gate():
    "Strides count, not blocks: the fourth block of this trunk leads to stride 32"
    torch.set_default_dtype(torch.float32)
    convs = [nn.Sequential(nn.Conv2d(a, b, 2*s - 1, s, s - 1)) for a, b, s in ((3, 4, 4), (4, 5, 2), (5, 6, 2), (6, 7, 2))]
    net = SSGNet(Backbone(convs), 4, 3)
    assert [isinstance(stage[0], SSG) for stage in net.backbone.stages] == [False, False, True, False]
    assert (net.backbone.stages[2][0].conv.in_channels, net.backbone.stages[2][0].conv.out_channels) == (5, 6)


def test_ssg_under_autocast_stays_close():
    torch.set_default_dtype(torch.float32)
    net, x, S = SSGNet(backbone("small", width=.5), 4, n_regions=3).eval(), torch.rand(2, 3, 80, 64), probabilities(2, 3, 80, 64)
    with torch.autocast("cpu", torch.bfloat16): low = net(x, S)
    torch.testing.assert_close(low.float(), net(x, S), atol=.05, rtol=.05)
    net.train()
    with torch.autocast("cpu", torch.bfloat16): net(x, S).float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_ssg_of_one_place_stays_in_the_range_of_float16():
    torch.set_default_dtype(torch.float32)
    ssg, x, S = SSG(3, 8, 2), 20 * torch.randn(1, 3, 218, 178), torch.zeros(1, 2, 218, 178)
    S[:, 0] = 1; S[:, 0, 100, 80], S[:, 1, 100, 80] = 0, 1                    # one place of 38,804: its mask is 38,804 there
    with torch.autocast("cpu", torch.float16): low = ssg(x, S)
    assert torch.isfinite(low).all()
    low.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in ssg.parameters())


def test_averaged():
    a, b = (SSPNet(backbone("small", width=.25), 4).double().eval() for _ in range(2))
    x, S = torch.rand(2, 3, 80, 64), probabilities(2, 3, 80, 64)
    torch.testing.assert_close(Averaged([a, b])(x, S).sigmoid().double(), (a(x, S).sigmoid() + b(x, S).sigmoid()) / 2, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(Averaged([a, b], of="logits")(x, S).double(), (a(x, S) + b(x, S)) / 2, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError): Averaged([a, b], of="scores")


# ---- SA
def literal_sa(sa, xa, xs):
    A0 = torch.einsum("jc,bchw->bjhw", sa.attribute_maps.weight[..., 0, 0], xa) + sa.attribute_maps.bias.view(1, -1, 1, 1)
    S0 = torch.einsum("kc,bchw->bkhw", sa.region_maps.weight[..., 0, 0], xs) + sa.region_maps.bias.view(1, -1, 1, 1)
    B, NA, H, W = A0.shape
    P = F.conv2d(literal_bn(S0, sa.bn_s), sa.phi_s.weight, padding=1)
    places = [(y, x) for y in range(H) for x in range(W)]
    pooled = lambda b, j: sum(P[b, j, y, x].exp() / P[b, j].exp().sum() * A0[b, j, y, x] for y, x in places)
    a = torch.stack([torch.stack([pooled(b, j) for j in range(NA)]) for b in range(B)])
    Q = F.conv2d(literal_bn(A0, sa.bn_a), sa.phi_a.weight, padding=1)
    G = torch.stack([Q[:, k] - Q.exp().sum(1).log() for k in range(Q.shape[1])], 1)
    return a, S0 + G


def test_sa_literal():
    sa, xa, xs = SA(3, 2, 5, 4).double(), torch.randn(2, 5, 4, 3, requires_grad=True), torch.randn(2, 4, 4, 3, requires_grad=True)
    with torch.no_grad():
        for p in sa.parameters(): p.normal_()
    same(lambda: sa(xa, xs), lambda: literal_sa(sa, xa, xs), [xa, xs], sa.parameters(), tol=1e-9)


def test_sa_at_zero_changes_nothing():
    sa, xa, xs = SA(40, 11, 8, 6).double(), torch.randn(2, 8, 17, 17), torch.randn(2, 6, 17, 17)
    (A0, S0), (a, S) = sa.first(xa, xs), sa(xa, xs)
    torch.testing.assert_close(a, A0.mean((2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(S.softmax(1), S0.softmax(1), atol=1e-6, rtol=0)
    assert sa.phi_s.weight.shape == (40, 11, 3, 3) and sa.phi_s.weight.numel() == sa.phi_a.weight.numel() == 3960
    assert sa.phi_s.bias is None and sa.phi_a.bias is None


def test_sa_both_tasks_train_both_sides():
    sa, xa, xs = SA(3, 2, 5, 4).double(), torch.randn(2, 5, 4, 3), torch.randn(2, 4, 4, 3)
    nn.init.normal_(sa.phi_s.weight); nn.init.normal_(sa.phi_a.weight)
    a, S = sa(xa, xs)
    for out in (a, S):
        grads = torch.autograd.grad(out.square().sum(), [sa.attribute_maps.weight, sa.region_maps.weight], retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads)


def literal_join(join, taps, size):
    up = [F.interpolate(t, size=size, mode="bilinear", align_corners=False) if t.shape[-2:] != size else t for t in taps]   # resize first, then normalise
    return literal_block(join.reduce, torch.cat([t / t.square().sum(1, keepdim=True).sqrt() * n.scale for t, n in zip(up, join.norms)], 1))


def test_join_taps_literal():
    join = JoinTaps([3, 4], 5)
    with torch.no_grad():
        for n in join.norms: n.scale.uniform_(5, 30)
    fine, coarse = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 4, 3, 3, requires_grad=True)
    same(lambda: join([fine, coarse], (6, 6)), lambda: literal_join(join, [fine, coarse], (6, 6)), [fine, coarse], join.parameters())


def literal_aspp(aspp, x, rates):
    image = literal_block(aspp.image, x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
    dilated = [literal_block(d, x, padding=r, dilation=r) for d, r in zip(aspp.dilated, rates)]
    return literal_block(aspp.join, torch.cat([image, literal_block(aspp.point, x), *dilated], 1))


def test_aspp_literal():
    aspp, x = ASPP(6, width=1/64, rates=(1, 2)), torch.randn(2, 6, 5, 5, requires_grad=True)
    same(lambda: aspp(x), lambda: literal_aspp(aspp, x, (1, 2)), [x], aspp.parameters(), tol=1e-8)


def literal_small(trunk, x):
    "The maps of the small trunk's stages"
    one, two, (pool,), (four, residual) = trunk.stages
    a = literal_block(one, x, stride=2); b = literal_block(two, a, stride=2); c = literal_pool(literal_block(pool, b)); d = literal_block(four, c)
    return [a, b, c, (d + literal_block(residual.body[1], literal_block(residual.body[0], d))).relu()]


@pytest.mark.parametrize("taps", [(-3, -2, -1), None])
def test_sanet_literal(taps):
    net, x = random_norms(SANet(backbone("small", width=.25), 3, n_regions=2, taps=taps, rates=(1, 2))), torch.randn(2, 3, 32, 24, requires_grad=True)
    def literal():
        maps = literal_small(net.backbone, x)
        xa = F.interpolate(maps[-1], size=(8, 6), mode="bilinear", align_corners=False)
        return literal_sa(net.sa, xa, literal_aspp(net.aspp, literal_join(net.join, maps[-3:], (8, 6)) if taps else xa, (1, 2)))
    same(lambda: net.training_outputs(x), literal, [x], net.parameters(), tol=1e-6)
    torch.testing.assert_close(net(x), net.training_outputs(x)[0])


def test_counts_of_the_specification():
    with torch.device("meta"):
        assert n_parameters(ASPP(2048)) == 23_074_816
        assert n_parameters(JoinTaps([768, 1280, 2048], 2048).reduce) == 8_392_704
        net = SANet(backbone("inception_v3"), 40, 11)
    assert net.sa.attribute_maps.in_channels == 2048 and net.aspp.out_channels == 1024
    assert n_parameters(net) == SANET


def test_sanet_forms():
    x = torch.rand(2, 3, 80, 64)
    for taps in ((-3, -2, -1), (-2, -1), None):
        net = SANet(backbone("small", width=.25), 4, n_regions=3, taps=taps).double()
        a, S = net.training_outputs(x)
        (a.square().sum() + S.square().sum()).backward()
        assert a.shape == (2, 4) and S.shape == (2, 3, 20, 16) and net.parse(x).shape == (2, 3, 80, 64)
        where = net.where(x)
        assert where.min() >= 0 and torch.allclose(where.amax((2, 3)), torch.ones(2, 4))
        assert all(p.grad is not None for p in net.parameters())


def test_region_mask_literal():
    layer, x, s = RegionMask(4, 3).double(), torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(2, 3, 5, 5, requires_grad=True)
    torch.testing.assert_close(layer(x, s), x)
    nn.init.normal_(layer.phi.weight)
    def literal():
        P = F.conv2d(literal_bn(s, layer.bn), layer.phi.weight, padding=1).exp()
        return x * P / P.sum((2, 3), keepdim=True) * 25
    same(lambda: layer(x, s), literal, [x, s], layer.parameters())


def test_naive_repeats_masks_that_are_coarser_than_the_picture():
    net, x, S = NaiveNet(backbone("small", width=.25, in_channels=6), 4).double().eval(), torch.rand(2, 3, 40, 32), probabilities(2, 3, 20, 16)
    torch.testing.assert_close(net(x, S), net(x, S.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    assert "full resolution" in NaiveNet.__doc__


def test_ssp_by_area_is_the_default_and_starts_uneven():
    net, told = (SSPNet(backbone("small", width=.25), 4, **kw) for kw in ({}, dict(norm="area", even_start=False)))
    told.load_state_dict(net.state_dict())
    x, S = torch.rand(2, 3, 40, 32), probabilities(2, 3, 40, 32)
    torch.testing.assert_close(net.double()(x, S), told.double()(x, S))
    assert told.pool.norm == "area" and told.pool.localise.weight.abs().sum() > 0


# ---- balanced loss
def test_balanced_weights_have_no_largest():
    p = torch.tensor([.0224, .002, .5, .9], dtype=torch.float32)
    pos, neg = balance_weights(p)
    torch.testing.assert_close(pos, .5 / p); torch.testing.assert_close(neg, .5 / (1 - p))
    assert pos[1].item() == pytest.approx(250)
    torch.testing.assert_close(p * pos, (1 - p) * neg)                     # both kinds weigh the same


def test_balanced_weights_where_there_is_one_kind_only():
    pos, neg = balance_weights([0., 1., float("nan")])
    assert pos.tolist() == neg.tolist() == [1., 1., 1.]
    y = torch.tensor([[1., 0., torch.nan]], dtype=torch.float32)
    assert torch.isfinite(masked_bce(torch.zeros(1, 3, dtype=torch.float32), y, (pos, neg)))


def test_kernel_atlas():
    k = torch.zeros(2, 3, 3, 3); k[0, 1] = 9; k[0, 2, 0, 0] = 9; k[1, 0] = -1
    torch.testing.assert_close(kernel_atlas(k), torch.tensor([[0, 1, 1 / 9], [0, 1, 1.]]))


# ---- segmenters
def test_encoder_decoder_layers():
    with torch.device("meta"): net = EncoderDecoder(7)
    conv = [(m.in_channels, m.out_channels) for m in net.modules() if isinstance(m, nn.Conv2d)]
    deconv = [(m.in_channels, m.out_channels) for m in net.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert conv == [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert deconv == [(512, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 7)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 16 and isinstance(list(net.modules())[-1], nn.ConvTranspose2d)


def literal_unpool(x, full):
    "Every value of x back where the maximum of its window was in `full`, zeros elsewhere"
    spread = lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :full.shape[2], :full.shape[3]]
    return spread(x) * (full == spread(literal_pool(full)))


def literal_deconv(block, x):
    "A transposed convolution with stride 1 is a convolution with the kernel turned round"
    z = literal_bn(F.conv2d(x, block[0].weight.flip(2, 3).transpose(0, 1), padding=1), block[1])
    return torch.where(z > 0, z, z * block[2].weight.view(1, -1, 1, 1))


@pytest.mark.parametrize("size", [(16, 16), (15, 13)])
def test_encoder_decoder_literal(size):
    net, x = random_norms(EncoderDecoder(3, width=.02)), torch.randn(2, 3, *size, requires_grad=True)
    def literal():
        y, fulls = x, []
        for block in net.down:
            for layer in block: y = literal_block(layer, y)
            fulls.append(y); y = literal_pool(y)
        for layer in net.middle[0]: y = literal_block(layer, y)
        for layer in net.middle[1]: y = literal_deconv(layer, y)
        for block, full in zip(net.up, reversed(fulls)):
            y = literal_unpool(y, full)
            for layer in block: y = literal_deconv(layer, y)
        return F.conv2d(y, net.classify.weight.flip(2, 3).transpose(0, 1), net.classify.bias, padding=1)
    same(lambda: net(x), literal, [x], net.parameters(), tol=1e-6)


@pytest.mark.parametrize("make", [lambda: EncoderDecoder(5, width=.125), lambda: small_parser(5, width=.25), lambda: ASPPNet(backbone("small", width=.25), 5)])
def test_segmenters_keep_the_size_and_train(make):
    net = make().double()
    for size in ((80, 64), (55, 45)):
        out = net(torch.rand(2, 3, *size))
        assert out.shape == (2, 5, *size)
    out.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_parser_stays_frozen_inside_a_training_model():
    parser = Parser(small_parser(3, width=.25))
    net = SSPNet(backbone("small", width=.25), 4, parser=parser).double().train()
    before = {k: v.clone() for k, v in parser.state_dict().items()}
    net(torch.rand(4, 3, 80, 64)).sum().backward()
    assert not parser.training and all(torch.equal(before[k], v) for k, v in parser.state_dict().items())
    assert all(p.grad is None for p in parser.parameters()) and not any(p is q for g in net.param_groups() for p in g for q in parser.parameters())
    assert all(p.grad is not None for p in net.pool.parameters())


# ---- at the paper's size
TRUNK, HEAD = 23_567_808, 41_000   # convolutions and BN of the VGG-like trunk, one FC(1024, 40)
GATED = TRUNK - 2 * 512 + 7 * 2 * 512 + 7 * 512 * 512 + 2 * 512   # at pool 4: BN on seven copies, and the restoring convolution with its BN
SANET = 21_785_568 + 8_392_704 + 4096 + 23_074_816 + (2048 * 40 + 40) + (1024 * 11 + 11) + 2 * (40 + 11) + 2 * 3960
PAPER = {"ssp": ((218, 178), lambda: SSPNet(backbone("vgg_like"), 40), TRUNK + 2 * HEAD),
         "ssg": ((218, 178), lambda: SSGNet(backbone("vgg_like"), 40, 7), GATED + HEAD),
         "sa": ((299, 299), lambda: SANet(backbone("inception_v3"), 40, 11), SANET)}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_paper_size_training_step(name):
    torch.set_default_dtype(torch.float32); torch.set_num_threads(2)
    size, make, count = PAPER[name]
    net, x, y = make(), torch.randn(2, 3, *size), torch.rand(2, 40).round()
    assert n_parameters(net) - sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.PReLU)) == count
    opt, before = torch.optim.SGD(net.parameters(), lr=1e-3), [p.detach().clone() for p in net.parameters()]
    if name == "sa":
        logits, regions = net.training_outputs(x)
        assert logits.shape == (2, 40) and regions.shape == (2, 11, 17, 17)
        loss = F.binary_cross_entropy_with_logits(logits, y) + parsing_ce(regions, torch.randint(0, 11, (2, *size)))
    else: loss = F.binary_cross_entropy_with_logits(net(x, probabilities(2, 7, 109, 89)), y)
    loss.backward(); opt.step()
    assert torch.isfinite(loss) and all(torch.isfinite(p).all() for p in net.parameters())
    assert sum(not torch.equal(p, q) for p, q in zip(net.parameters(), before)) > .9 * len(before)
