"The PSE paper's layers against slow transcriptions of its equations in float64: outputs, gradients, counts, the order of outputs"
import pytest, torch
import torch.nn.functional as F
from torch import nn

from symbiosis_nb.models.backbones import backbone, n_parameters
from symbiosis_nb.models.position import PSE, SE, GroupNet, PSENet, known_bce
from symbiosis_nb.vocab import BERKELEY, CELEBA, WIDER

GROUPS = CELEBA.group_indices()


@pytest.fixture(autouse=True)
def float64():
    torch.set_num_threads(1); torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def same(f, g, variables, tol=1e-9):
    "Equal outputs, and equal gradients of a random weighted sum"
    a, b = f(), g()
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)
    w = torch.randn_like(a)
    grads = (torch.autograd.grad((out * w).sum(), variables) for out in (a, b))
    for t, u in zip(*grads): torch.testing.assert_close(t, u, atol=tol, rtol=tol)


def bn(x, m):
    "Batch normalisation with the batch's own statistics"
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + m.eps).sqrt() * m.weight.view(1, -1, 1, 1) + m.bias.view(1, -1, 1, 1)


# ---- the modules, one number at a time
def sigma(t): return 1 / (1 + (-t).exp())


def literal_pse_fc(pse, X):
    W1, W2 = pse.gate[1], pse.gate[3]
    out = []
    for b in range(len(X)):
        Z = torch.stack([sum(X[b, j, y, x] for j in range(X.shape[1])) / X.shape[1] for y in range(X.shape[2]) for x in range(X.shape[3])])
        S = sigma(W2.weight @ (W1.weight @ Z + W1.bias).clamp(min=0) + W2.bias).view(X.shape[2:])
        out.append(torch.stack([S * X[b, j] for j in range(X.shape[1])]))
    return torch.stack(out)


def literal_pse_conv(pse, X):
    W1, W2 = pse.gate[0], pse.gate[2]
    (B, C, H, W), out = X.shape, []
    for b in range(B):
        Z = sum(X[b, j] for j in range(C)) / C
        padded = torch.zeros(H + 2, W + 2).index_put((torch.arange(1, H + 1)[:, None], torch.arange(1, W + 1)[None]), Z)
        hidden = [torch.stack([torch.stack([(padded[y:y + 3, x:x + 3] * W1.weight[k, 0]).sum() + W1.bias[k] for x in range(W)]) for y in range(H)]).clamp(min=0)
                  for k in range(len(W1.bias))]
        S = sigma(sum(W2.weight[0, k, 0, 0] * h for k, h in enumerate(hidden)) + W2.bias[0])
        out.append(X[b] * S)
    return torch.stack(out)


@pytest.mark.parametrize("kind,literal", [("fc", literal_pse_fc), ("conv", literal_pse_conv)])
def test_pse_literal(kind, literal):
    pse, X = PSE(6, kind, size=(4, 3), reduction=2), torch.randn(2, 6, 4, 3, requires_grad=True)
    same(lambda: pse(X), lambda: literal(pse, X), [X, *pse.parameters()])


def test_se_literal():
    se, X = SE(6, reduction=2), torch.randn(2, 6, 4, 3, requires_grad=True)
    W1, W2 = se.gate[0], se.gate[2]
    def literal():
        z = torch.stack([X[:, c].sum((1, 2)) / 12 for c in range(6)], 1)
        s = sigma((z @ W1.weight.T + W1.bias).clamp(min=0) @ W2.weight.T + W2.bias)
        return torch.stack([X[:, c] * s[:, c, None, None] for c in range(6)], 1)
    same(lambda: se(X), literal, [X, *se.parameters()])


@pytest.mark.parametrize("channels,conv,size,fc", [(256, 177, (13, 13), 5593), (256, 177, (6, 6), 1204), (2048, 1409, (7, 7), 12721),
                                                   (512, 353, (7, 7), 49 * 32 * 2 + 32 + 49)])
def test_parameter_oracles(channels, conv, size, fc):
    assert n_parameters(PSE(channels)) == n_parameters(PSE(channels, "conv", size)) == conv
    assert n_parameters(PSE(channels, "fc", size)) == fc
    with pytest.raises(ValueError, match="needs size"): PSE(channels, "fc")


