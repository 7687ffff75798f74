"A run is what decided its numbers, and says what it did: names, news, cost, checkpoints, and a process left as it was found."
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from helpers import picture_table
from symbiosis_nb import learner
from symbiosis_nb.callbacks import Checkpoint
from symbiosis_nb.core import DataError
from symbiosis_nb.jobs import job_of, make_job
from symbiosis_nb.kept import Run
from symbiosis_nb.learner import ResumableLearner
from symbiosis_nb.methods import METHODS, Method, get_method, register
from symbiosis_nb.models.pooling import AvgPool
from symbiosis_nb.needs.base import NEEDS, Need, register_need
from symbiosis_nb.recipes import fine_tuning, poly
from symbiosis_nb.runs import begin_anew, run

torch.set_num_threads(1)


@pytest.fixture
def table(tmp_path): return picture_table(tmp_path/"pictures")


@pytest.fixture
def smoke(table, tmp_path):
    "run(method, ...) on forty-pixel pictures in float32"
    return lambda method="avg_pool", **more: run(method, table, "smoke", out=tmp_path/"runs", precision="float32", **more)


@pytest.fixture
def own():
    "Registers methods of one's own and takes them away again"
    before = dict(METHODS)
    yield lambda build, **more: register(Method("mine", "", "Mine", build, **more))
    METHODS.clear(); METHODS.update(before)


class StopAfter(Callback):
    "Ends the process' training as a kill would, before an epoch or in the middle of a step"
    order = 99
    def __init__(self, epoch, event="before_epoch"): self.at, self.event = epoch, event
    def _stop(self, event):
        if event == self.event and self.epoch == self.at: raise KeyboardInterrupt
    def before_epoch(self): self._stop("before_epoch")
    def after_pred(self): self._stop("after_pred")
    def before_batch(self): self._stop("before_batch")


@pytest.fixture
def interrupted(monkeypatch):
    "Interrupts the next training, once"
    def arm(*args):
        fit = ResumableLearner.fit
        def once(self, *a, cbs=None, **k):
            monkeypatch.setattr(ResumableLearner, "fit", fit)
            return fit(self, *a, cbs=[*(cbs or []), StopAfter(*args)], **k)
        monkeypatch.setattr(ResumableLearner, "fit", once)
    return arm


def half(pct): return .5
def falling(pct): return 1 - pct


def test_schedules_are_told_apart(table):
    schedules = [poly, partial(poly, .5), partial(poly, 2.), partial(poly, power=2.), half, falling]
    names = [make_job("avg_pool", table, "smoke", overrides=dict(schedule=s)).folder.name for s in schedules]
    assert len(set(names)) == len(schedules)
    with pytest.raises(ValueError, match="needs a name"): make_job("avg_pool", table, "smoke", overrides=dict(schedule=lambda pct: 1.)).folder


def test_an_edited_method_is_another_method(smoke, own):
    def build(b): return AvgPool(b.trunk(), b.n)
    own(build); first = smoke("mine")
    class Louder(AvgPool):
        def forward(self, x): return 3*super().forward(x)
    def build(b): return Louder(b.trunk(), b.n)
    own(build); second = smoke("mine")
    assert first.folder != second.folder and second.news == "trained"
    class Louder(AvgPool):
        def forward(self, x): return 4*super().forward(x)
    def build(b): return Louder(b.trunk(), b.n)
    own(build)
    assert smoke("mine").folder not in (first.folder, second.folder)   # only the model changed, the builder reads the same


def test_comments_and_docstrings_do_not_make_another_method(table, own):
    folder = lambda: make_job("mine", table, "smoke").folder
    def build(b): return AvgPool(b.trunk(), b.n)
    own(build); first = folder()
    def build(b):
        "Says what it does"
        return AvgPool(b.trunk(), b.n)   # and how
    own(build)
    assert folder() == first


def test_our_names_are_taken(own):
    with pytest.raises(ValueError, match="method of this package"): register(replace(get_method("ssp"), title="Not SSP"))


def test_read_trained_and_again(smoke):
    first, read, anew = smoke(), smoke(), smoke(again=True)
    assert [r.news for r in (first, read, anew)] == ["trained", "read", "trained"]
    assert first.folder == read.folder == anew.folder and np.array_equal(first.arrays["test_last"], anew.arrays["test_last"])


