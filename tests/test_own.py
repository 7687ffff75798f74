"One's own CSV files, folders, parquet shards and masks: whatever wrote them, the table is what was meant, or every fault is named; hypothesis tries 40 to 200 examples of each kind."
import io
import json
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from PIL import Image

from symbiosis_nb.core import DataError
from symbiosis_nb.data.own import (drawn_parts, parsing_from_folders, table_from_csv, table_from_folders, table_from_parquet, together)
from symbiosis_nb.data.pixels import box_view
from symbiosis_nb.data.sheets import Pictures, answers, read_sheet, read_shards, words_of
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.needs.boxes import box_masks
from symbiosis_nb.runs import run

os.environ["SYMBIOSIS_QUIET"] = "1"
N = 24
RELAXED = dict(deadline=None, suppress_health_check=list(HealthCheck))
WRITTEN = [("1", "0"), ("1", "-1"), ("True", "False"), ("yes", "no"), ("1.0", "0.0"), ("TRUE", "No")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for i in range(N):
        file = root/"pictures"/f"{'ab'[i % 2]}"/f"IMG_{i:03d}.JPG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (i, 0, 0)).save(file, "JPEG")
    return root


def named(i, how):
    "Picture i as a table may name it"
    whole = f"{'ab'[i % 2]}/IMG_{i:03d}.JPG"
    return dict(relative=whole, windows=whole.replace("/", "\\"), bare=f"IMG_{i:03d}.JPG", stem=f"IMG_{i:03d}", elsewhere=f"/home/me/pictures/{whole}", lower=whole.lower())[how]


labels = st.lists(st.sampled_from([1, 0, None]), min_size=N, max_size=N)


@settings(max_examples=60, **RELAXED)
@given(columns=st.lists(st.tuples(labels, st.sampled_from(WRITTEN)), min_size=1, max_size=4), how=st.sampled_from(["relative", "windows", "bare", "stem", "elsewhere", "lower"]),
       mark=st.sampled_from(",;\t"), index=st.booleans(), where=st.integers(0, 4))
def test_what_was_written_is_read(place, columns, how, mark, index, where):
    "Any spelling of labels, any way to name pictures, any separator, the path column anywhere"
    frame = pd.DataFrame({f"attribute {k}": [dict(zip((1, 0, None), (*words, "")))[v] for v in values] for k, (values, words) in enumerate(columns)}, dtype=str)
    assume(all(any(v is not None for v in values) for values, _ in columns))
    frame.insert(min(where, len(frame.columns)), "shot", [named(i, how) for i in range(N)])
    frame.insert(0, "remark", [f"note {i}, quoted" for i in range(N)])
    frame.to_csv(place/"own.csv", sep=mark, index=index)
    table = table_from_csv(place/"own.csv", place/"pictures")
    assert table.names == tuple(f"attribute {k}" for k in range(len(columns))) and table.name == "own"
    assert [p.name for p in table.paths] == [f"IMG_{i:03d}.JPG" for i in range(N)]
    for k, (values, _) in enumerate(columns):
        assert table.known[:, k].tolist() == [v is not None for v in values]
        assert table.labels[:, k].tolist() == [v or 0 for v in values]
    assert "columns that are not read: remark" in table.notes and any("parts are drawn by picture" in n for n in table.notes)


@settings(max_examples=60, **RELAXED)
@given(wrong=st.dictionaries(st.integers(0, N - 1), st.sampled_from(["label", "picture", "part", "width", "twice"]), min_size=1, max_size=9))
def test_every_fault_is_named_with_its_line_and_column(place, wrong):
    frame = pd.DataFrame(dict(shot=[named(i, "bare") for i in range(N)], hat=["1", "0"]*(N//2), split=["train", "valid", "test"]*(N//3)))
    lines = [",".join(row) for row in frame.to_numpy()]
    says = {}
    for i, kind in wrong.items():
        shot, hat, split = lines[i].split(",")
        if kind == "label": hat, says[i] = "perhaps", f"line {i + 2}, hat: 'perhaps'"
        if kind == "picture": shot, says[i] = "lost.jpg", f"line {i + 2}, shot: there is no picture 'lost.jpg'"
        if kind == "part": split, says[i] = "third", f"line {i + 2}, split: 'third'"
        if kind == "width": split, says[i] = f"{split},more", f"line {i + 2}: 4 cells, expected 3"
        if kind == "twice" and (j := (i + 1) % N) not in wrong: shot, says[max(i, j)] = named(j, "bare"), f"line {max(i, j) + 2}, shot: {named(j, 'bare')} again"
        lines[i] = f"{shot},{hat},{split}"
    assume(says)
    (place/"wrong.csv").write_text("shot,hat,split\n" + "\n".join(lines))
    with pytest.raises(DataError) as e: table_from_csv(place/"wrong.csv", place/"pictures")
    for what in says.values(): assert any(p.startswith(what) for p in e.value.problems), (what, e.value.problems)
    assert len(e.value.problems) == len(says)


@settings(max_examples=200, **RELAXED)
@given(people=st.lists(st.sampled_from(["", *"abcdefgh"]), min_size=3, max_size=60), pictures=st.integers(2, 40), seed=st.integers(0, 99), shares=st.tuples(st.floats(0, .4), st.floats(.01, .4)))
def test_drawn_parts_tear_nothing_apart(people, pictures, seed, shares):
    paths = [f"{hash((seed, i)) % pictures}.jpg" for i in range(len(people))]
    groups = together(paths, people)
    assume(len(set(groups)) >= 3)
    parts = drawn_parts(groups, *shares, seed)
    assert set(parts) == {"train", "test", *(["valid"] if shares[0] else [])} and (parts == drawn_parts(groups, *shares, seed)).all()
    for key in {*filter(None, people)}: assert len({parts[i] for i, p in enumerate(people) if p == key}) == 1
    for key in {*paths}: assert len({parts[i] for i, p in enumerate(paths) if p == key}) == 1


SCRAPS = ["", " ", "\n", "\r\n", ",", ";", "\t", '"', "1", "0", "-1", "yes", "IMG_001.JPG", "a/IMG_000.JPG", "hat", "split", "train", "\0", "é", "nan", "1e999", "[", "../", "~", "x"*300]

@settings(max_examples=200, **RELAXED)
@given(st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(SCRAPS), max_size=40).map(lambda p: "".join(p).encode())))
def test_any_bytes_give_a_table_or_a_data_error(place, data):
    (place/"any.csv").write_bytes(data)
    try: table = table_from_csv(place/"any.csv", place/"pictures")
    except DataError: return
    assert isinstance(table, AttributeTable) and len(table)


@settings(max_examples=100, **RELAXED)
@given(st.text(max_size=20))
def test_a_cell_is_a_label_or_none(text):
    (a,), w = answers([text]), words_of(text)
    assert a is None or a in (0, 1, -1) or a != a
    assert w is None or all(x and x == x.strip() for x in w)


@settings(max_examples=40, **RELAXED)
@given(st.lists(st.lists(st.sampled_from(["glasses", "wavy hair", "hat"]), unique=True), min_size=N, max_size=N), st.sampled_from(["; ", "|", "list"]))
def test_a_list_of_words(place, words, mark):
    "Joined words, or the lists that pandas writes as Python spells them"
    assume(any(words))
    frame = pd.DataFrame(dict(photo=[named(i, "bare") for i in range(N)], tags=words if mark == "list" else [mark.join(w) or "none" for w in words]))
    frame.to_csv(place/"words.csv", index=False, sep="\t")
    table = table_from_csv(place/"words.csv", place/"pictures")
    assert table.names == tuple(sorted({w for ws in words for w in ws})) and table.known.all()
    assert [{table.names[j] for j in np.flatnonzero(row)} for row in table.labels] == [set(w) for w in words]


def test_ambiguous_names_are_not_guessed(tmp_path):
    for folder in "ab":
        (tmp_path/folder).mkdir(); Image.new("RGB", (8, 8)).save(tmp_path/folder/"1.png")
    (tmp_path/"t.csv").write_text("file,hat\n1.png,1\n")
    with pytest.raises(DataError, match="line 2, file: '1.png' may be .*a/1.png or .*b/1.png: write the folder too"): table_from_csv(tmp_path/"t.csv")


@pytest.mark.parametrize("above", ["/data/train/jan/pictures/", "C:\\train\\set\\", "/train/", "/data/jan/", "\\\\server\\test\\"])
def test_paths_of_another_machine_with_a_folder_of_this_name(tmp_path, above):
    "The folder that is here may also lie above it there; a path that begins here is not looked for elsewhere"
    names = [f"{part}/{k}.png" for part in ("train", "test") for k in range(3)]
    for k, n in enumerate(names): (tmp_path/n).parent.mkdir(exist_ok=True); Image.new("RGB", (8, 8), (9*k, 0, 0)).save(tmp_path/n)
    mark = "\\" if "\\" in above else "/"
    (tmp_path/"t.csv").write_text("file,hat\n" + "\n".join(f"{above}{n.replace('/', mark)},{k % 2}" for k, n in enumerate(names)))
    assert [p.relative_to(tmp_path).as_posix() for p in table_from_csv(tmp_path/"t.csv").paths] == names
    assert Pictures(tmp_path).find("train/other/test/0.png") == [] and Pictures(tmp_path).find("train/0") == [tmp_path/"train"/"0.png"]


@pytest.mark.parametrize("ending", "ppm pgm pbm pnm jfif jpe jp2".split())
def test_pictures_of_every_ending_that_is_read(tmp_path, ending):
    for k in range(6): Image.new(dict(pgm="L", pbm="1").get(ending, "RGB"), (8, 8 + k)).save(tmp_path/f"{k}.{ending}")
    (tmp_path/"t.csv").write_text("file,hat\n" + "\n".join(f"{k}.{ending},{k % 2}" for k in range(6)))
    table = table_from_csv(tmp_path/"t.csv")
    assert len(table) == 6 and table.open(0).size == (8, 8)


def test_missing_pictures_may_be_left_out(place):
    rows = [f"{named(i, 'relative')},{i % 2}" for i in range(N)]
    (place/"skip.csv").write_text("file,hat\n" + "\n".join([*rows[:5], "lost.jpg,1", *rows[5:]]))
    with pytest.raises(DataError, match="line 7, file: there is no picture 'lost.jpg'"): table_from_csv(place/"skip.csv", place/"pictures")
    table = table_from_csv(place/"skip.csv", place/"pictures", on_missing="skip")
    assert len(table) == N and any(n.startswith("1 of 25 rows have no picture") for n in table.notes)


def test_boxes_and_people(place):
    "Several rows of one picture are boxes of it; a person and a picture are never torn apart"
    rows = [f"{named(i//2, 'bare')},{1 + i},{2},{4},{5},{i % 2},p{i//3}" for i in range(2*N)]
    (place/"boxes.csv").write_text("file,left,top,w,h,hat,person\n" + "\n".join(rows))
    with pytest.raises(DataError, match="again, already in line 2"): table_from_csv(place/"boxes.csv", place/"pictures", attributes=["hat"])
    table = table_from_csv(place/"boxes.csv", place/"pictures", attributes=["hat"], box="left top w h")
    assert table.frame == "box" and table.boxes[3].tolist() == [4, 2, 4, 5] and len(table) == 2*N
    for key in (table.identity, np.array(list(map(str, table.paths)))):
        assert all(len(set(table.split[key == k])) == 1 for k in set(key))
    (place/"boxes.csv").write_text("file,left,top,w,h,hat\n" + "\n".join(r.rsplit(",", 1)[0] for r in [rows[0].replace(",4,5,", ",0,5,"), rows[2].replace(",2,", ",wide,")]))
    with pytest.raises(DataError, match="(?s)line 2, w: the box has no width.*line 3, top: 'wide' is no number"): table_from_csv(place/"boxes.csv", place/"pictures", attributes="hat", box="left top w h")


@pytest.mark.parametrize("names, box", [("x1 y1 x2 y2", (3, 4, 2, 5)), ("x0 y0 x1 y1", (3, 4, 2, 5)), ("x_tl y_tl x_br y_br", (3, 4, 2, 5)), ("xmin ymin xend yend", (3, 4, 2, 5)),
                                        ("left top right bottom", (3, 4, 2, 5)), ("face_xmin face_ymin face_xmax face_ymax", (3, 4, 2, 5)), ("x2 y2 w2 h2", (3, 4, 5, 9)),
                                        ("x_1 y_1 Width Height", (3, 4, 5, 9)), ("x y h w", None), ("cx cy w h", None), ("b0 b1 b2 b3", None), ("top right bottom left", None)])
def test_names_say_what_a_box_is(place, names, box):
    "Sizes only where they are called so, corners by pairs of names; nothing is guessed"
    (place/"box.csv").write_text(f"file,{names.replace(' ', ',')},hat\n" + "\n".join(f"{named(i, 'bare')},3,4,5,9,{i % 2}" for i in range(N)))
    read = lambda: table_from_csv(place/"box.csv", place/"pictures", attributes="hat", box=names)
    if box is None:
        with pytest.raises(DataError, match="call them x, y, width, height"): read()
    else: assert tuple(read().boxes[5]) == box


def test_columns_that_are_not_there_are_named(place):
    (place/"c.csv").write_text("file,hat\nIMG_001.JPG,1\n")
    for kwargs, what in ((dict(attributes="cap"), "no column 'cap'; it has 'file', 'hat'"), (dict(split="fold"), "no column 'fold'"), (dict(identity="who"), "no column 'who'"), (dict(box="a b c d"), "no column 'a'")):
        with pytest.raises(DataError, match=what): table_from_csv(place/"c.csv", place/"pictures", **kwargs)
    with pytest.raises(DataError, match="is a folder: give the CSV file in it"): table_from_csv(place)
    with pytest.raises(DataError, match="no such folder of pictures"): table_from_csv(place/"c.csv", place/"nowhere")


def jpeg(v):
    b = io.BytesIO(); Image.new("RGB", (12, 10), (v, v, v)).save(b, "JPEG"); return b.getvalue()


def hub(rows, names=None):
    "A table as the hub's library writes it, with the names of classes in the schema"
    features = {k: dict(names=v, _type="ClassLabel") for k, v in (names or {}).items()}
    return pa.table(rows).replace_schema_metadata({"huggingface": json.dumps(dict(info=dict(features=features)))})


@pytest.fixture
def cache(tmp_path, monkeypatch): monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))


