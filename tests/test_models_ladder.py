"BLAN's layers against slow transcriptions of its equations in float64: outputs, gradients, counts, the printed sizes, the total loss"
import pytest, torch
import torch.nn.functional as F
from torch import nn

from symbiosis_nb.learner import OwnSGD, split_groups
from symbiosis_nb.models.backbones import backbone, n_parameters, peak_bytes, saved_bytes
from symbiosis_nb.models.ladder import (ABLATION, BLAN, FEATURES, ORDERS, OTHER_READINGS, RDAM, UNITS, AttributeClassifier, ChannelGate, LadderDecoder,
                                        MutualInformation, ScoreFusion, SpatialGate, fusion_rate, information_loss)
from symbiosis_nb.models.position import SE, init_new


@pytest.fixture(autouse=True)
def float64():
    torch.set_num_threads(1); torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def same(f, g, variables, tol=1e-9):
    "Equal outputs, and equal gradients of a random weighted sum"
    a, b = f(), g()
    a, b = (a, b) if isinstance(a, (tuple, list)) else ((a,), (b,))
    for t, u in zip(a, b): torch.testing.assert_close(t, u, atol=tol, rtol=tol)
    w = [torch.randn_like(t) for t in a]
    total = lambda ts: sum((t * v).sum() for t, v in zip(ts, w))
    for t, u in zip(torch.autograd.grad(total(a), variables), torch.autograd.grad(total(b), variables)): torch.testing.assert_close(t, u, atol=tol, rtol=tol)


def sigma(t): return 1 / (1 + (-t).exp())


def bn(x, m):
    "Batch normalisation with the batch's own statistics"
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + m.eps).sqrt() * m.weight.view(1, -1, 1, 1) + m.bias.view(1, -1, 1, 1)


def small(width=.25): return backbone("small", width=width)


# ---- attention
def literal_channel(gate, x):
    W1, W2 = gate.mlp[0], gate.mlp[2]
    mlp = lambda v: W2.weight @ (W1.weight @ v + W1.bias).clamp(min=0) + W2.bias
    return torch.stack([sigma(mlp(x[b].mean((1, 2))) + mlp(x[b].flatten(1).max(1).values)) for b in range(len(x))])[:, :, None, None]


def literal_spatial(gate, x):
    two = torch.stack([x.sum(1) / x.shape[1], x.max(1).values], 1)
    B, _, H, W = two.shape
    padded = F.pad(two, (3, 3, 3, 3))
    s = torch.stack([torch.stack([(padded[:, :, y:y + 7, x0:x0 + 7] * gate.conv.weight).sum((1, 2, 3)) for x0 in range(W)], -1) for y in range(H)], -2)[:, None]
    return sigma(bn(s, gate.bn))


def literal_rdam(m, enc, dec):
    x = torch.einsum("oc,bchw->bohw", m.join[0].weight[:, :, 0, 0], torch.cat([enc, dec], 1))
    f = bn(x, m.join[1]).clamp(min=0)
    if m.order == "channel-spatial":
        chn = f * literal_channel(m.channel, f)
        return chn * literal_spatial(m.spatial, chn) + enc
    if m.order == "spatial-channel":
        spt = f * literal_spatial(m.spatial, f)
        return spt * literal_channel(m.channel, spt) + enc
    return (f * literal_channel(m.channel, f) + f * literal_spatial(m.spatial, f)) / 2 + enc


@pytest.mark.parametrize("order", ORDERS)
def test_rdam_literal(order):
    m, enc, dec = RDAM(32, order).double(), torch.randn(2, 32, 5, 4, requires_grad=True), torch.randn(2, 32, 5, 4, requires_grad=True)
    with torch.no_grad():
        for p in m.parameters(): p.add_(torch.randn_like(p) * .1)
    same(lambda: m(enc, dec), lambda: literal_rdam(m, enc, dec), [enc, dec, *m.parameters()], tol=1e-8)


def test_rdam_oracles():
    gate, x = ChannelGate(64), torch.randn(2, 64, 5, 4)
    nn.init.zeros_(gate.mlp[2].weight); nn.init.zeros_(gate.mlp[2].bias)
    torch.testing.assert_close(gate(x), torch.full((2, 64, 1, 1), .5))
    m = RDAM(64); nn.init.zeros_(m.join[1].weight)      # F_spt = 0
    assert torch.equal(m(x, torch.randn_like(x)), x)
    assert gate.mlp[0].out_features == 4 and SpatialGate().conv.kernel_size == (7, 7)
    with pytest.raises(ValueError, match="order is one of"): RDAM(8, "none")