def test_what_is_asked_for_again_and_stopped_goes_on(smoke, interrupted):
    "It began anew each time: longer than a cluster's limit, it never ended"
    whole = smoke(epochs=4); interrupted(3)
    with pytest.raises(KeyboardInterrupt): smoke(epochs=4, again=True)
    r = smoke(epochs=4, again=True)
    assert r.news == "resumed after epoch 3" and np.array_equal(r.arrays["test_last"], whole.arrays["test_last"])
    assert smoke(epochs=4, again=True).news == "trained"


@pytest.mark.parametrize("method", ["avg_pool_twice", "g2s_12"])
def test_a_combination_that_is_asked_for_again_trains_each_network_once(smoke, monkeypatch, method):
    "Stopped on its way or not; what was finished before it was asked for is trained anew"
    from symbiosis_nb import runs
    real, trained, room = runs.train, [], [9]
    def train(job, folder):
        if not room[0]: raise KeyboardInterrupt
        room[0] -= 1; trained.append(folder.name); return real(job, folder)
    monkeypatch.setattr(runs, "train", train)
    smoke(method); once = list(trained)
    for rooms in ((9,), (1, 9), (0, 1, 9)):
        trained.clear()
        for room[0] in rooms[:-1]:
            with pytest.raises(KeyboardInterrupt): smoke(method, again=True)
        room[0] = rooms[-1]; r = smoke(method, again=rooms[0] > 0)   # gone on with in other words
        assert trained == once and r.news in ("averaged", "gathered from its networks")


def test_a_network_that_was_stopped_goes_on_when_its_combination_is_asked_for_again(smoke):
    "Emptied with the finished ones it lost its epochs; a folder that is gone is not made, empty"
    whole = smoke("avg_pool_twice", epochs=4)
    stopped, gone = (whole.folder.with_name(n) for n in whole.done["parts"])
    (stopped/"done.json").unlink(); (stopped/"checkpoint.pt").write_text("its epochs"); shutil.rmtree(gone)
    begin_anew(whole.folder)
    assert (stopped/"checkpoint.pt").exists() and not gone.exists() and not (whole.folder/"done.json").exists()


@pytest.mark.parametrize("method", ["avg_pool", "avg_pool_twice"])
def test_an_executors_retry_does_not_begin_again(table, tmp_path, monkeypatch, method):
    "The cluster stops every job after two epochs, and once when all is done"
    from symbiosis_nb.campaign import run_all
    class UncompletedJobError(Exception): pass
    class Asked:
        def __init__(self, f, job):
            left[0] = 2; self.run, self.fault = None, None
            try: self.run = f(job)
            except UncompletedJobError as e: self.fault = e
            if self.fault is None and killed: self.fault = killed.pop()
        def done(self): return True
        def exception(self): return self.fault
        def result(self): return self.run
    class Cluster: submit = staticmethod(Asked)
    after, epochs, left, killed = Checkpoint.after_epoch, [], [0], []
    def after_epoch(self):
        after(self); epochs.append(int(self.epoch)); left[0] -= 1
        if not left[0]: raise UncompletedJobError("time limit")
    job = lambda again: job_of(method, table, "smoke", 0, tmp_path, again=again, epochs=3, precision="float32")
    whole = run_all([job(False)])[0]; monkeypatch.setattr(Checkpoint, "after_epoch", after_epoch)
    killed.append(UncompletedJobError("killed at its end"))
    anew, = run_all([job(True)], Cluster(), retries=9)
    assert epochs == [0, 1, 2]*(1 + (method == "avg_pool_twice")) and np.array_equal(anew.arrays["test_last"], whole.arrays["test_last"])


def test_resumed_says_so_and_costs_what_it_cost(smoke, interrupted):
    whole = smoke(epochs=4, seed=1)
    interrupted(3)
    with pytest.raises(KeyboardInterrupt): smoke(epochs=4)
    r = smoke(epochs=4)
    assert r.news == r.done["news"] == "resumed after epoch 3" and whole.done["news"] == "trained"
    assert r.done["cost"]["epochs_timed"] == whole.done["cost"]["epochs_timed"] == 4