@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_half_everywhere_and_differentiable_through_z(kind):
    pse, x = PSE(32, kind, size=(5, 4), reduction=2), torch.randn(2, 32, 5, 4, requires_grad=True)
    last = [m for m in pse.gate if hasattr(m, "bias")][-1]
    nn.init.zeros_(last.weight); nn.init.zeros_(last.bias)
    torch.testing.assert_close(pse.mask(x), torch.full((2, 1, 5, 4), .5)); torch.testing.assert_close(pse(x), x / 2)
    nn.init.normal_(last.weight)
    assert torch.autograd.grad(pse.mask(x).sum(), x)[0].abs().sum() > 0
    assert pse.mask(x).min() > 0 and pse.mask(x).max() < 1


def test_conv_kind_takes_any_size_and_fc_only_its_own():
    x = torch.randn(1, 32, 7, 9)
    assert PSE(32)(x).shape == x.shape
    with pytest.raises(ValueError, match="built for maps of 5x4, not 7x9"): PSE(32, "fc", (5, 4))(x)


# ---- the network: eight branches, written out one by one
def literal_net(net, x, kind):
    shared, logits = net.backbone(x), [None] * 40
    conv, norm, _ = net.conv
    for k, group in enumerate(GROUPS):
        rows = slice(k * net.width, (k + 1) * net.width)
        m = F.conv2d(shared, conv.weight[rows], padding=conv.padding)
        part = nn.BatchNorm2d(net.width); part.weight, part.bias = nn.Parameter(norm.weight[rows]), nn.Parameter(norm.bias[rows])
        m = bn(m, part).clamp(min=0)
        if kind: m = net.pse[k](m)
        for i, a in enumerate(group): logits[a] = net.heads[k](m)[:, i]
    return torch.stack(logits, 1)


