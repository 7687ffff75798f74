"""Whatever the bytes of a list, its reader gives a table or a DataError, nothing else.

CASES = files under test x (random bytes + mutations of the good file) is the number of cases of one run."""
import os

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import fixture_formats as ff
from symbiosis_nb.core import DataError
from symbiosis_nb.data import official
from symbiosis_nb.data.tables import AttributeTable, ParsingTable

os.environ["SYMBIOSIS_QUIET"] = "1"

def celeba_csv(root):
    values = ff.celeba_set(root, anno="old", parts="old", images="img_align_celeba", wild=False)
    table = lambda columns, rows: ff.csv_table(["", "image_id", *columns], [[i, n, *v] for i, (n, v) in enumerate(zip(ff.CELEBA_ROWS, rows))])
    ff.put(root/"list_attr_celeba.csv", table(ff.CELEBA_NAMES, values.tolist()))
    ff.put(root/"list_eval_partition.csv", table(["partition"], [[p] for p in ff.CELEBA_PARTS]))

def course(root):
    for n in ("a", "b"): ff.picture(root/"images"/f"{n}.jpg", (4, 4)); ff.mask(root/"masks"/f"{n}.png", [[1]*4]*4)
    ff.put(root/"split.txt", "a train\nb test\n")

def wild(root): return official.celeba(root, variant="original")

TARGETS = {  # builder, reader, file
    "attr": (ff.celeba_set, official.celeba, "Anno/list_attr_celeba.txt"), "partition": (ff.celeba_set, official.celeba, "Eval/list_eval_partition.txt"),
    "identity": (ff.celeba_set, official.celeba, "Anno/identity_CelebA.txt"), "landmarks": (ff.celeba_set, official.celeba, "Anno/list_landmarks_align_celeba.txt"),
    "boxes": (ff.celeba_set, wild, "Anno/list_bbox_celeba.txt"), "attr.csv": (celeba_csv, official.celeba, "list_attr_celeba.csv"),
    "partition.csv": (celeba_csv, official.celeba, "list_eval_partition.csv"), "wider": (ff.wider_set, official.wider_attribute, "wider_attribute_annotation/wider_attribute_test.json"),
    "berkeley": (ff.berkeley_set, official.berkeley_attributes, "train/labels.txt"), "helen": (ff.helen_set, official.helen, "tuning.txt"),
    "lip": (ff.lip_set, official.lip, "TrainVal_images/val_id.txt"), "mapping": (ff.maskhq_set, official.celebamask_hq, "CelebA-HQ-to-CelebA-mapping.txt"),
    "maskhq_attr": (ff.maskhq_set, official.celebamask_hq_attributes, "CelebAMask-HQ-attribute-anno.txt"), "split": (course, official.celebamask_hq, "split.txt"),
    "mat": (ff.lfwa_set, official.lfwa, "lfw_att_40.mat"), "mat5": (lambda root: ff.lfwa_set(root, version="5"), official.lfwa, "lfw_att_40.mat"),
}
RANDOM, MUTATED = 100, 200
CASES = len(TARGETS)*(RANDOM + MUTATED)  # 4,800

SCRAPS = [b"", b" ", b"\n", b"\r\n", b"\t", b",", b";", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x1c", b"-", b"-1", b"0", b"1", b"2", b"9"*400, b"1e400", b"nan",
          b"inf", b"1_0", b"0x1", b"1.5", "１２".encode(), b"train", b"valid", b"000001.jpg", b".jpg", b"/", b"../", b"\\", b"[", b"{", b"}", b"null", b"true", b"NaN", b"<html>", b"PK\x03\x04"]

@st.composite
def mutations(draw):
    "A recipe: cut out, put in, or double pieces of a file, in up to four places"
    step = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 2, 5, 40, 10_000]), st.one_of(st.sampled_from(SCRAPS), st.binary(max_size=6)), st.booleans())
    return draw(st.lists(step, min_size=1, max_size=4))

def mutate(data, steps):
    for place, cut, scrap, double in steps:
        at = int(place*(len(data) + 1))
        piece = data[at:at + cut] if double else b""
        data = data[:at] + scrap + piece*2 + data[at + cut:]
    return data


@pytest.fixture(scope="module", params=TARGETS)
def target(request, tmp_path_factory):
    build, read, name = TARGETS[request.param]
    root = tmp_path_factory.mktemp("fuzz"); build(root)
    return root, read, root/name, (root/name).read_bytes()

def table_or_error(target, data):
    root, read, path, good = target
    path.write_bytes(data)
    try: table = read(root)
    except DataError as e: assert len(str(e)) < 5000 and str(root) in str(e) or "CelebA" in str(e) or "LFWA" in str(e); return
    finally: path.write_bytes(good)
    assert isinstance(table, (AttributeTable, ParsingTable)) and len(table) > 0
    if isinstance(table, ParsingTable): table.label(0)

RELAXED = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

@settings(max_examples=RANDOM, **RELAXED)
@given(data=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))))
def test_any_bytes(target, data): table_or_error(target, data)


@settings(max_examples=MUTATED, **RELAXED)
@given(steps=mutations())
def test_mutations_of_a_good_file(target, steps): table_or_error(target, mutate(target[3], steps))


def test_the_good_files_are_read(target): assert len(target[1](target[0])) > 0