def test_a_training_goes_on_in_the_precision_that_it_began_in(table, tmp_path, interrupted, monkeypatch):
    "On the next machine the other one may be faster: half a run in each would be neither's numbers"
    faster = lambda p: monkeypatch.setattr(learner, "measured_precision", lambda *a, **k: (p, {}))
    whole = lambda p, out, **more: run("avg_pool", table, "smoke", out=tmp_path/out, precision=p, epochs=3, **more)
    faster("bfloat16"); interrupted(2)
    with pytest.raises(KeyboardInterrupt): whole("auto", "auto")
    faster("float32"); r = whole("auto", "auto")
    assert r.news == "resumed after epoch 2" and r.done["precision"] == "bfloat16"
    assert np.array_equal(r.arrays["test_last"], whole("bfloat16", "fixed").arrays["test_last"])


def test_who_is_stopped_is_told_how_to_go_on(smoke, interrupted, monkeypatch):
    from symbiosis_nb import callbacks, core
    bars = []
    def bar(**kwargs): bars.append(core.tqdm(**kwargs, disable=False)); return bars[-1]
    monkeypatch.setattr(callbacks, "progress", bar)
    interrupted(2)
    with pytest.raises(core.Stopped, match=r"avg_pool, seed 0: stopped after epoch 2 of 5: run the cell again to go on"): smoke(epochs=5)
    assert smoke(epochs=5).news == "resumed after epoch 2"
    first, second = bars
    assert second.initial == first.n - first.n % (first.total//5) and second.n == second.total, "goes on where it was, and ends full"
    assert all(b.fp is None or b.disable for b in bars), "closed"


def test_a_bar_ends_with_the_iterations(smoke, monkeypatch):
    from symbiosis_nb import callbacks, core
    bars = []
    def bar(**kwargs): bars.append(core.tqdm(**kwargs, disable=False)); return bars[-1]
    monkeypatch.setattr(callbacks, "progress", bar)
    smoke(iterations=5)
    assert [b.total for b in bars] == [5] == [b.n for b in bars]


def test_a_combination_names_the_hardware_of_its_parts(table, tmp_path):
    from symbiosis_nb.combine import joined_cost
    a = run("avg_pool", table, "smoke", out=tmp_path/"runs")
    b = Run(a.folder); b.done = {**b.done, "cost": {**b.done["cost"], "hardware": "another machine"}}
    assert joined_cost([a, b])["hardware"] == f"{a.done['cost']['hardware']} + another machine"


def test_a_checkpoint_that_does_not_fit_is_named(smoke, interrupted, tmp_path):
    interrupted(1)
    with pytest.raises(KeyboardInterrupt): smoke(epochs=3)
    file = next((tmp_path/"runs").glob("*/checkpoint.pt"))
    state = torch.load(file, weights_only=True)
    state["model"] = {"other.weight": torch.zeros(2)}
    torch.save(state, file)
    with pytest.raises(DataError, match="does not fit this model"): smoke(epochs=3)


def test_a_checkpoint_of_other_code_is_not_gone_on_from(smoke, interrupted, tmp_path, capsys):
    whole = smoke(epochs=3, seed=0)
    interrupted(1)
    with pytest.raises(KeyboardInterrupt): smoke(epochs=3, again=True)
    file = next((tmp_path/"runs").glob("*/checkpoint.pt"))
    torch.save({**torch.load(file, weights_only=True), "code": "older"}, file)
    r = smoke(epochs=3)
    assert "another version of the code" in r.news and "starts anew" in capsys.readouterr().out
    assert np.array_equal(r.arrays["test_last"], whole.arrays["test_last"])


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "before_epoch"])
def test_a_stop_leaves_the_process_as_it_was(table, tmp_path, interrupted, event):
    train = lambda out: run("blan", table, "smoke", out=tmp_path/out, precision="bfloat16", epochs=2)
    fresh = train("a")
    before = torch.get_rng_state(), torch.backends.cudnn.deterministic, torch.get_num_threads()
    interrupted(1, event)
    with pytest.raises(KeyboardInterrupt): train("b")
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0]) and (torch.backends.cudnn.deterministic, torch.get_num_threads()) == before[1:]
    assert np.array_equal(train("c").arrays["test_last"], fresh.arrays["test_last"])


def test_training_stops_at_the_first_number_that_is_none(smoke, tmp_path):
    with pytest.raises(FloatingPointError, match="not finite.*rate"): smoke(lr=1e9, optimizer="sgd", epochs=4)
    assert not list((tmp_path/"runs").glob("*/done.json"))