def test_shards_of_the_hub(tmp_path, cache):
    rows = lambda k: dict(image=[dict(bytes=jpeg(9*k + i), path=None) for i in range(6)], smiling=[True, None, False]*2, hair=[0, 1, 2]*2, age=[30 + i for i in range(6)])
    for k, (part, shard) in enumerate((("train", 0), ("train", 1), ("validation", 0), ("test", 0))):
        (tmp_path/"hub"/"data").mkdir(parents=True, exist_ok=True)
        pq.write_table(hub(rows(k), dict(hair=["dark", "fair", "red"])), tmp_path/"hub"/"data"/f"{part}-{shard:05d}-of-00002.parquet")
    table = table_from_parquet(tmp_path/"hub", attributes=["smiling", "hair"])
    assert table.names == ("smiling", "dark", "fair", "red") and table.counts() == dict(train=12, valid=6, test=6)
    assert table.labels[:3].tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] and table.known[:3, 0].tolist() == [True, False, True]
    assert [np.asarray(table.open(i))[0, 0, 0] for i in (0, 5)] == [27, 32]   # test comes first by name
    assert table_from_parquet(tmp_path/"hub", attributes="smiling").digest == table_from_parquet(tmp_path/"hub", attributes="smiling").digest


@pytest.mark.parametrize("files", [("part.0.parquet", "part.1.parquet"), ("faces.train.parquet", "faces.test.parquet"), ("a/b/x.parquet", "a-b/x.parquet", "b/x.0.parquet", "b/x.1.parquet"), ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")])
def test_shards_keep_their_own_pictures(tmp_path, cache, files):
    "Whatever the files are called, no picture lies over another; the hub's names stay what they were"
    for k, name in enumerate(files):
        (tmp_path/"set"/name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(hub(dict(image=[dict(bytes=jpeg(40*k + 9*i), path=None) for i in range(3)], hat=[1, 0, 1], value=[40*k + 9*i for i in range(3)])), tmp_path/"set"/name)
    sheet, paths = read_shards(tmp_path/"set")
    assert len(set(paths)) == 3*len(files) and [np.asarray(Image.open(p))[0, 0, 0] for p in paths] == list(map(int, sheet.columns["value"]))
    if "-of-" in files[0]: assert paths[4].name == "set-train-00001-000001.jpg"


def test_two_processes_read_the_same_shards(tmp_path, cache, monkeypatch):
    "Each writes files of its own, and one replaces the other's by the same picture"
    pq.write_table(hub(dict(image=[dict(bytes=jpeg(1), path=None)], hat=[1])), tmp_path/"a.parquet")
    whole, names = Path.write_bytes, []
    def write(self, data):
        whole(self, data); names.append(self)
        if len(names) == 1:
            with monkeypatch.context() as m: m.setattr(os, "getpid", lambda: 1); read_shards(tmp_path/"a.parquet")
    monkeypatch.setattr(Path, "write_bytes", write)
    (path,) = read_shards(tmp_path/"a.parquet")[1]
    assert len(set(names)) == 2 and path.read_bytes() == jpeg(1) and [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_save_to_disk_wrote(tmp_path, cache):
    for part in ("train", "test"):
        (tmp_path/"disk"/part).mkdir(parents=True)
        table = hub(dict(picture=[dict(bytes=jpeg(i), path=f"{i}.jpg") for i in range(5)], worn=[["hat"], [], ["hat", "scarf"], None, ["scarf"]]))
        with pa.OSFile(str(tmp_path/"disk"/part/"data-00000-of-00001.arrow"), "wb") as f, pa.ipc.new_stream(f, table.schema) as out: out.write_table(table)
    table = table_from_parquet(tmp_path/"disk", attributes="worn", valid_share=.2)
    assert table.names == ("hat", "scarf") and table.counts() == dict(train=4, valid=1, test=5) and table.known[3].tolist() == [False, False]


def test_a_plain_parquet_file_beside_a_folder(place, tmp_path, cache):
    pd.DataFrame(dict(file=[named(i, "relative") for i in range(N)], hat=np.arange(N) % 2 == 0)).to_parquet(tmp_path/"t.parquet")
    assert table_from_parquet(tmp_path/"t.parquet", place/"pictures").labels[:, 0].tolist() == [1, 0]*(N//2)


def test_missing_pictures_of_a_parquet_file(place, tmp_path, cache):
    pd.DataFrame(dict(file=[*(named(i, "relative") for i in range(N)), "lost.jpg"], hat=[i % 2 for i in range(N + 1)])).to_parquet(tmp_path/"t.parquet")
    with pytest.raises(DataError, match="there is no picture 'lost.jpg'"): table_from_parquet(tmp_path/"t.parquet", place/"pictures")
    table = table_from_parquet(tmp_path/"t.parquet", place/"pictures", on_missing="skip")
    assert len(table) == N and any(n.startswith("1 of 25 rows have no picture") for n in table.notes)
    pq.write_table(hub(dict(image=[dict(bytes=jpeg(i), path=None) for i in range(4)], hat=[1, 0]*2)), tmp_path/"b.parquet")
    with pytest.raises(ValueError, match="its pictures are embedded, so none is missing"): table_from_parquet(tmp_path/"b.parquet", on_missing="skip")


def test_damaged_shards(tmp_path, cache):
    (tmp_path/"a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is damaged"): table_from_parquet(tmp_path/"a.parquet")
    pq.write_table(hub(dict(image=[dict(bytes=b, path=None) for b in (jpeg(1), None, b"GARBAGE")], hat=[1, 0, 1])), tmp_path/"b.parquet")
    with pytest.raises(DataError) as e: table_from_parquet(tmp_path/"b.parquet")
    assert [p.split(", ", 1)[1] for p in e.value.problems] == ["image: no picture is embedded", "image: is no picture in a known format"]


def test_folders_of_classes(tmp_path):
    for part in ("train", "val", "test"):
        for kind in ("hat", "bare"):
            for k in range(3):
                file = tmp_path/"set"/part/kind/f"{k}.webp"; file.parent.mkdir(parents=True, exist_ok=True); Image.new("RGB", (8, 8)).save(file)
    table = table_from_folders(tmp_path/"set")
    assert table.names == ("bare", "hat") and table.counts() == dict(train=6, valid=6, test=6) and (table.labels.sum(1) == 1).all()
    with pytest.raises(DataError, match="nothing is called 'cap'; there is 'bare', 'hat'"): table_from_folders(tmp_path/"set", attributes=["cap"])


@pytest.mark.parametrize("classes", ["01", "012", "0123", "01234", ("-1", "0", "1", "1.5")])
def test_class_folders_that_are_numbers(tmp_path, classes):
    for c in classes:
        for k in range(4): (tmp_path/"set"/c).mkdir(parents=True, exist_ok=True); Image.new("RGB", (8, 8), (20*k, 0, 0)).save(tmp_path/"set"/c/f"{k}.png")
    table, asked = table_from_folders(tmp_path/"set"), table_from_folders(tmp_path/"set", attributes=list(classes))
    assert asked.names == tuple(classes) and (asked.labels.sum(1) == 1).all() and [int(p.parent.name == asked.names[0]) for p in asked.paths] == asked.labels[:, 0].tolist()
    assert table.names == (("label",) if classes == "01" else tuple(classes))


def test_numbers_of_a_column_are_labels_or_refused(place):
    "1.00 and 0.00 are labels; scores are no words"
    def read(cells, asked):
        (place/"n.csv").write_text("shot,hat\n" + "\n".join(f"{named(i, 'bare')},{cells[i % len(cells)]}" for i in range(N)))
        return table_from_csv(place/"n.csv", place/"pictures", attributes=asked)
    for asked in (None, "hat"):
        for cells in (("1.00", "0.00"), ("1e0", "-1.000"), ("+1.0", "00")): assert read(cells, asked).names == ("hat",) and read(cells, asked).labels[:3, 0].tolist() == [1, 0, 1]
        with pytest.raises(DataError, match="hat holds numbers such as -0.125.*write 0 or 1"): read(("-0.125", "2.5", "1", "3"), asked)
        with pytest.raises(DataError, match="line 4, hat: '0.5', expected 0 or 1"): read(("0", "1", "0.5"), asked)
        assert read(("3", "7", "12"), asked).names == ("12", "3", "7")   # classes by number


def test_masks_that_do_not_belong(tmp_path):
    for k in range(5):
        for kind in ("images", "masks"): (tmp_path/kind).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path/"images"/f"{k}.jpg"); Image.new("L", (8, 8), k).save(tmp_path/"masks"/f"{k}_seg.png")
    table = parsing_from_folders(tmp_path/"images", tmp_path/"masks", ["background", "face", "hair", "hat"], name="mine")
    assert table.label(3).max() == 3 and table.regions.name == "mine's regions" and sum(table.counts().values()) == 5
    with pytest.raises(DataError, match="4_seg.png holds label 4; known are 0 to 3"): table.label(4)
    (tmp_path/"masks"/"0_seg.png").unlink(); Image.new("L", (9, 9)).save(tmp_path/"masks"/"extra.png")
    with pytest.raises(DataError) as e: parsing_from_folders(tmp_path/"images", tmp_path/"masks", "a b c d e")
    assert e.value.problems == ["0: no mask", "extra: no picture"]
    with pytest.raises(DataError, match="give each its own name"): parsing_from_folders(tmp_path/"images", tmp_path/"masks", "a a")


def masked(root, maps, words=("",)):
    "Pictures and their masks, one for each map of numbers; a mask for each word behind its name"
    for kind in ("p", "m"): (root/kind).mkdir(parents=True, exist_ok=True)
    for k, values in enumerate(maps):
        values = np.array(values, np.uint8); Image.new("RGB", values.shape[::-1], (9*k % 256, 0, 0)).save(root/"p"/f"{k}.png")
        for word in words: Image.fromarray(values).save(root/"m"/f"{k}{word}.png")
    return root/"p", root/"m"


def test_masks_of_0_and_255_are_no_two_regions(tmp_path):
    "255 does not count: a region would never be learnt. Where all regions are there, or 255 is not, it is what it was"
    with pytest.raises(DataError, match="face is in none of the 4 masks looked at, which hold 255.* 0 to 1"): parsing_from_folders(*masked(tmp_path/"a", [[[0, 255]]]*4), "background face")
    for k, maps in enumerate(([[[0, 255, 1]]] + [[[0, 255, 255]]]*3, [[[0, 1, 1]]]*4)):
        table = parsing_from_folders(*masked(tmp_path/f"{k}", maps), ["background", "face", "hat"][:2 + k])
        assert table.label(0).tolist() == maps[0]
    rare = parsing_from_folders(*masked(tmp_path/"rare", [[[0, 255, 1 + (k == 140)]] for k in range(150)]), "background face hat")
    assert rare.label(140).max() == 255 and len(rare) == 150   # one mask of many: looked for until it is found


def test_one_stray_picture_moves_no_other(tmp_path):
    "Parts are drawn where no picture has one; a stray is refused, or left out where it lacks its mask"
    for part, n in (("train", 12), ("valid", 3), ("test", 6)):
        for folder in masked(tmp_path/part, [[[0, 1]]]*n): (tmp_path/folder.name).mkdir(exist_ok=True); folder.rename(tmp_path/folder.name/part)
    read = lambda **kw: parsing_from_folders(tmp_path/"p", tmp_path/"m", "background face", name="mine", **kw)
    Image.new("RGB", (2, 1)).save(tmp_path/"p"/"overview.png")
    table = read(on_missing="skip")
    assert table.counts() == dict(train=12, valid=3, test=6) and all(p.parent.name == s for p, s in zip(table.paths, table.split))
    with pytest.raises(DataError, match="(?s)complete the copy.*overview: no mask"): read()
    Image.new("L", (2, 1)).save(tmp_path/"m"/"overview.png")
    for how in ("raise", "skip"):
        with pytest.raises(DataError, match="(?s)1 pictures lie in no folder train, valid or test.*overview"): read(on_missing=how)


@pytest.mark.parametrize("words", [("_mask", "_seg"), ("", "_mask")])
def test_two_masks_of_one_picture_are_refused(tmp_path, words):
    with pytest.raises(DataError, match="are both masks of 0: take one of them away"): parsing_from_folders(*masked(tmp_path, [[[0, 1]]]*4, words), "background face")


@pytest.mark.parametrize("column, cells, parts", [
    ("partition", ["0", "1", "2"], ["train", "valid", "test"]),   # as in CelebA's list, which people join to their table
    ("Partition", ["train", "val", "test"], ["train", "valid", "test"]),
    ("subset", ["Training", "dev", "testing"], ["train", "valid", "test"]),
    ("split", ["2", "0", "1"], ["test", "train", "valid"]),
])
def test_parts_are_found_by_the_usual_names_and_codes(place, tmp_path, column, cells, parts):
    rows = [(named(i, "relative"), cells[i % 3], i % 2) for i in range(N)]
    pd.DataFrame(rows, columns=["picture", column, "Smiling"]).to_csv(tmp_path/"t.csv", index=False)
    table = table_from_csv(tmp_path/"t.csv", place/"pictures")
    assert table.names == ("Smiling",) and list(table.split) == [parts[i % 3] for i in range(N)]
    assert any("as in CelebA's list" in n for n in table.notes) == cells[0].isdigit()


def test_codes_are_not_guessed_where_one_is_missing(place, tmp_path):
    "0 and 1 may be train and test, or no and yes"
    pd.DataFrame([(named(i, "relative"), i % 2, i//2 % 2) for i in range(N)], columns=["picture", "partition", "Smiling"]).to_csv(tmp_path/"t.csv", index=False)
    assert table_from_csv(tmp_path/"t.csv", place/"pictures").names == ("partition", "Smiling")   # of hair, for example
    with pytest.raises(DataError, match="codes only where 0, 1 and 2 all stand"): table_from_csv(tmp_path/"t.csv", place/"pictures", split="partition")


@pytest.fixture
def numbered(tmp_path):
    "Pictures 0.png to 29.png, and a writer of tables of them: a row's number, the picture's, more cells"
    for i in range(30): Image.new("RGB", (40, 30), (8*i, 0, 0)).save(tmp_path/f"{i}.png")
    def write(header, images, more=lambda i: (i % 2,)):
        (tmp_path/"t.csv").write_text("\n".join([header, *(",".join(map(str, (i, image, *more(i)))) for i, image in enumerate(images))])); return tmp_path/"t.csv"
    return write


@pytest.mark.parametrize("images", [[i//2 for i in range(30)], [29 - i for i in range(10)], [31, *range(29, 20, -1)]], ids=["two boxes each", "a subset", "one is lost"])
def test_a_rows_number_is_not_taken_for_a_picture(numbered, images):
    "Both columns name pictures, without endings, and others: the one that is meant must be said"
    boxed = numbered("id,image_id,x,y,w,h,hat", images, lambda i: (3, 4, 20, 20, i % 2))
    for on_missing in ("raise", "skip"):
        with pytest.raises(DataError, match="all name pictures of .*: say which, pictures="): table_from_csv(boxed, box="x y w h", on_missing=on_missing)
    table = table_from_csv(boxed, box="x y w h", pictures="image_id", on_missing="skip")
    assert [int(p.stem) for p in table.paths] == [i for i in images if i < 30] and not any("without their endings" in n for n in table.notes)


def test_columns_with_another_job_name_no_pictures(numbered):
    "Sizes of boxes, people and labels are numbers as well: one column names the pictures, which is said"
    csv = numbered("person_id,image,x,y,w,h,hat,split", range(29, -1, -1), lambda i: (i % 9, 4, 20, 19 - i % 9, i % 2, ("train", "valid", "test")[i % 3]))
    table = table_from_csv(csv, box="x y w h")
    assert [int(p.stem) for p in table.paths] == list(range(29, -1, -1)) and "image names the pictures, without their endings" in table.notes
    csv = numbered("image,copy,hat", range(30))   # both mean the same pictures
    assert [int(p.stem) for p in table_from_csv(csv).paths] == list(range(30))


LABELLED = [("Y", "N"), ("y", "n"), ("T", "F"), ("WAHR", "FALSCH"), ("on", "off"), ("Present", "absent"), ('"1,0"', '"0,0"')]

@pytest.mark.parametrize("asked", [None, "smiling", ["smiling", "hat"]])
@pytest.mark.parametrize("yes, no", LABELLED)
def test_labels_as_people_write_them(numbered, yes, no, asked):
    "Pairs of words are labels where both stand; nothing becomes two attributes of one"
    table = table_from_csv(numbered("row,image,smiling,hat", [f"{i}.png" for i in range(30)], lambda i: ((yes, no, "")[i % 3], i % 2)), attributes=asked)
    assert table.names == (("smiling",) if asked == "smiling" else ("smiling", "hat"))
    assert table.labels[:3, 0].tolist() == [1, 0, 0] and table.known[:3, 0].tolist() == [True, True, False]


def test_one_letter_alone_is_no_label(numbered):
    "F beside M is a sex: not read unasked, and refused where it is asked for"
    csv = numbered("row,image,sex,hat", [f"{i}.png" for i in range(30)], lambda i: ("FMF"[i % 3], i % 2))
    assert table_from_csv(csv).names == ("hat",)
    with pytest.raises(DataError, match="sex holds 'F' or 'M', and each would be an attribute of its own: write 0 or 1"): table_from_csv(csv, attributes=["sex"])


@pytest.mark.parametrize("cells, says", [(("Male", "Female"), "'Female' or 'Male', and each would"), (("x", ""), "'x', and it would"), (('"0,25"', '"0,5"'), "holds numbers such as")])
def test_a_column_that_is_asked_for_holds_labels_or_a_list(numbered, cells, says):
    csv = numbered("row,image,worn", [f"{i}.png" for i in range(30)], lambda i: (cells[i % 2],))
    with pytest.raises(DataError, match=says): table_from_csv(csv, attributes=["worn"])
    for header in ("row,image,labels", "row,image,worn"):   # a list by its name, or since it says that nothing is there
        csv = numbered(header, [f"{i}.png" for i in range(30)], lambda i: (("hat", "tie", "none")[i % (2 if "labels" in header else 3)],))
        assert table_from_csv(csv, attributes=header.split(",")[2]).names == ("hat", "tie")


def test_choices_of_label_studio(numbered):
    "Its cells hold a word, or JSON with several; JSON that is no list of words is a fault"
    cells = ("hat", '"{""choices"":[""glasses"",""hat""]}"', "", '"{""choices"": [""glasses""]}"')
    table = table_from_csv(numbered("row,image,choice", [f"{i}.png" for i in range(28)], lambda i: (cells[i % 4],)), attributes="choice")
    assert table.names == ("glasses", "hat") and table.labels[:4].tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]] and table.known[:4, 0].tolist() == [True, True, False, True]
    for cell in ('"{""x"": 1, ""y"": 2}"', '"[{""rectanglelabels"": [""hat""]}]"', '"{broken"'):
        with pytest.raises(DataError, match="line 3, choice: .*expected words, as glasses;hat"):
            table_from_csv(numbered("row,image,choice", ["0.png", "1.png", "2.png"], lambda i: ("hat" if i != 1 else cell,)), attributes="choice")


def test_two_classes_of_the_hub_may_be_asked_for(tmp_path, cache):
    rows = dict(image=[dict(bytes=jpeg(9*i), path=None) for i in range(6)], sex=[0, 1]*3)
    pq.write_table(hub(rows, dict(sex=["female", "male"])), tmp_path/"a.parquet")
    assert table_from_parquet(tmp_path/"a.parquet", attributes="sex").names == ("female", "male")


@pytest.mark.parametrize("header, cells", [("x,y,w,h", ".1,.2,.5,.6"), ("x1,y1,x2,y2", "0,.25,1,1.0"), ("xmin,ymin,xmax,ymax", "0,0,1,1")])
def test_boxes_in_shares_of_the_picture_are_refused(numbered, header, cells):
    csv = numbered(f"row,image,{header},hat", [f"{i}.png" for i in range(30)], lambda i: (cells, i % 2))
    with pytest.raises(DataError, match="boxes are all within 0 and 1 .*multiply x by the picture's width"): table_from_csv(csv, attributes="hat", box=header)


def test_boxes_over_the_border_are_said(numbered):
    at = lambda i: {3: (-6, 4, 20, 20, 1), 7: (10, 11, 20, 20, 1), 9: (-.4, 9.6, 40.3, 20, 1)}.get(i, (20, 10, 20, 20, 0))
    notes = table_from_csv(numbered("row,image,x,y,w,h,hat", [f"{i}.png" for i in range(30)], at), attributes="hat", box="x y w h").notes
    assert "boxes that lie partly outside their picture, where they are cut off: 2 of 30 looked at, for example line 5" in notes
    inside = table_from_csv(numbered("row,image,x,y,w,h,hat", [f"{i}.png" for i in range(30)], lambda i: (20, 10, 20, 20, i % 2)), attributes="hat", box="x y w h")
    assert not any("outside" in n for n in inside.notes)


def test_a_frame_of_boxes_needs_boxes(numbered):
    with pytest.raises(DataError, match="frame='box' shows what lies in a box.*give box="): table_from_csv(numbered("row,image,hat", [f"{i}.png" for i in range(30)]), attributes="hat", frame="box")


def turned(file, upright, turn):
    "A picture stored so that its EXIF tag turns it upright"
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[turn]
    tag = Image.Exif(); tag[0x112] = turn
    Image.fromarray(upright).transpose(back).save(file, exif=tag)


@pytest.mark.parametrize("ending, turn", [("png", 3), ("png", 6), ("jpg", 3), ("jpg", 6)])
def test_pictures_that_a_tag_turns(tmp_path, ending, turn):
    "Boxes and masks count pixels as they are stored, which is said; with exif=True those of upright pictures"
    upright = np.zeros((40, 60, 3), np.uint8); upright[:16, :32] = 255
    for kind in ("p", "m"): (tmp_path/kind).mkdir()
    for i in range(6):
        upright[24:, 40:] = 20*i   # no copies
        turned(tmp_path/"p"/f"{i}.{ending}", upright, turn if i < 4 else 3)
        Image.fromarray((upright[..., 0] == 255).astype(np.uint8)).save(tmp_path/"m"/f"{i}.png")
    (tmp_path/"t.csv").write_text("file,x,y,w,h,hat\n" + "\n".join(f"{i}.{ending},0,0,32,16,{i % 2}" for i in range(6)))
    read = lambda **kw: table_from_csv(tmp_path/"t.csv", tmp_path/"p", attributes="hat", box="x y w h", **kw)
    stored, right = read(), read(exif=True)
    shown = lambda t: np.asarray(box_view(t.boxes).crop(t.open(0), 0)).mean()
    assert stored.exif is False and shown(stored) < 100 and any(n.startswith("pictures that their EXIF tag turns: 6 of 6 looked at, for example") and "say exif=True" in n for n in stored.notes)
    assert right.exif is True and shown(right) > 250 and stored.digest == read(exif=False).digest != right.digest
    assert not any("EXIF" in n for t in (right, read(exif=False), table_from_csv(tmp_path/"t.csv", tmp_path/"p", attributes="hat")) for n in t.notes)
    parsed = parsing_from_folders(tmp_path/"p", tmp_path/"m", "background white", exif=True)
    assert np.asarray(parsed.open(0))[parsed.label(0) == 1].mean() > 250 and parsed.take([0]).exif and not any("EXIF" in n for n in parsed.notes)
    if turn == 3:
        plain = parsing_from_folders(tmp_path/"p", tmp_path/"m", "background white")
        assert any("masks are taken to count pixels as they are stored" in n for n in plain.notes) and plain.digest != parsed.digest and np.asarray(plain.open(0))[plain.label(0) == 1].mean() < 100


@pytest.mark.parametrize("column, cells, how", [("set", ("train", "val", "test"), "say split='set'"), ("Usage", ("Training", "PublicTest", "PrivateTest"), "write train, valid and test in it, and say split='Usage'"),
                                                ("fold", ("train", "test", "unused"), "write train"), ("phase", ("TRAIN", "test"), "say split='phase'")])
def test_a_column_that_looks_like_parts_is_said(numbered, column, cells, how):
    "Parts are drawn, and the note says which column might have said them; not where drawing was asked for"
    csv = numbered(f"row,image,{column},hat", [f"{i}.png" for i in range(30)], lambda i: (cells[i % len(cells)], i % 2))
    note = [n for n in table_from_csv(csv).notes if "looks like parts" in n]
    assert len(note) == 1 and f"though column {column} looks like parts" in note[0] and how in note[0]
    assert not any("looks like parts" in n for n in table_from_csv(csv, split=None).notes)
    if how.startswith("say"): assert table_from_csv(csv, split=column).split[:2].tolist() == ["train", "valid" if len(cells) == 3 else "test"]
    csv = numbered(f"row,image,{column},hat,split", [f"{i}.png" for i in range(30)], lambda i: (cells[i % len(cells)], i % 2, ("train", "test")[i % 2]))
    assert not any("looks like parts" in n for n in table_from_csv(csv).notes)


@pytest.mark.parametrize("column", ["is_test", "fold", "isTrain", "valid", "test_set"])
def test_parts_as_labels_are_said(numbered, column):
    csv = numbered(f"row,image,{column},hat", [f"{i}.png" for i in range(30)], lambda i: (i % 2, i//2 % 2))
    assert table_from_csv(csv).names == (column, "hat") and any(n.startswith(f"{column} is read as an attribute; if it says which part") for n in table_from_csv(csv).notes)
    assert not any("is read as an attribute" in n for n in table_from_csv(csv, attributes=[column, "hat"]).notes)


def test_labels_called_person_are_no_people(numbered):
    "0 and 1 are labels, asked for or not; people are people"
    write = lambda cells: numbered("row,image,person,hat", [f"{i}.png" for i in range(30)], lambda i: (cells[i % len(cells)], i//2 % 2))
    for cells in (("0", "1"), ("-1", "1"), ("yes", "no", "")):
        table = table_from_csv(write(cells))
        assert table.names == ("person", "hat") and table.identity is None and any("if it says who it is, say identity='person'" in n for n in table.notes)
        assert table_from_csv(write(cells), attributes=["person", "hat"]).names == ("person", "hat")
    for cells in (("0", "1", "2"), ("0", "1", "-1", *"23"), ("ann", "bo", "cy")):
        table = table_from_csv(write(cells))
        assert table.names == ("hat",) and len(set(table.identity[table.identity >= 0])) == len(cells) - ("-1" in cells)
    for given, asked in ((dict(identity="person"), "person"), ({}, "image"), (dict(box="x y w h"), "w")):
        with pytest.raises(DataError, match=f"'{asked}' cannot be an attribute, having another job"):
            table_from_csv(numbered("row,image,person,hat,x,y,w,h", [f"{i}.png" for i in range(30)], lambda i: (i % 2, i % 2, 3, 3, 9, 9)), attributes=[asked, "hat"], **given)


def test_attributes_of_two_sides_are_said(numbered):
    csv = numbered("row,image,left_arm_up,right_arm_up,leftEyeClosed,hat", [f"{i}.png" for i in range(30)], lambda i: (i % 2, 1 - i % 2, i//2 % 2, i//3 % 2))
    notes = table_from_csv(csv).notes
    assert "attributes that trade places where training mirrors a picture: left_arm_up and right_arm_up" in notes
    assert any(n.startswith("leftEyeClosed: the other side is not among the attributes") and "augment=False" in n for n in notes)
    assert not any("mirrors" in n for n in table_from_csv(csv, attributes="hat").notes)


@pytest.mark.parametrize("disk, sheet", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_of_one_sign_or_two(tmp_path, disk, sheet):
    "macOS keeps a letter and its accent as two signs; the same name is meant, of pictures, folders and masks"
    spelled = lambda form, k, ending="png": unicodedata.normalize(form, f"Zoë/José {k}.{ending}")
    for kind, form in (("p", disk), ("m", sheet)):
        for k in range(6): (file := tmp_path/kind/spelled(form, k)).parent.mkdir(parents=True, exist_ok=True); Image.new("L", (8, 8), 0 if kind == "m" else 20*k).save(file)
    for name in (lambda k: spelled(sheet, k), lambda k: spelled(sheet, k).upper(), lambda k: spelled(sheet, k).split("/")[1]):
        (tmp_path/"t.csv").write_text("file,hat\n" + "\n".join(f"{name(k)},{k % 2}" for k in range(6)))
        assert [p.stem[-1] for p in table_from_csv(tmp_path/"t.csv", tmp_path/"p").paths] == list("012345")
    parsed = parsing_from_folders(tmp_path/"p", tmp_path/"m", "background face")
    assert len(parsed) == 6 and all(p.stem[-1] == m.stem[-1] for p, m in zip(parsed.paths, parsed.label_files))


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=;;"])
def test_excels_line_that_says_what_parts_cells(tmp_path, first):
    for k in range(4): Image.new("RGB", (8, 8), (20*k, 0, 0)).save(tmp_path/f"{k}.png")
    (tmp_path/"t.csv").write_text(f"{first}\nfile;hat\n" + "\n".join(f"{k}.png;{k % 2}" for k in range(4)))
    assert table_from_csv(tmp_path/"t.csv").names == ("hat",)
    (tmp_path/"t.csv").write_text(f"{first}\nfile;hat\n0.png;1\n1.png;perhaps\n2.png;0")
    with pytest.raises(DataError, match="line 4, hat: 'perhaps'"): table_from_csv(tmp_path/"t.csv")


@pytest.mark.parametrize("made, says", [("[Content_Types].xml", "export the sheet as CSV"), ("xl/workbook.xml", "export the sheet as CSV"), ("ods", "export the sheet as CSV"), ("xls", "export the sheet as CSV"), ("a.csv", "zip archive: unpack it first")])
def test_a_workbook_is_no_csv(tmp_path, made, says):
    file = tmp_path/"labels.xlsx"
    if made == "xls": file.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    else:
        with zipfile.ZipFile(file, "w") as z:
            z.writestr("mimetype" if made == "ods" else made, "application/vnd.oasis.opendocument.spreadsheet" if made == "ods" else "<x/>")
            if made.startswith("xl"): z.writestr("[Content_Types].xml", "<x/>")
    with pytest.raises(DataError, match=says): table_from_csv(file)


def test_missing_landmarks_are_said_and_not_learnt_from(numbered, tmp_path):
    "A row without its points gives empty boxes: bbox refuses, and says how to leave it out"
    columns = ",".join(f"{a}{k}" for k in range(5) for a in "xy")
    points = lambda i: ",".join([""]*10) if i == 4 else "9,9,28,9,20,15,12,22,27,22" if i != 7 else ",9,28,9,20,15,12,22,27,22"
    table = table_from_csv(numbered(f"row,image,{columns},hat", [f"{i}.png" for i in range(30)], lambda i: (points(i), i % 2)), attributes="hat", landmarks=columns.split(","))
    assert "landmarks are missing in 2 of 30 rows: bbox takes none of these" in table.notes
    for act in (lambda: run("bbox", table, "smoke", out=tmp_path/"runs"), lambda: box_masks(table, (6, 5))):
        with pytest.raises(DataError, match=r"2 of 30 pictures have no whole landmarks, for example 4.png.*table.take\(~np.isnan"): act()
    whole = table.take(~np.isnan(table.landmarks).any((1, 2)))
    assert len(whole) == 28 and box_masks(whole, (6, 5)).store[[0]].shape == (1, 16, 6, 5)
    assert run("avg_pool", table, "smoke", out=tmp_path/"runs", epochs=1).folder.exists()
