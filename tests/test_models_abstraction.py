"Abstraction: the drawing formula and the dual path against literal transcriptions in float64, parameter oracles, losses, a resumed generator, smoke runs"
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from symbiosis_nb.models.adversarial import AdversarialLoss, Adversary, feature_matching, gan_loss
from symbiosis_nb.core import DataError
from symbiosis_nb.data.sources import open_faces, open_parsing
from symbiosis_nb.data.crops import CELEBA_TRIANGLE, celeba_similarity, move_points
from symbiosis_nb.data.pixels import pad_view
from symbiosis_nb.inputs import alignment_points, generator_run, label_landmarks, make_generator, resolve, target_store
from symbiosis_nb.learner import Checkpoint
from symbiosis_nb.losses import euclidean
from symbiosis_nb.methods import Build, get_method, make_profile
from symbiosis_nb.models.abstraction import (AbstractionNet, DualPath, GlobalGenerator, LocalEnhancer, MultiscaleDiscriminator,
                                             PALETTE, abstraction_image, fusion_units, halve, init_gan, recovered_regions)
from symbiosis_nb.models.backbones import backbone, n_parameters
from symbiosis_nb.runs import Predictor, run
from symbiosis_nb.vocab import CELEBA, HELEN


@pytest.fixture
def float64():
    torch.set_num_threads(1); torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SYMBIOSIS_CACHE", str(tmp_path_factory.mktemp("cache"))); m.setenv("SYMBIOSIS_QUIET", "1")
        torch.set_num_threads(1)
        yield open_faces(profile="smoke"), open_parsing(profile="smoke"), tmp_path_factory.mktemp("runs")


# ---- drawing
def literal_drawing(I, p, palette):
    V = torch.zeros_like(I)
    for y in range(I.shape[1]):
        for x in range(I.shape[2]):
            for ch in range(3):
                C = sum(p[k, y, x]*palette[k][ch]/255 for k in range(11))
                v = (.6*C + .4*I[ch, y, x])*(1 - p[0, y, x]) + .6*palette[10][ch]/255*p[10, y, x]
                V[ch, y, x] = min(max(v, 0), 1)
    return V


def test_drawing_literal(float64):
    I, p = torch.rand(3, 4, 5), torch.randn(11, 4, 5).mul(3).softmax(0)
    torch.testing.assert_close(abstraction_image(I, p), literal_drawing(I, p, PALETTE))
    hard = F.one_hot(p.argmax(0), 11).movedim(-1, 0).double()
    torch.testing.assert_close(abstraction_image(I, p, hard=True), literal_drawing(I, hard, PALETTE))
    assert not torch.allclose(abstraction_image(I, p), abstraction_image(I, p, hard=True))
    assert PALETTE == HELEN.colors


def test_regions_come_back_from_every_hard_drawing(float64):
    labels, I = torch.randint(0, 11, (2, 12, 10)), torch.rand(2, 3, 12, 10)
    drawn = abstraction_image(I, F.one_hot(labels, 11).movedim(-1, 1).double())
    assert torch.equal(recovered_regions(drawn, I), labels)