def test_balanced_loss_names_the_attribute_that_training_never_shows(table, tmp_path):
    known = table.known.copy(); known[table.split == "train", 5] = False
    with pytest.raises(DataError, match=table.names[5]): run("avg_pool", replace(table, known=known), "smoke", out=tmp_path/"runs", loss="balanced")


def test_scores_refuse_logits_that_are_none(table, tmp_path):
    from symbiosis_nb.kept import score
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs")
    logits = r.arrays["test_selected"].copy(); logits[3, 7] = np.nan
    with pytest.raises(DataError, match=table.names[7]): score({**r.arrays, "test_selected": logits}, r.vocab)


def test_a_new_need_is_one_class(table, tmp_path, own):
    class Mirrored(Need):
        "The picture twice, the second time mirrored"
        name = "mirrored"
        def fields(self, job, pixels):
            from symbiosis_nb.data.loaders import Field
            return [*super().fields(job, pixels), Field("picture", pixels.data[:, :, ::-1].copy())]
        def restore(self, folder, profile):
            class Flip(nn.Module):
                def forward(self, x): return x.flip(-1)
            return Flip()
    class Two(AvgPool):
        def forward(self, x, mirrored): return super().forward(x) + super().forward(mirrored)
    register_need(Mirrored())
    try:
        own(lambda b: Two(b.trunk(), b.n), needs="mirrored")
        r = run("mine", table, "smoke", out=tmp_path/"runs", precision="float32")
        from symbiosis_nb.predictor import Predictor
        asked = Predictor.load(r.folder)([p for p, s in zip(table.paths, table.split) if s == "test"]).to_numpy().T
        assert np.allclose(asked, 1/(1 + np.exp(-r.arrays["test_selected"])), atol=1e-4)
    finally: NEEDS.pop("mirrored")


def test_own_groups_travel_with_the_run(table, tmp_path):
    from symbiosis_nb.predictor import Predictor
    from symbiosis_nb.vocab import AttributeVocab
    vocab = AttributeVocab("hats", ("red hat", "blue hat"), dict(red=("red hat",), blue=("blue hat",)))
    small = replace(table, vocab=vocab, labels=table.labels[:, :2], known=table.known[:, :2])
    r = run("pse_b", small, "smoke", out=tmp_path/"runs")
    assert r.vocab.groups == vocab.groups and list(Predictor.load(r.folder)(table.paths[0]).index) == ["red hat", "blue hat"]


def test_options_that_nothing_reads_are_refused(table):
    for method in ("avg_pool", "inception", "ssp_ssg"):
        with pytest.raises(ValueError, match="takes no options"): make_job(method, table, "smoke", options=dict(norm="area"))
    assert make_job("ssp", table, "smoke", options=dict(norm="area")).options["norm"] == "area"
    assert make_job("g2s_1", table, "smoke", options=dict(scheme="e")).options["scheme"] == "e"


def test_an_average_learns_from_regions_only_where_a_part_does(table):
    from symbiosis_nb.data.sources import open_parsing
    parsing = open_parsing(profile="smoke")
    learnt = {m: make_job(m, table, "smoke", parsing=parsing).learned_from() for m in ("avg_pool_twice", "ssp_ssg")}
    assert learnt == dict(avg_pool_twice=[table.name], ssp_ssg=[table.name, parsing.name])


def test_an_attribute_that_training_never_shows_is_named(table):
    known = table.known.copy(); known[table.split == "train", 5] = False
    with pytest.warns(UserWarning, match=table.names[5]): make_job("avg_pool", replace(table, known=known), "smoke")


def test_weights_from_a_file_are_named_wherever_they_lie(table, tmp_path, monkeypatch):
    "By name and content: moved, or given by a relative path, they trained everything again, and config.json had the path"
    import shutil
    from safetensors.torch import save_file
    from symbiosis_nb.models.backbones import backbone
    for where in ("a", "b"): (tmp_path/where).mkdir()
    save_file(backbone("small", .25).state_dict(), tmp_path/"a"/"small.safetensors"); shutil.copy(tmp_path/"a"/"small.safetensors", tmp_path/"b")
    monkeypatch.chdir(tmp_path)
    jobs = [job_of("avg_pool", table, "smoke", weights=str(w)) for w in (tmp_path/"a"/"small.safetensors", tmp_path/"b"/"small.safetensors", "a/small.safetensors")]
    assert len({j.folder.name for j in jobs}) == 1 and str(tmp_path) not in str(jobs[0].config())