def test_rdam_choices_the_paper_leaves_open():
    with torch.device("meta"):
        wide = sum(n_parameters(RDAM(c, kernel=3)) - n_parameters(RDAM(c)) for c in (64, 128, 256))
        net = BLAN(40, kernel=3, reduction=8)
    assert wide == 1_376_256 and [m.channel.mlp[0].out_features for m in net.meet] == [8, 16, 32]   # 1.38 M more (blan, 9)
    assert RDAM(8, kernel=3)(torch.randn(2, 8, 5, 4), torch.randn(2, 8, 5, 4)).shape == (2, 8, 5, 4)
    with pytest.raises(ValueError, match="order: only features='attention'"): BLAN(4, small(), (40, 32), features="concat", order="parallel")


@pytest.mark.parametrize("channels", [8, 16, 32, 64, 128])
def test_gates_are_alive_at_the_start(channels):
    "A gate is dead when no hidden unit says anything about any picture; with one unit at 16 channels that were 39 % of the draws"
    torch.set_default_dtype(torch.float32); torch.manual_seed(0)
    dead = 0
    for _ in range(300):
        gate, x = ChannelGate(channels), torch.randn(8, channels, 6, 5).relu()
        init_new(gate)
        dead += all((gate.mlp[0](v) <= 0).all() for v in (x.mean((2, 3)), x.amax((2, 3))))
    assert dead / 300 <= (.04 if channels == 64 else .01)      # at 64 channels CBAM's C/16 are four units
    wanted = 8 if channels <= 32 else channels // 16
    assert ChannelGate(channels).mlp[0].out_features == SE(channels).gate[0].out_features == wanted


def test_the_gates_of_a_narrow_network_learn():
    net, x, y = BLAN(4, small(), (40, 32)).double(), torch.rand(6, 3, 40, 32), (torch.rand(6, 4) < .5).double()
    net.loss(net.training_outputs(x), y).backward()
    assert all(m.channel.mlp[0].weight.grad.abs().sum() > 0 for m in net.meet)


# ---- decoder
def literal_block(b, x):
    "A basic block: conv-BN-ReLU-conv-BN, shortcut, ReLU"
    y = bn(F.conv2d(bn(F.conv2d(x, b.conv1.weight, padding=1), b.bn1).clamp(min=0), b.conv2.weight, padding=1), b.bn2)
    if b.downsample is not None: x = bn(F.conv2d(x, b.downsample[0].weight), b.downsample[1])
    return (x + y).clamp(min=0)


def twice(x): return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])


@pytest.mark.parametrize("start", [4, 3])
def test_decoder_literal(start):
    channels, sizes = [4, 6, 8, 10], [(8, 8), (4, 4), (2, 2), (1, 1)]
    maps = [torch.randn(3, c, *s, requires_grad=True) for c, s in zip(channels, sizes)]
    net = LadderDecoder(channels, [3, 2, 2], start).double()
    def literal():
        x, out = maps[start - 1], []
        for level in (2, 1, 0):
            if not (start == 3 and level == 2): x = twice(x)      # start 3: each upsample comes after the blocks, so level 3 has none before
            for block in net.levels[level]: x = literal_block(block, x)
            out.insert(0, x)
        conv, last = net.tail
        image = bn(F.conv2d(twice(out[0]), conv[0].weight, padding=1), conv[1]).clamp(min=0)
        return [*out, F.conv2d(twice(image), last.weight, last.bias, padding=3)]
    ours = lambda: (lambda d: [*d, net.picture(d[0], (32, 32))])(net(maps))
    same(ours, literal, [*(maps if start == 4 else maps[:3])[start - 1:start], *net.parameters()], tol=1e-7)
    assert [tuple(d.shape) for d in net(maps)] == [tuple(m.shape) for m in maps[:3]]


def test_decoder_mirrors_resnet34():
    with torch.device("meta"): net = BLAN(40)
    assert [len(level) for level in net.decoder.levels] == [3, 4, 6]
    assert [(level[0].conv1.in_channels, level[0].conv1.out_channels) for level in net.decoder.levels] == [(128, 64), (256, 128), (512, 256)]
    assert all(m.stride == (1, 1) for m in net.decoder.modules() if isinstance(m, nn.Conv2d))
    with torch.device("meta"): below = BLAN(40, dec_start=3)
    assert below.decoder.levels[2][0].conv1.in_channels == 256 and n_parameters(below) < n_parameters(net)