# ---- networks
def test_parameter_oracles():
    with torch.device("meta"):
        assert n_parameters(GlobalGenerator()) == 182_443_267
        assert [n_parameters(s) for s in MultiscaleDiscriminator().scales] == [2_767_809]*3
        assert n_parameters(DualPath(backbone("resnet50"), backbone("resnet50"), 40)) == 2*23_508_032 + 2*4_096 + 163_880
        assert n_parameters(DualPath(backbone("resnet50"), backbone("resnet50"), 40, norm=False)) == 2*23_508_032 + 163_880
        small = DualPath(backbone("resnet18"), backbone("resnet18"), 40)
        local = make_generator(dict(local=True, ngf=64, n_down=4, n_blocks=9))
    convs = [m for m in local.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert convs[0].out_channels == 64 and local.down[0].__class__ is nn.Sequential and local.down[0][1].out_channels == 32   # global 64, at full resolution 32
    assert n_parameters(local) == 182_443_267 - (64*3*49 + 3) + (3*32*49 + 32) + (32*64*9 + 64) + 6*(64*64*9 + 64) + (64*32*9 + 32) + (32*3*49 + 3)
    assert small.head.in_features == 1024


def literal_generator(g, x):
    "pix2pixHD's global network, from the specification's words, on our weights"
    w = iter([m for m in g.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))])
    norm = lambda t: (t - t.mean((2, 3), keepdim=True))/(t.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    conv = lambda t, **k: (lambda m: F.conv2d(t, m.weight, m.bias, **k))(next(w))
    pad = lambda t, n: F.pad(t, (n,)*4, mode="reflect")
    x = norm(conv(pad(x, 3))).relu()
    for _ in range(2): x = norm(conv(x, stride=2, padding=1)).relu()
    for _ in range(2): x = x + norm(conv(pad(norm(conv(pad(x, 1))).relu(), 1)))
    for _ in range(2): x = (lambda m: norm(F.conv_transpose2d(x, m.weight, m.bias, stride=2, padding=1, output_padding=1)).relu())(next(w))
    return conv(pad(x, 3)).tanh()


def test_generator_literal(float64):
    g, x = init_gan(GlobalGenerator(4, 2, 2)), torch.rand(2, 3, 24, 16)*2 - 1
    torch.testing.assert_close(g(x), literal_generator(g, x))
    assert g(x).shape == LocalEnhancer(4, 2, 1)(x).shape == x.shape
    with pytest.raises(ValueError, match="divisible by 4"): g(x[..., :14])


def test_discriminator_literal(float64):
    d, photo, image = MultiscaleDiscriminator(4, 2), torch.rand(2, 3, 32, 24), torch.rand(2, 3, 32, 24)
    x = torch.cat([photo, image], 1)
    for scale, features in enumerate(d(photo, image)):
        if scale: x = halve(x)
        t, convs = x, [m for m in d.scales[scale].modules() if isinstance(m, nn.Conv2d)]
        for i, c in enumerate(convs):
            t = F.conv2d(t, c.weight, c.bias, stride=2 if i < 3 else 1, padding=2)
            if 0 < i < 4: t = (t - t.mean((2, 3), keepdim=True))/(t.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            if i < 4: t = torch.where(t > 0, t, .2*t)
            torch.testing.assert_close(features[i], t)
    ones = halve(torch.ones(1, 1, 5, 5))
    torch.testing.assert_close(ones, torch.ones_like(ones))   # padding is not counted


# ---- losses
def test_losses_literal(float64):
    d = MultiscaleDiscriminator(4, 3)
    photo, real, drawn = torch.rand(3, 2, 3, 40, 32)
    a, b = d(photo, drawn), d(photo, real)
    matching = 0
    for i in range(3):
        for j in range(4): matching += 4/(3 + 1)*(1/3)*(a[i][j] - b[i][j]).abs().mean()*10
    torch.testing.assert_close(feature_matching(a, b), matching)
    torch.testing.assert_close(gan_loss(b, True), sum(((s[-1] - 1)**2).mean() for s in b))
    torch.testing.assert_close(gan_loss(b, False, "log"), sum(-(1 - s[-1].sigmoid()).log().mean() for s in b))
    loss_g, loss_d = AdversarialLoss(d).sides(drawn, photo, real)
    torch.testing.assert_close(loss_g, gan_loss(a, True) + matching)
    torch.testing.assert_close(loss_d, .5*(gan_loss(a, False) + gan_loss(b, True)))


def test_pixel_term_is_an_l1_for_the_generator_alone(float64):
    d = MultiscaleDiscriminator(4, 2)
    photo, real, drawn = torch.rand(3, 2, 3, 40, 32)
    plain, pulled = AdversarialLoss(d).sides(drawn, photo, real), AdversarialLoss(d, pixel=7.).sides(drawn, photo, real)
    torch.testing.assert_close(pulled[0] - plain[0], 7*(drawn - real).abs().mean())
    assert torch.equal(pulled[1], plain[1])


@pytest.mark.parametrize("gan", ["lsgan", "log"])
def test_each_side_gets_its_own_gradient_only(gan, float64):
    net = Adversary(init_gan(GlobalGenerator(4, 2, 1)), MultiscaleDiscriminator(4, 2))
    photo, real = torch.rand(2, 2, 3, 24, 16)
    loss = AdversarialLoss(net.discriminator, gan)
    sides = loss.sides(net.generator(photo), photo, real)
    (gen, dis) = net.param_groups()
    want = [*torch.autograd.grad(sides[0], gen, retain_graph=True), *torch.autograd.grad(sides[1], dis, retain_graph=True)]
    assert all(g is None for g in torch.autograd.grad(sides[1], gen, retain_graph=True, allow_unused=True))
    assert all(g is None for g in torch.autograd.grad(sides[0], dis, retain_graph=True, allow_unused=True))
    loss(net(photo), real).backward()
    for p, g in zip([*gen, *dis], want): torch.testing.assert_close(p.grad, g)
    assert all(p.requires_grad for p in net.parameters())


# ---- two paths
def literal_dual(net, x, a):
    "Block by block on ResNets, as the paper says"
    stem = lambda t, trunk: trunk.stages[0](t)
    blocks = lambda trunk: [b for s in list(trunk.stages)[1:] for b in s]
    o, a = stem(x, net.backbone), stem(a, net.abstraction)
    for po, pa in zip(blocks(net.backbone), blocks(net.abstraction)):
        o, a = po(o), pa(a)
        o = torch.where(o > a, o, a)
    norm = lambda f, bn: (f - bn.running_mean)/(bn.running_var + bn.eps).sqrt()*bn.weight + bn.bias if isinstance(bn, nn.BatchNorm1d) else f
    f = torch.cat([norm(o.mean((2, 3)), net.bn_photo), norm(a.mean((2, 3)), net.bn_abstraction)], 1)
    return f @ net.head.weight.T + net.head.bias


@pytest.mark.parametrize("norm", [True, False])
def test_dual_path_literal(norm, float64):
    net = DualPath(backbone("resnet18", width=.125), backbone("resnet18", width=.125), 6, norm=norm)
    x, a = torch.randn(2, 2, 3, 64, 64)
    with torch.no_grad(): net(x, a)   # statistics other than 0 and 1
    net.eval()
    y = net(x, a)
    torch.testing.assert_close(y, literal_dual(net, x, a))
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert sum(map(len, net.param_groups())) == len(list(net.parameters()))


@pytest.mark.parametrize("name,width", [("resnet50", .0625), ("resnet18", .125), ("small", .25)])
def test_silent_abstraction_path_leaves_a_plain_trunk(name, width, float64):
    trunk = lambda: backbone(name, width=width)
    for fuse in ("block", "stage"):
        net = DualPath(trunk(), trunk(), 4, fuse=fuse).eval()
        x, a = torch.randn(2, 2, 3, 64, 64)
        maps = net.abstraction_maps(a)
        torch.testing.assert_close(net.fused(x, [torch.full_like(m, -1e30) for m in maps]), net.backbone(x))
        torch.testing.assert_close(maps[-1], net.abstraction(a))   # this path never hears from the other


def test_places_where_the_paths_meet():
    with torch.device("meta"): trunks = [backbone(n) for n in ("resnet50", "resnet18")]
    assert [len(fusion_units(t, f)) - 1 for t in trunks for f in ("block", "stage")] == [16, 4, 8, 4]


def test_rows_of_table_7_and_missing_pictures():
    b = Build(CELEBA, (40, 32), "small", .25, options=dict(loss="euclidean"))
    assert get_method("original").build(b).loss is euclidean
    with pytest.raises(ValueError, match="'sigmoid' or 'euclidean'"): get_method("original").build(replace(b, options=dict(loss="L3")))
    with pytest.raises(ValueError, match="needs abstraction images"): AbstractionNet(backbone("small", width=.25), 4)(torch.zeros(1, 3, 40, 32))


# ---- the generator as a run
def test_mirrored_pairs_have_mirrored_targets(data):
    _, parsing, _ = data
    size = (80, 64); view = pad_view(size); plain, swapped = (target_store(parsing, size, view, swapped=s) for s in (False, True))
    other = replace(parsing, read_soft=lambda i: parsing.read_soft(i)[HELEN.flip_order()])
    assert np.array_equal(swapped.data, target_store(replace(other, name="mirrored sides"), size, view).data) and not np.array_equal(plain.data, swapped.data)
    difference = (plain.data != swapped.data).any(-1).mean()
    assert 0 < difference < .1   # only brows and eyes


def test_generator_resumes_bit_exactly(data, tmp_path):
    _, parsing, _ = data
    p = resolve(make_profile("smoke", precision="float32"), get_method("dual_path"))
    p = replace(p, generator=replace(p.generator, recipe=replace(p.generator.recipe, epochs=3)))
    whole = generator_run(parsing, p, out=tmp_path/"a")
    after, seen = Checkpoint.after_epoch, []
    def cut(self):
        after(self); seen.append(self.epoch)
        if self.epoch == 1 and len(seen) == 2: raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Checkpoint, "after_epoch", cut)
        with pytest.raises(KeyboardInterrupt): generator_run(parsing, p, out=tmp_path/"b")
        again = generator_run(parsing, p, out=tmp_path/"b")
    assert seen == [0, 1, 2] and whole.folder.name == again.folder.name
    assert (whole.folder/"model.safetensors").read_bytes() == (again.folder/"model.safetensors").read_bytes()
    assert whole.done["L1"] == again.done["L1"] and (whole.folder/"progress.png").read_bytes() == (again.folder/"progress.png").read_bytes()
    assert whole.folder.name != generator_run(parsing, replace(p, generator=replace(p.generator, gan="log")), out=tmp_path/"a").folder.name


def test_unknown_frames_and_regions_are_refused(data, tmp_path):
    _, parsing, _ = data
    p = resolve(make_profile("smoke"), get_method("dual_path"))
    wrong = replace(p, generator=replace(p.generator, frame="x"))
    with pytest.raises(ValueError, match="'celeba', 'pad' or 'raw'"): generator_run(parsing, wrong, out=tmp_path)
    with pytest.raises(DataError, match="missing"): generator_run(parsing, replace(p, generator=replace(p.generator, perceptual="no/vgg19.pth")), out=tmp_path)


def test_aligned_frame(data, tmp_path):
    _, parsing, _ = data
    marks = np.tile(np.array([(69.7, 111), (107.2, 111), (88, 136), (72, 152.5), (105, 152.5)]), (len(parsing), 1, 1))
    p = resolve(make_profile("smoke"), get_method("dual_path"))
    celeba = replace(p, generator=replace(p.generator, frame="celeba"))
    made = generator_run(replace(parsing, landmarks=marks), celeba, out=tmp_path)
    assert 0 < made.done["L1"] < 1
    label = np.zeros((218, 178), np.uint8)
    for k, (x, y) in {4: (70, 111), 5: (107, 111), 6: (88, 136), 8: (89, 152)}.items(): label[y - 2:y + 3, x - 3:x + 4] = k
    np.testing.assert_allclose(label_landmarks(label)[[0, 1, 2, 3]], [(70, 111), (107, 111), (88, 136), (89, 152)])
    assert np.isnan(label_landmarks(np.zeros((4, 4), np.uint8))[0]).all()   # such a picture is padded instead
    points = alignment_points(parsing); found = ~np.isnan(points).any((1, 2))
    assert found.mean() > .5
    eyes = [move_points(celeba_similarity(p), p[:2]) for p in points[found]]
    assert np.abs(np.array(eyes) - CELEBA_TRIANGLE[:2]).mean() < 6
    assert generator_run(parsing, celeba, out=tmp_path).folder.name != made.folder.name


@pytest.mark.parametrize("name", ["original", "abstraction", "dual_path"])
def test_smoke_run_predicts_alone(name, data):
    table, parsing, out = data
    r = run(name, table, "smoke", out=out, parsing=parsing, precision="float32")
    test = [p for p, s in zip(table.paths, table.split) if s == "test"][:3]
    asked = Predictor.load(r.folder)(test, aligned=True).values.T
    np.testing.assert_allclose(asked, 1/(1 + np.exp(-r.predictions()[0][:3])), atol=5e-3)   # stored abstraction images are rounded to bytes
    if name == "abstraction":
        blind = Predictor.load(r.folder).model.model
        x, a = torch.randn(2, 2, 3, 40, 32)
        assert torch.equal(blind(x, a), blind(-x, a)) and not torch.equal(blind(x, a), blind(x, -a))


@pytest.mark.slow
def test_full_size_networks_train_a_step():
    "pix2pixHD at 256 x 256 with the paper's three discriminators, and two ResNet-50 at 224 x 224"
    gan = Adversary(init_gan(GlobalGenerator()), init_gan(MultiscaleDiscriminator()))
    opt = torch.optim.SGD(gan.parameters(), 1e-4)
    photo, real = torch.rand(2, 1, 3, 256, 256)*2 - 1
    loss = AdversarialLoss(gan.discriminator)(gan(photo), real); loss.backward(); opt.step()
    assert loss.isfinite() and all(p.grad is not None for p in gan.parameters())
    del gan, opt
    net = DualPath(backbone("resnet50"), backbone("resnet50"), 40)
    F.binary_cross_entropy_with_logits(net(*torch.randn(2, 2, 3, 224, 224)), torch.ones(2, 40)).backward()
    assert all(p.grad is not None for p in net.parameters())
