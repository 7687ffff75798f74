"Locks, folders and caches on the machines that people have; parameters that notebooks know"
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from symbiosis_nb import core
from symbiosis_nb.core import DataError, cache_dir, folder_lock, make_folder, refuse_unknown
from symbiosis_nb.data import pixels
from symbiosis_nb.data.pixels import array_store

ones = lambda rows: (np.ones(2, np.uint8) for _ in rows)
build = lambda root, key="k": array_store("ones", key, 3, (2,), ones, root=root)
fcntl = pytest.importorskip("fcntl")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_drives_without_locks(tmp_path, monkeypatch, code):
    def no(*a): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(fcntl, "flock", no)
    assert build(tmp_path).ok.all() and not (tmp_path/"ones-k"/".lock-marker").exists()


def test_systems_without_fcntl(tmp_path):
    "Nothing of the data side needs what only Linux has"
    code = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\nimport os\nfor n in ('posix_fallocate', 'SCHED_IDLE', 'sched_setscheduler', 'sync'):\n" \
           "    if hasattr(os, n): delattr(os, n)\nimport numpy as np\nfrom symbiosis_nb.data import loaders, pixels, sources, synthetic\n" \
           f"print(pixels.array_store('a', 'k', 3, (2,), lambda rows: (np.ones(2) for _ in rows), root={str(tmp_path)!r}).ok.all(), loaders._spare())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "SYMBIOSIS_QUIET": "1"})
    assert done.stdout.split() == ["True", "None"], done.stderr[-2000:]


@pytest.mark.parametrize("what", ["missing", errno.EOPNOTSUPP, errno.EINVAL])
def test_drives_without_fallocate(tmp_path, monkeypatch, what):
    def no(*a): raise OSError(what, os.strerror(what))
    monkeypatch.delattr(os, "posix_fallocate") if what == "missing" else monkeypatch.setattr(os, "posix_fallocate", no)
    assert build(tmp_path).ok.all()


@pytest.mark.parametrize("missing", [True, False])
def test_a_full_disk_is_known_before_the_work(tmp_path, monkeypatch, missing):
    def full(*a): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if missing:
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(pixels.shutil, "disk_usage", lambda p: type("Usage", (), dict(free=1)))
    else: monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="SYMBIOSIS_CACHE") as e: build(tmp_path)
    assert e.value.errno == errno.ENOSPC and not (tmp_path/"ones-k"/"data.bin").exists()


def test_a_finished_store_needs_no_lock(tmp_path, monkeypatch):
    build(tmp_path)
    def never(*a, **k): raise AssertionError("a finished store was locked")
    monkeypatch.setattr(pixels, "folder_lock", never)
    assert build(tmp_path).ok.all()


def test_waiting_says_for_whom(tmp_path, capfd):
    inside, leave = threading.Event(), threading.Event()
    def hold():
        with folder_lock(tmp_path): inside.set(); leave.wait(10)
    holder = threading.Thread(target=hold); holder.start(); inside.wait(10)
    threading.Timer(1.3, leave.set).start()
    begun = time.time()
    with folder_lock(tmp_path): waited = time.time() - begun
    holder.join()
    said = capfd.readouterr().err
    assert waited > 1 and f"process {os.getpid()} on " in said and str(tmp_path) in said and "since" in said and "SYMBIOSIS_CACHE" in said
    assert not (tmp_path/".holder").exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be two users")
def test_two_users_share_a_cache(tmp_path):
    "One user writes with umask 022, another of the same group reads, and goes on where the first was cut off"
    shared = tmp_path/"shared"; shared.mkdir(); os.chown(shared, 0, 4242); shared.chmod(0o2775)
    for p in [*tmp_path.parents, tmp_path]:
        if str(p).startswith("/tmp"): p.chmod(p.stat().st_mode | 0o055)
    code = ("import os, sys\nimport numpy as np\nfrom symbiosis_nb.data.pixels import array_store\n"     # imported by root, then another user
            "os.umask(0o022); os.setgroups([4242]); os.setgid(4242); os.setuid(int(sys.argv[1]))\n"
            "def make(rows):\n    for r in rows:\n        if sys.argv[2] == 'stop' and r == 2: os._exit(3)\n        yield np.full(2, r, np.uint8)\n"
            "s = array_store('ones', sys.argv[3], 4, (2,), make, chunk=1, root=sys.argv[4]); print(s.ok.all(), s.data[3].tolist())")
    user = lambda uid, how, key: subprocess.run([sys.executable, "-c", code, str(uid), how, key, str(shared/"stores")], capture_output=True, text=True,
                                                env={**os.environ, "HOME": "/", "SYMBIOSIS_QUIET": "1"})
    assert user(4001, "stop", "a").returncode == 3
    done = user(4002, "go", "a"); assert done.stdout.startswith("True [3, 3]"), done.stderr[-2000:]
    assert user(4001, "go", "b").returncode == 0
    (shared/"stores"/"ones-b").chmod(0o555); [f.chmod(0o444) for f in (shared/"stores"/"ones-b").iterdir()]
    done = user(4002, "go", "b"); assert done.returncode == 0, done.stderr[-2000:]          # read only, finished


def test_folders_keep_the_rights_of_the_group(tmp_path):
    tmp_path.chmod(0o2775); before = os.umask(0o022)
    try:
        folder = make_folder(tmp_path/"a"/"b"); core.write_json(folder/"x.json", 1)
        private = tmp_path/"private"; private.mkdir(); make_folder(private/"c")
    finally: os.umask(before)
    assert folder.stat().st_mode & 0o7777 == 0o2775 and (folder/"x.json").stat().st_mode & 0o777 == 0o664
    assert (private/"c").stat().st_mode & 0o022 == 0


def test_a_cache_that_cannot_be_is_named(tmp_path, monkeypatch):
    (tmp_path/"file").touch()
    for where in (tmp_path/"file", tmp_path/"file"/"below", "/proc/x"):
        monkeypatch.setenv("SYMBIOSIS_CACHE", str(where))
        with pytest.raises(OSError, match="SYMBIOSIS_CACHE"): build(None)
    monkeypatch.delenv("SYMBIOSIS_CACHE"); monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(OSError, match="SYMBIOSIS_CACHE"): cache_dir()
    def nobody(self): raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(DataError, match="SYMBIOSIS_CACHE"): cache_dir()


def test_a_damaged_store_and_an_empty_list(tmp_path):
    store = build(tmp_path)
    (store.folder/"data.bin").write_bytes(b"1")
    with pytest.raises(DataError, match="delete it and run again"): build(tmp_path)
    with pytest.raises(DataError, match="an empty list was given"): array_store("ones", "none", 0, (2,), ones, root=tmp_path)


def test_startup_files_do_not_make_a_notebook_refuse():
    cells = ["", "profile: str = 'demo'\nseeds: int = 1", "# Parameters\nprofile = 'smoke'\n", "from symbiosis_nb.core import refuse_unknown"]
    refuse_unknown(dict(DEBUG=True, profile="smoke", seeds=1, In=cells), "profile seeds")
    with pytest.raises(ValueError, match=r"unknown parameter .sedes.: did you mean seeds\? known are profile, seeds"):
        refuse_unknown(dict(DEBUG=True, profile="smoke", sedes=3, seeds=1, In=[*cells, "sedes = 3"]), "profile, seeds")
    with pytest.raises(ValueError, match="unknown parameter .profil.: did you mean profile"): refuse_unknown(dict(profil="demo"), "profile")
