"Batches for a GPU, with a device that is none: who is asked what, in which order, and that they are the CPU's batches"
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from symbiosis_nb.data import loaders
from symbiosis_nb.data.loaders import Augment, Feed, Field, attribute_dls, mixed_dls
from symbiosis_nb.data.tables import AttributeTable, ParsingTable
from symbiosis_nb.needs.abstraction import PairDL
from symbiosis_nb.needs.base import noise
from symbiosis_nb.vocab import CELEBA, FACE7, HELEN

N = 24
PICTURES = noise(N, 20, 16, 3)


class Stream:
    "Writes down what it is asked"
    def __init__(self, name, log): self.name, self.log = name, log
    def record_event(self): self.log.append(f"{self.name} records"); return "event"
    def wait_event(self, event): self.log.append(f"{self.name} waits for {event}")


class Now:
    "A thread that works at once"
    def submit(self, work):
        done = work()
        return type("Done", (), dict(result=lambda self: done))()


@pytest.fixture
def log(monkeypatch):
    "What a feed on a device that is none does, call by call"
    if spare := loaders._spare(): spare.submit(int).result()   # what an earlier test left to an idle core is done first: it would be fed too
    calls = []
    model = Stream("model", calls)
    @contextmanager
    def inside(stream):
        calls.append(f"on {stream.name}"); yield; calls.append(f"off {stream.name}")
    def pinned(t): calls.append(f"pins {t.dtype}".replace("torch.", "")); return t.clone()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: Stream("feed", calls))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: model)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: calls.append(f"kept for {stream.name}"))
    feed = Feed(torch.device("cpu")); feed.thread = Now()
    monkeypatch.setattr(loaders, "feed_of", lambda device: feed)
    return calls


def table():
    labels = noise(N, 40) % 2
    return AttributeTable("toy", CELEBA, [Path(f"{i}.jpg") for i in range(N)], labels, np.ones((N, 40)), ["train"]*(N - 8) + ["valid"]*8)


def attributes(device):
    maps = Field("maps", noise(N, 7, 10, 8), FACE7)
    return attribute_dls(table(), [Field("image", PICTURES), maps], 8, Augment(), device=device)


def mixed(device):
    faces = ParsingTable("toy", HELEN, [Path("x.jpg")]*6, ["train"]*4 + ["valid"]*2, read_label=None)
    return mixed_dls(table(), Field("image", PICTURES), faces, Field("image", PICTURES[:6]), noise(6, 20, 16) % 11, bs=4, device=device)


def pairs(device):
    fields = [Field("image", PICTURES), Field("picture", PICTURES[::-1].copy()), Field("picture", PICTURES)]
    dl = PairDL(list(range(N)), fields, Augment(), bs=8, shuffle=True, drop_last=True, num_workers=0, device=device); dl.n_inp = 1
    return type("Dls", (), dict(train=dl, valid=dl))


def batches(make, device=None):
    torch.manual_seed(0)
    dls = make(device)
    for dl in (dls.train, dls.valid): dl.rng.seed(0)
    return [b for dl in (dls.train, dls.valid, dls.train) for b in dl]


@pytest.mark.parametrize("make", [attributes, mixed, pairs])
def test_fed_batches_are_the_ones_made_in_memory(make, monkeypatch, request):
    "Bit by bit, pass after pass: what is random is drawn in the same order"
    plain = batches(make)
    request.getfixturevalue("log")
    fed = batches(make, torch.device("cpu"))
    assert len(plain) == len(fed) > 3
    for a, b in zip(plain, fed):
        assert len(a) == len(b) and all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in zip(a, b))


def test_the_next_batch_is_under_way_before_one_is_handed_over(log):
    "Two are begun on the feed's stream; then the model's stream waits for the first, by an event, and its memory is kept for it. Nobody synchronises"
    dls = attributes(torch.device("cpu"))
    iterator = iter(dls.train); next(iterator)
    begun = ["on feed", "pins uint8", "pins uint8", "pins float32", "feed records", "off feed"]   # picture, masks, labels
    assert log == begun*2 + ["model waits for event"] + ["kept for model"]*3


def test_a_fault_in_the_thread_reaches_whoever_iterates(log, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    loaders.feed_of(None).thread = ThreadPoolExecutor(1)
    dls = attributes(torch.device("cpu"))
    monkeypatch.setattr(dls.train, "create_batch", lambda rows: 1/0)
    with pytest.raises(ZeroDivisionError): next(iter(dls.train))