@pytest.mark.parametrize("kind", [None, "fc", "conv"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_eight_branches_literal(kind, kernel):
    trunk, how = backbone("small", width=.25), dict(size=(40, 32), kernel=kernel)
    net = (PSENet(trunk, GROUPS, kind, **how) if kind else GroupNet(trunk, GROUPS, **how)).double()
    x = torch.rand(3, 3, 40, 32, requires_grad=True)
    variables = [x, *net.backbone.parameters(), *net.heads.parameters(), *(net.pse.parameters() if kind else [])]
    same(lambda: net(x), lambda: literal_net(net, x, kind), variables, tol=1e-8)
    if kind: torch.testing.assert_close(net.where(x)[:, GROUPS[2]], net.masks(x)[:, 2:3].expand(-1, 5, -1, -1))


def test_groups_are_read_and_partition():
    assert [len(g) for g in GROUPS] == [9, 10, 5, 2, 4, 5, 3, 2]
    first = {"Attractive", "Blurry", "Chubby", "Heavy_Makeup", "Male", "Oval_Face", "Pale_Skin", "Smiling", "Young"}
    assert {CELEBA.names[i] for i in GROUPS[0]} == first
    for vocab in (WIDER, BERKELEY):
        net = GroupNet(backbone("small", width=.25), vocab.group_indices(), (40, 32)).float()
        assert net(torch.rand(2, 3, 40, 32, dtype=torch.float32)).shape == (2, len(vocab))
    with pytest.raises(ValueError, match="once"): GroupNet(backbone("small", width=.25), [[0, 2]], (40, 32))


def test_loss_is_summed_as_by_caffe():
    net = GroupNet(backbone("small", width=.25), GROUPS, (40, 32)).double()
    logits, y = torch.randn(3, 40), (torch.rand(3, 40) < .3).double(); y[0, 3] = torch.nan
    p = sigma(logits)
    known = [(b, a) for b in range(3) for a in range(40) if not y[b, a].isnan()]
    by_hand = sum(-(y[i] * p[i].log() + (1 - y[i]) * (1 - p[i]).log()) for i in known) / 3
    torch.testing.assert_close(net.loss(logits, y), by_hand)          # over outputs and groups; by the number of pictures
    assert PSENet(backbone("small", width=.25), GROUPS, "conv", (40, 32)).loss_per == "attribute"
    with pytest.raises(ValueError, match="'attribute' or 'group'"): GroupNet(backbone("small", width=.25), GROUPS, (40, 32), loss_per="mean")


def test_a_mean_per_group_makes_the_gradient_four_times_smaller():
    torch.manual_seed(0)
    logits, y = torch.randn(256, 40, requires_grad=True), (torch.rand(256, 40) < .5).double()
    norms = []
    for per in ("attribute", "group"):
        net = GroupNet(backbone("small", width=.25), GROUPS, (40, 32), loss_per=per).double()
        norms.append(torch.autograd.grad(net.loss(logits, y), logits)[0].abs().sum().item())
    assert 4.4 < norms[0] / norms[1] < 5.6                            # 40 attributes, eight groups: 5 on the logits


def test_loss_per_group_is_the_sum_of_eight_means():
    net = GroupNet(backbone("small", width=.25), GROUPS, (40, 32), loss_per="group").double()
    logits, y = torch.randn(3, 40, requires_grad=True), (torch.rand(3, 40) < .3).double()
    y[0, 3] = torch.nan; y[:, GROUPS[7]] = torch.nan          # one label unknown; a whole group unknown
    p = sigma(logits)
    def literal():
        total = 0
        for g in GROUPS:
            terms = [-(y[b, a] * p[b, a].log() + (1 - y[b, a]) * (1 - p[b, a]).log()) for b in range(3) for a in g if not y[b, a].isnan()]
            total = total + (sum(terms) / len(terms) if terms else 0)
        return total
    loss = net.loss(logits, y)
    torch.testing.assert_close(loss, literal())
    a, b = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (loss, literal()))
    torch.testing.assert_close(a, b); assert a[:, GROUPS[7]].abs().sum() == 0 and a[0, 3] == 0
    every = GroupNet(backbone("small", width=.25), GROUPS, (40, 32))
    torch.testing.assert_close(every.loss(logits, y), known_bce(logits, y)[0].sum() / 3)
    assert net.loss(logits.float(), y.float()).dtype == torch.float32 and net.loss(logits.bfloat16(), y.float()).dtype == torch.float32


# ---- the paper's networks
@pytest.mark.parametrize("side,map_side,flat", [(227, 13, 6), (256, 15, 7)])
def test_alexnet_of_the_paper(side, map_side, flat):
    with torch.device("meta"):
        net = PSENet(backbone("alexnet_bn"), GROUPS, "fc", (side, side))
        assert net(torch.empty(2, 3, side, side)).shape == (2, 40)
    assert net.shape == [map_side, map_side] and net.width == 256 and net.conv[0].kernel_size == (3, 3)
    assert net.heads[0][2].in_features == 256 * flat * flat and net.heads[0][2].out_features == 512
    assert [h[-1].out_features for h in net.heads] == [9, 10, 5, 2, 4, 5, 3, 2]
    if side == 227: assert n_parameters(net.pse) == 8 * 5593


def test_se_resnet_of_the_paper():
    with torch.device("meta"):
        nets = {k: PSENet(backbone("se_resnet50"), GROUPS, k, (224, 224)) for k in ("fc", "conv")}
        assert nets["conv"](torch.empty(2, 3, 224, 224)).shape == (2, 40)
    assert nets["conv"].width == 512 and nets["conv"].conv[0].kernel_size == (1, 1) and nets["conv"].shape == [7, 7]
    assert n_parameters(nets["conv"].pse) == 8 * 353


def test_split_fc7():
    with torch.device("meta"): net = GroupNet(backbone("alexnet_bn"), GROUPS, split="fc7")
    assert [[m.out_features for m in h if isinstance(m, nn.Linear)] for h in net.heads][:2] == [[4096, 4096, 9], [4096, 4096, 10]]
    assert not any(isinstance(m, nn.Dropout) and m.p for h in net.heads for m in h)
    with torch.device("meta"): assert net(torch.empty(2, 3, 227, 227)).shape == (2, 40)


def test_baseline_has_no_mask_to_show():
    assert not hasattr(GroupNet(backbone("small", width=.25), GROUPS, (40, 32)), "where")
    assert hasattr(PSENet(backbone("small", width=.25), GROUPS, "conv", (40, 32)), "where")
