"Two rows of a table that a profile makes equal share one run; where anything differs they do not."
from helpers import picture_table
from symbiosis_nb.runs import run


def test_one_run_serves_both(tmp_path):
    table = picture_table(tmp_path/"pictures")
    a, b = (run(m, table, "smoke", out=tmp_path/"runs") for m in ("avg_pool", "inception"))
    assert a.folder == b.folder and (a.method, b.method) == ("avg_pool", "inception")
    assert len(list((tmp_path/"runs").glob("*/done.json"))) == 1
    c = run("inception", table, "smoke", out=tmp_path/"runs", size=None, backbone="small")  # its paper's size
    assert c.folder != a.folder and c.config["profile"]["size"] == [299, 299]