# ---- classifiers
def test_classifier_literal():
    ac, x = AttributeClassifier((8, 6, 5), 3, UNITS[1], hidden=7, dropout=0.).double(), torch.randn(4, 8, 6, 5, requires_grad=True)
    def literal():
        y = x
        for (conv, norm, _), (stride, pad) in zip(ac.units, ((2, 1), (1, 0))):
            y = bn(F.conv2d(y, conv.weight, conv.bias, stride=stride, padding=pad), norm).clamp(min=0)
        t = y.flatten(1) @ ac.fc1.weight.T + ac.fc1.bias
        pairs = t.clamp(min=0) @ ac.fc2.weight.T + ac.fc2.bias              # absent, present, absent, present, ...
        return t, torch.stack([pairs[:, 2 * j + 1] - pairs[:, 2 * j] for j in range(3)], 1)
    same(lambda: ac(x), literal, [x, *ac.parameters()], tol=1e-8)


def test_classifier_without_relu():
    ac, x = AttributeClassifier((8, 6, 5), 3, UNITS[1], hidden=7, dropout=0., relu=False), torch.randn(4, 8, 6, 5)
    t, s = ac(x)
    pairs = (t @ ac.fc2.weight.T + ac.fc2.bias).unflatten(1, (3, 2))
    torch.testing.assert_close(s, pairs[..., 1] - pairs[..., 0])
    assert not BLAN(3, small(), (40, 32), relu=False).classifiers[0].act(torch.tensor(-1.)) > -1


def test_mutual_information_as_a_sum():
    x, nets = torch.rand(3, 3, 40, 32), {}
    for info in ("mean", "sum"):
        torch.manual_seed(1); nets[info] = BLAN(5, small(), (40, 32), info=info, dropout=0.)
    mean, total = (net.training_outputs(x)[2] for net in nets.values())
    net = nets["mean"]
    maps = net.read(*net.ladder(x))
    per_level = [mi(m, ac(m)[0]) for mi, m, ac in zip(net.lmim, maps, net.classifiers)]
    torch.testing.assert_close(mean, sum(per_level))
    torch.testing.assert_close(total, sum(v * m.shape[2] * m.shape[3] for v, m in zip(per_level, maps)))   # per picture
    with pytest.raises(ValueError, match="info is 'mean' or 'sum'"): BLAN(5, small(), (40, 32), info="max")


def test_loss_shares_are_those_of_the_encoders_gradient():
    net, x, y = BLAN(5, small(), (40, 32), dropout=0.).double(), torch.randn(4, 3, 40, 32), (torch.rand(4, 5) < .3).double()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    shares = net.loss_shares(x, y)
    assert list(shares) == ["cls", "lmim", "rec", "fusion"] and abs(sum(shares.values()) - 1) < 1e-9
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())          # nothing has moved
    assert all(p.grad is None for p in net.parameters())
    logits, scores, information, error = net.training_outputs(x)
    ce = lambda s: F.binary_cross_entropy_with_logits(s, y, reduction="sum") / 4
    encoder = list(net.backbone.parameters())
    norm = lambda term: sum(g.square().sum() for g in torch.autograd.grad(term, encoder, retain_graph=True)).sqrt().item()
    by_hand = [norm(t) for t in (sum(ce(s) for s in scores.unbind(1)), .1 * information, .1 * error, ce(logits))]
    torch.testing.assert_close(torch.tensor(list(shares.values())), torch.tensor(by_hand) / sum(by_hand), atol=1e-6, rtol=1e-6)
    assert list(BLAN(5, small(), (40, 32), **ABLATION["Enc"]).double().loss_shares(x, y)) == ["cls"]


def test_by_means_the_printed_weights_leave_lmim_and_reconstruction_almost_nothing():
    torch.set_default_dtype(torch.float32)
    x, y, shares = torch.randn(8, 3, 80, 64), (torch.rand(8, 40) < .3).float(), {}
    for how in ("mean", "sum"):
        torch.manual_seed(1); shares[how] = BLAN(40, small(.5), (80, 64), info=how, rec=how).loss_shares(x, y)
    assert shares["mean"]["lmim"] < .02 and shares["mean"]["rec"] < .01
    assert shares["sum"]["lmim"] > .05 and shares["sum"]["rec"] > .2


