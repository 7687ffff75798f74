"What nbs/benchmark times: three ways to train one trunk, each in a process of its own"
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from symbiosis_nb.bench import fastai_epochs, in_processes, own_epochs, plain_epochs, where_time_goes
from symbiosis_nb.data.sources import synthetic_faces


@pytest.fixture(scope="module")
def faces():
    table = synthetic_faces(160).take(np.arange(12))
    return replace(table, split=np.where(np.arange(12) < 8, "train", "valid"))


@pytest.mark.slow
def test_three_ways_train_the_same_trunk(faces, tmp_path):
    ways = dict(plain=partial(plain_epochs, faces, "resnet18", 4), fastai=partial(fastai_epochs, faces, "resnet18", 4), ours=partial(own_epochs, faces, "resnet18", 4, root=tmp_path))
    with in_processes(ways) as turn:
        for _ in range(2): losses, hits = turn["plain"]()[0]; turn["fastai"](); turn["ours"]()
    assert losses.shape == hits.shape == (40,) and np.isfinite(losses).all() and 0 <= hits.min() <= hits.max() <= 1


@pytest.mark.slow
def test_where_time_goes_names_every_part(faces, tmp_path):
    shown = where_time_goes(faces, "resnet18", 4, (80, 64), tmp_path, rounds=1)
    assert len(shown) == 5 and shown.times_bare.iloc[0] == 1 and (shown.img_s > 0).all()


def test_a_way_that_dies_is_said():
    with pytest.raises(RuntimeError, match="has died"):
        with in_processes(dict(none=partial(int, "not a number"))) as turn: turn["none"]()