def test_reconstruction_error_as_a_sum():
    x, nets = torch.rand(3, 3, 40, 32), {}
    for rec in ("mean", "sum"):
        torch.manual_seed(1); nets[rec] = BLAN(5, small(), (40, 32), rec=rec, dropout=0.)
    errors = {rec: net.training_outputs(x)[3] for rec, net in nets.items()}
    torch.testing.assert_close(errors["sum"], 3 * 40 * 32 * errors["mean"])
    with pytest.raises(ValueError, match="'mean' or 'sum'"): BLAN(5, small(), (40, 32), rec="max")


def test_two_way_softmax_is_the_sigmoid_of_the_difference():
    pairs, y = torch.randn(5, 3, 2), torch.randint(0, 2, (5, 3))
    softmax = -torch.log(pairs.exp() / pairs.exp().sum(2, keepdim=True)).gather(2, y[..., None]).sum((1, 2)).mean()
    net = BLAN(3, small(), (40, 32), features="encoder", lmim=False, fusion=False)
    torch.testing.assert_close(net.loss(pairs[..., 1] - pairs[..., 0], y.double()), softmax)


@pytest.mark.parametrize("side,flat", [(256, [4096] * 4), (224, [3136, 3136, 3136, 4096])])
def test_printed_sizes(side, flat):
    with torch.device("meta"):
        net = BLAN(40, size=(side, side)).eval()
        enc, dec = net.ladder(torch.empty(1, 3, side, side))
    assert [tuple(m.shape[1:]) for m in enc] == [(64 * k, side // (4 * k), side // (4 * k)) for k in (1, 2, 4, 8)]
    assert [tuple(m.shape[1:]) for m in dec] == [tuple(m.shape[1:]) for m in enc[:3]]
    assert [c.fc1.in_features for c in net.classifiers] == flat
    assert [(c.fc1.out_features, c.fc2.out_features, c.drop.p) for c in net.classifiers] == [(512, 80, .5)] * 4
    says = lambda conv: (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
    units = [[says(u[0]) for u in c.units[:2]] for c in net.classifiers]
    assert units == [[(64, 32, 5, 4), (32, 16, 1, 1)], [(128, 64, 3, 2), (64, 16, 1, 1)],
                     [(256, 128, 3, 2), (128, 64, 1, 1)], [(512, 256, 3, 2), (256, 256, 1, 1)]]


def test_counts_of_the_specification():
    with torch.device("meta"): net = BLAN(40)
    count = {n: n_parameters(m) for n, m in net.named_children()}
    assert (count["backbone"], count["classifiers"], count["lmim"], count["fusion"]) == (21_284_672, 10_232_064, 2_594_820, 200)
    assert 9.4e6 < count["decoder"] < 9.5e6 and 0.18e6 < count["meet"] < 0.19e6
    assert 41.1e6 < sum(count.values()) - count["lmim"] < 41.2e6    # the printed 38.34 M cannot be met (blan, 9)


# ---- mutual information
def test_lmim_literal():
    net, f, t = MutualInformation(5, 6, 7).double(), torch.randn(3, 5, 4, 2, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    W, V, b = net.of_map.weight[..., 0, 0], net.of_t.weight, net.of_map.bias
    (_, two, _, last) = net.rest
    def score(place, vector):
        h = (torch.cat([W, V], 1) @ torch.cat([place, vector]) + b).clamp(min=0)          # 1x1 on the tiled, joined map
        h = (two.weight[..., 0, 0] @ h + two.bias).clamp(min=0)
        return (last.weight[..., 0, 0] @ h + last.bias)[0]
    def literal():
        total = 0
        for i in range(3):
            for y in range(4):
                for x in range(2):
                    real, fake = score(f[i, :, y, x], t[i]), score(f[i, :, y, x], t[i - 1])
                    total = total - torch.log(sigma(real)) - torch.log(1 - sigma(fake))      # BCE: real pairs 1, fake pairs 0
        return total / (3 * 4 * 2)
    same(lambda: net(f, t), literal, [f, t, *net.parameters()])


def test_lmim_tiled_form_and_memory():
    net, f, t = MutualInformation(16, 24, 32).double(), torch.randn(4, 16, 6, 5, requires_grad=True), torch.randn(4, 24, requires_grad=True)
    same(lambda: net.scores(f, t), lambda: net.tiled_scores(f, t), [f, t, *net.parameters()], tol=1e-10)
    torch.set_default_dtype(torch.float32)
    net, f, t = MutualInformation(64), torch.randn(2, 64, 16, 16, requires_grad=True), torch.randn(2, 512, requires_grad=True)
    ours, tiled = (lambda s=s: information_loss(*s(f, t)) for s in (net.scores, net.tiled_scores))
    known = [f, t, *net.parameters()]
    assert saved_bytes(ours, known) < .7 * saved_bytes(tiled, known) and peak_bytes(lambda: ours().backward()) < .8 * peak_bytes(lambda: tiled().backward())


def test_lmim_learns_to_tell_pairs():
    torch.set_default_dtype(torch.float32)
    net = MutualInformation(8, 8, 32); opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        t = torch.randn(32, 8)
        loss = net(t[:, :, None, None].expand(-1, -1, 2, 2) + .1 * torch.randn(32, 8, 2, 2), t)
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss < .8 < 1.38                                                       # 2 log 2 is knowing nothing


# ---- fusion
@pytest.mark.parametrize("probs", [False, True])
def test_fusion_literal(probs):
    fusion, s = ScoreFusion(3, probs=probs).double(), torch.randn(2, 4, 3, 2, requires_grad=True)   # two outputs per attribute
    with torch.no_grad(): fusion.weight.copy_(torch.randn(5, 3))
    def literal():
        rows = []
        for b in range(2):
            row = []
            for j in range(3):
                columns = [s[b, k, j].softmax(0) if probs else s[b, k, j] for k in range(4)]
                columns.append(sum(columns))
                z = sum(fusion.weight[k, j] * columns[k] for k in range(5))
                p = z.exp() / z.exp().sum()
                row.append(p[1])
            rows.append(torch.stack(row))
        return torch.stack(rows)
    same(lambda: sigma(fusion(s[..., 1] - s[..., 0])), literal, [s, fusion.weight])


def test_fusion_oracles():
    fusion, s = ScoreFusion(40).double(), torch.randn(3, 1, 40, 2)
    assert fusion.weight.numel() == 200 and torch.all(fusion.weight == .2)
    difference = (s[..., 1] - s[..., 0]).expand(-1, 4, -1)
    torch.testing.assert_close(sigma(fusion(difference)), (8 / 5 * s[:, 0]).softmax(-1)[..., 1])
    torch.testing.assert_close(fusion.shares().sum(0), torch.ones(40))


def test_without_fusion_probabilities_are_averaged():
    net = BLAN(5, small(), (40, 32), **ABLATION["Enc+Dec+LMIM+RDAM"]).double().eval()
    x = torch.rand(2, 3, 40, 32)
    torch.testing.assert_close(sigma(net(x)), sum(sigma(net.per_classifier(x)[:, k]) for k in range(4)) / 4)


# ---- the whole
def test_total_loss_literal():
    net = BLAN(5, small(), (40, 32), alpha=.3, beta=.7, gamma=1.5, dropout=0.).double()
    x, y = torch.rand(3, 3, 40, 32), (torch.rand(3, 5) < .5).double(); y[1, 2] = torch.nan
    def ce(logits):
        known = [(b, j) for b in range(3) for j in range(5) if not y[b, j].isnan()]
        return sum(-(y[i] * sigma(logits[i]).log() + (1 - y[i]) * (1 - sigma(logits[i])).log()) for i in known) / 3
    def literal():
        enc = net.backbone.taps(x); dec = net.decoder(enc)
        maps = [literal_rdam(m, e, d) for m, e, d in zip(net.meet, enc, dec)] + [enc[3]]
        total, scores = 0, []
        for ac, mi, m in zip(net.classifiers, net.lmim, maps):
            t, s = ac(m); scores.append(s)
            real, fake = mi.tiled_scores(m, t)
            total = total + ce(s) + .3 * (-sigma(real).log() - (1 - sigma(fake)).log()).mean()
        error = ((net.decoder.picture(dec[0], (40, 32)) - x) ** 2).sum() / x.numel()
        z = sum(net.fusion.weight[k] * c for k, c in enumerate([*scores, sum(scores)]))
        return total + .7 * error + 1.5 * ce(z)
    same(lambda: net.loss(net.training_outputs(x), y), literal, list(net.parameters()), tol=1e-7)


@pytest.mark.parametrize("name", ABLATION)
def test_ablation_rows(name):
    net, use = BLAN(4, small(), (40, 32), **ABLATION[name]).double(), ABLATION[name]
    x, y = torch.rand(3, 3, 40, 32), (torch.rand(3, 4) < .5).double()
    net.joint = True; outputs = net.train()(x)
    net.loss(outputs, y).backward()
    n = 3 if name == "Dec+LMIM" else 4                                               # row 3: AC4 has no decoder map, it leaves
    assert outputs[0].shape == (3, 4) and outputs[1].shape == (3, n, 4) and len(net.classifiers) == n
    assert not [n for n, p in net.named_parameters() if p.grad is None]
    assert (net.decoder is None) == (use.get("features") == "encoder")
    assert (len(net.lmim) == 0) == (use.get("lmim") is False) and (net.fusion is None) == ("fusion" in use)
    enc, dec = net.eval().ladder(x); maps = net.read(enc, dec)
    wanted = {"encoder": enc, "decoder": dec}.get(net.features)
    if wanted: assert all(torch.equal(a, b) for a, b in zip(maps, wanted))
    if net.features == "concat": torch.testing.assert_close(maps[0], torch.relu(net.meet[0].join[1](net.meet[0].join[0](torch.cat([enc[0], dec[0]], 1)))))
    assert net(x).shape == (3, 4)                                                    # in evaluation: the prediction alone
    if name != "Enc+Dec+LMIM+RDAM+SF (full BLAN)" and net.features != "attention":
        with pytest.raises(ValueError, match="no gates"): net.where(x)


def test_row_three_with_ac4():
    net, x = BLAN(4, small(), (40, 32), **OTHER_READINGS["Dec+LMIM"]).double().eval(), torch.rand(2, 3, 40, 32)
    enc, dec = net.ladder(x)
    assert all(torch.equal(a, b) for a, b in zip(net.read(enc, dec), [*dec, enc[3]])) and net.per_classifier(x).shape == (2, 4, 4)


def test_row_four_without_the_learnt_join():
    net, x, y = BLAN(4, small(), (40, 32), **OTHER_READINGS["Enc+Dec+LMIM"]).double(), torch.rand(3, 3, 40, 32), (torch.rand(3, 4) < .5).double()
    enc, dec = net.ladder(x)
    for got, (e, d) in zip(net.read(enc, dec), zip(enc, dec)): assert torch.equal(got, torch.cat([e, d], 1))
    assert len(net.meet) == 0
    net.loss(net.training_outputs(x), y).backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.device("meta"): paper, plain = BLAN(40), BLAN(40, features="plain_concat")
    def sizes(net):
        units = [(u[0].out_channels, u[0].kernel_size) for c in net.classifiers for u in c.units[:2]]
        return units, [c.fc1.in_features for c in net.classifiers]
    assert sizes(plain) == sizes(paper)                                              # the printed sizes, twice the channels come in
    assert [c.units[0][0].in_channels for c in plain.classifiers] == [128, 256, 512, 512]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("deepest", [True, False])
def test_with_and_without_the_deepest(features, deepest):
    net, x = BLAN(4, small(), (40, 32), features, deepest=deepest).double().eval(), torch.rand(2, 3, 40, 32)
    assert net.per_classifier(x).shape == (2, 3 + deepest, 4) and net(x).shape == (2, 4) and net.fusion.weight.shape == (4 + deepest, 4)
    if features == "attention": assert net.where(x).shape == (2, 4, 20, 16)


def test_where_follows_the_fusion():
    net, x = BLAN(3, small(), (40, 32)).double().eval(), torch.rand(2, 3, 40, 32)
    gates = torch.cat([F.interpolate(g, (20, 16), mode="bilinear", align_corners=False) for g in net.gates(x)], 1)
    torch.testing.assert_close(net.where(x), gates.mean(1, keepdim=True).expand(-1, 3, -1, -1))      # equal weights: the mean
    with torch.no_grad(): net.fusion.weight.zero_(); net.fusion.weight[1] = 1.                        # only AC2 counts
    torch.testing.assert_close(net.where(x), gates[:, 1:2].expand(-1, 3, -1, -1), atol=1e-5, rtol=0)
    assert net.where(x).min() >= 0 and net.where(x).max() <= 1 and net.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("trunk,width,size", [("resnet34", .25, (64, 64)), ("resnet50", .125, (64, 64)), ("vgg_like", .125, (109, 89)),
                                              ("alexnet_bn", .25, (227, 227)), ("timm:resnet10t", 1., (64, 64))])
def test_any_trunk_at_any_size(trunk, width, size):
    net = BLAN(6, backbone(trunk, width), size).float()
    x, y = torch.rand(2, 3, *size, dtype=torch.float32), torch.ones(2, 6, dtype=torch.float32)
    net.joint = True; loss = net.loss(net.train()(x), y); loss.backward()
    assert torch.isfinite(loss) and not [n for n, p in net.named_parameters() if p.grad is None]
    assert net.eval().reconstruct(x).shape == x.shape and net.where(x).shape[:2] == (2, 6)
    with pytest.raises(ValueError, match="resize them"): net(x[..., :-8])


def test_three_levels():
    net = BLAN(6, small(), (40, 32), levels=3).double()
    assert net.per_classifier(torch.rand(2, 3, 40, 32)).shape == (2, 3, 6) and net.fusion.weight.shape == (4, 6)


def test_fusion_weights_have_their_own_sgd():
    net = BLAN(4, small(), (40, 32), fusion_lr=.05).double()
    x, y = torch.rand(3, 3, 40, 32), (torch.rand(3, 4) < .5).double()
    assert net.sgd_parameters()[0][0] is net.fusion.weight and not BLAN(4, small(), (40, 32), fusion=False).sgd_parameters()
    assert any(p is net.fusion.weight for p in split_groups(net)[-1])
    net.loss(net.training_outputs(x), y).backward()
    before, grad = net.fusion.weight.detach().clone(), net.fusion.weight.grad.clone()
    OwnSGD(net.sgd_parameters()).before_step()
    torch.testing.assert_close(net.fusion.weight.detach(), before - .05 * grad); assert net.fusion.weight.grad is None


def test_fusion_rate_makes_up_for_missing_iterations():
    assert fusion_rate(50_000) == 1e-4 and fusion_rate(5_000) == pytest.approx(1e-3) and fusion_rate(1) == .05
    assert BLAN(4, small(), (40, 32)).sgd_parameters()[0][1] == 1e-4                 # as the paper has it, unless told
    assert BLAN(4, small(), (40, 32), iterations=2_500).sgd_parameters()[0][1] == pytest.approx(2e-3)


def test_fusion_is_a_mean_in_a_short_run_unless_its_rate_is_scaled():
    shares = {}
    for lr in (1e-4, fusion_rate(400)):
        torch.manual_seed(0); fusion = ScoreFusion(1)
        own = OwnSGD([(fusion.weight, lr)])
        for _ in range(400):
            y = (torch.rand(64, 1) < .5).double()
            s = torch.stack([2 * torch.randn(64, 1) if k != 1 else 4 * y - 2 for k in range(4)], 1)   # only AC2 knows
            F.binary_cross_entropy_with_logits(fusion(s), y).backward(); own.before_step()
        shares[lr] = fusion.shares()[:, 0].detach()
    short, scaled = shares.values()
    assert (short - .25).abs().max() < .03 and scaled[1] > .5


def test_under_autocast():
    torch.set_default_dtype(torch.float32)
    net, x, y = BLAN(4, small(), (40, 32)), torch.rand(3, 3, 40, 32), torch.ones(3, 4)
    net.joint = True
    with torch.autocast("cpu", torch.bfloat16): out = net(x)
    net.loss(tuple(o.float() for o in out), y).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blan", "pse_a", "pse_b", "pse_b on SE"])
def test_paper_size_trains_a_step(name):
    from symbiosis_nb.methods import METHODS, PSE_SE, Build
    from symbiosis_nb.vocab import CELEBA
    torch.set_default_dtype(torch.float32)
    m = METHODS[name.split()[0]]
    trunk, size = (PSE_SE["backbone"], PSE_SE["size"]) if "SE" in name else (m.trunk, m.size)
    net = m.build(Build(CELEBA, size, trunk)); net.joint = True
    x, y, opt = torch.rand(4, 3, *size), (torch.rand(4, 40) < .3).float(), torch.optim.SGD(net.parameters(), 1e-4)
    first = net.loss(net(x), y); first.backward(); opt.step()
    assert torch.isfinite(first) and torch.isfinite(net.loss(net(x), y)) and all(p.grad is not None for p in net.parameters())
