"""Fetching, unpacking, unpickling: bad or hostile input ends in one line and leaves nothing wrong."""

import builtins
import contextlib
import errno
import hashlib
import http.server
import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_download import fetch as fetching
from data_download.fetch import Remote, check_space, fetch, full_disk, only_one
from data_download.unpack import unpack
from data_download.unpickle import load_arrays

ROOT = Path(__file__).parent.parent
CONTENT = np.random.default_rng(0).integers(0, 256, 600_000, dtype=np.uint8).tobytes()


@contextlib.contextmanager
def rejects(error, *words):
    """The block must raise ``error`` with a message of one line that holds every word."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message.strip() and len(message) < 400, message
    missing = [word for word in words if str(word) not in message]
    assert not missing, f"{missing} not in: {message}"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No mirror, no proxy, no waiting between attempts."""
    monkeypatch.delenv("TVF_DATA_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetching, "WAITS", (0.01, 0.01))


@pytest.fixture
def server():
    """An HTTP server on ``.files``. It counts ``.sent`` bytes and ``.asked`` ranges.

    Its other attributes say how it misbehaves.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            box = self.server
            content, asked = box.files.get(self.path), self.headers.get("Range")
            box.asked.append(asked)
            if content is None or box.fails:
                box.fails = max(box.fails - 1, 0)
                return self.send_error(404 if content is None else 503)
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and box.ranges else 0
            if begin and begin >= len(content):
                return self.send_error(416)
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            for k in range(begin, box.cut or len(content), 1 << 16):
                block = content[k : min(k + (1 << 16), box.cut or len(content))]
                box.sent += len(block)  # before: the client may be through before this thread goes on
                try:
                    self.wfile.write(block)
                except OSError:  # the client was killed
                    box.sent -= len(block)
                    return
                time.sleep(box.pause)

    box = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    box.files, box.ranges, box.cut, box.pause, box.fails, box.sent, box.asked = (
        {"/a": CONTENT},
        True,
        None,
        0.0,
        0,
        0,
        [],
    )
    box.url = f"http://127.0.0.1:{box.server_port}"
    threading.Thread(target=box.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield box
    box.shutdown()
    box.server_close()


def remote(url="", content=CONTENT, name="a", algorithm="sha256", size=None):
    return Remote(
        name,
        f"{url}/{name}",
        f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}",
        f"set/{name}",
        len(content) if size is None else size,
    )


def there(folder):
    """Names in a folder, without the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def fill_mirror(folder, monkeypatch, **files):
    (folder / "set").mkdir(parents=True)
    for name, content in files.items():
        (folder / "set" / name).write_bytes(content)
    monkeypatch.setenv("TVF_DATA_MIRROR", str(folder))


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
@pytest.mark.parametrize("size", [None, 0])
def test_fetches_once(server, tmp_path, algorithm, size):
    server.files["/b"] = CONTENT[:1000]
    remotes = [
        remote(server.url, algorithm=algorithm, size=size),
        remote(server.url, CONTENT[:1000], "b", algorithm, size),
    ]
    assert fetch(remotes, tmp_path / "new", progress=False) == (
        [tmp_path / "new" / "a", tmp_path / "new" / "b"],
        2,
    )
    assert (tmp_path / "new" / "a").read_bytes() == CONTENT and there(tmp_path / "new") == ["a", "b"]
    assert server.sent == len(CONTENT) + 1000
    assert fetch(remotes, tmp_path / "new", progress=False)[1] == 0 and len(server.asked) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_continues_a_part(server, tmp_path, ranges):
    server.ranges = ranges
    (tmp_path / ".a.part").write_bytes(CONTENT[:250_000])
    assert fetch([remote(server.url)], tmp_path, progress=False)[1] == 1
    assert there(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == ["bytes=250000-"] and server.sent == len(CONTENT) - (250_000 if ranges else 0)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "part", [b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"x"], ids=["wrong", "wrong and whole", "too long"]
)
def test_a_bad_part_is_begun_anew(server, tmp_path, part, ranges):
    server.ranges = ranges
    (tmp_path / ".a.part").write_bytes(part)
    fetch([remote(server.url)], tmp_path, progress=False)
    assert there(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == CONTENT


def test_a_whole_part_is_not_sent_again(server, tmp_path):
    """What a process killed between the last byte and the renaming leaves."""
    (tmp_path / ".a.part").write_bytes(CONTENT)
    fetch([remote(server.url)], tmp_path, progress=False)
    assert there(tmp_path) == ["a"] and server.sent == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection(server, tmp_path, ranges):
    server.cut, server.ranges = 300_000, ranges
    with rejects(OSError, f"{server.url}/a", "no connection", "same command continues"):
        fetch([remote(server.url)], tmp_path, progress=False)
    assert len(server.asked) == 3, "one attempt and one after each wait"
    had = (tmp_path / ".a.part").stat().st_size
    assert 200_000 < had <= 300_000 and there(tmp_path) == [".a.part"]
    server.cut, server.sent = None, 0
    fetch([remote(server.url)], tmp_path, progress=False)
    assert server.sent == len(CONTENT) - (had if ranges else 0) and (tmp_path / "a").read_bytes() == CONTENT


def test_one_cut_is_mended_in_the_same_call(server, tmp_path, monkeypatch):
    server.cut = 300_000
    monkeypatch.setattr(fetching, "time", SimpleNamespace(sleep=lambda wait: setattr(server, "cut", None)))
    fetch([remote(server.url)], tmp_path, progress=False)
    assert there(tmp_path) == ["a"] and len(server.asked) == 2 and server.asked[1].startswith("bytes=")


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.fails = 2
    fetch([remote(server.url)], tmp_path, progress=False)
    assert there(tmp_path) == ["a"] and len(server.asked) == 3


def test_no_such_file_or_server(server, tmp_path):
    with rejects(OSError, f"{server.url}/b", "404", "same command"):
        fetch([remote(server.url), remote(server.url, name="b")], tmp_path, progress=False)
    assert there(tmp_path) == ["a"] and len(server.asked) == 2, (
        "what is whole stays, and a 404 is not asked again"
    )
    with rejects(OSError, "http://127.0.0.1:9/b", "no connection", "same command"):
        fetch([remote("http://127.0.0.1:9", name="b")], tmp_path, progress=False)


def test_wrong_hash_leaves_nothing(server, tmp_path):
    wrong = remote(server.url, CONTENT[:-1])
    for part in (None, b"begun"):
        if part:
            (tmp_path / ".a.part").write_bytes(part)
        with rejects(ValueError, "a: expected", wrong.hash, "try again", "publisher", wrong.url):
            fetch([wrong], tmp_path, progress=False)
        assert there(tmp_path) == []
    assert server.asked == [None, "bytes=5-", None], "once more from zero after a continued part, else once"


def test_damaged_file_is_repaired(server, tmp_path, capsys):
    (tmp_path / "a").write_bytes(CONTENT[:-1] + b"?")
    assert fetch([remote(server.url)], tmp_path, progress=False)[1] == 1
    assert (tmp_path / "a").read_bytes() == CONTENT
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(tmp_path / "a") in line and "damaged" in line


@pytest.mark.parametrize("ranges", [True, False])
def test_progress_counts_every_byte_once(server, tmp_path, capsys, ranges):
    server.ranges = ranges
    (tmp_path / ".a.part").write_bytes(b"x" * 100_000)
    (tmp_path / "b").write_bytes(CONTENT[:150_000])
    fetch([remote(server.url), remote(server.url, CONTENT[:150_000], "b")], tmp_path)
    assert "750k/750k" in capsys.readouterr().err


def test_mirror(tmp_path, monkeypatch):
    fill_mirror(tmp_path / "mirror", monkeypatch, a=CONTENT)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".a.part").write_bytes(CONTENT[:1000])
    hashed, once = [], fetching._hash
    monkeypatch.setattr(fetching, "_hash", lambda path, remote: hashed.append(path) or once(path, remote))
    assert fetch([remote()], tmp_path / "new", progress=False)[1] == 1 and len(hashed) == 1, (
        "continued, not begun anew"
    )
    assert (tmp_path / "new" / "a").read_bytes() == CONTENT and there(tmp_path / "new") == ["a"]
    (tmp_path / "new" / "a").write_bytes(b"?")
    (tmp_path / "new" / ".a.part").write_bytes(b"?" * len(CONTENT))
    assert fetch([remote()], tmp_path / "new", progress=False)[1] == 1
    with rejects(FileNotFoundError, tmp_path / "mirror" / "set" / "b", "missing", "unset TVF_DATA_MIRROR"):
        fetch([remote(name="b")], tmp_path / "new", progress=False)
    assert there(tmp_path / "new") == ["a"]


def test_damaged_mirror(tmp_path, monkeypatch):
    fill_mirror(tmp_path / "mirror", monkeypatch, a=CONTENT[:300_000] + b"?" + CONTENT[300_001:])
    with rejects(
        ValueError,
        "a: expected",
        remote().hash,
        tmp_path / "mirror" / "set" / "a",
        "damaged",
        "unset TVF_DATA_MIRROR",
    ):
        fetch([remote()], tmp_path / "new", progress=False)
    assert there(tmp_path / "new") == []


FETCH = """
import sys
from pathlib import Path
from data_download.fetch import Remote, fetch
url, hash, folder = sys.argv[1:]
fetch([Remote("a", url, hash, "a")], Path(folder), progress=False)
"""


def test_killed_in_the_middle(server, tmp_path):
    server.pause = 0.2
    one = remote(server.url)
    process = subprocess.Popen([sys.executable, "-c", FETCH, one.url, one.hash, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: (tmp_path / ".a.part").exists() and (tmp_path / ".a.part").stat().st_size > 100_000)
    with rejects(OSError, "another data_download", tmp_path):
        fetch([one], tmp_path, progress=False)
    process.kill()
    process.wait()
    assert there(tmp_path) == [".a.part"]
    had, server.pause, server.asked = (tmp_path / ".a.part").stat().st_size, 0.0, []
    fetch([one], tmp_path, progress=False)
    assert (
        (tmp_path / "a").read_bytes() == CONTENT
        and server.asked == [f"bytes={had}-"]
        and there(tmp_path) == ["a"]
    )


def wait_for(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "did not come so far"
        time.sleep(0.01)


def test_interrupted_keeps_the_part(server, tmp_path, monkeypatch):
    server.cut = 300_000

    def interrupt(wait):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "time", SimpleNamespace(sleep=interrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch([remote(server.url)], tmp_path, progress=False)
    assert there(tmp_path) == [".a.part"]
    with only_one(tmp_path):
        pass


def test_the_lock_nests_and_keeps_others_out(tmp_path):
    code = (
        "from pathlib import Path; from data_download.fetch import only_one\n"
        f"with only_one(Path({str(tmp_path)!r})): pass"
    )
    other = lambda: subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)  # noqa: E731
    with only_one(tmp_path):
        with only_one(tmp_path / "." / "x" / ".."):
            assert fetch([], tmp_path, progress=False) == ([], 0)
        assert f"another data_download is working in {tmp_path}" in other().stderr
    assert other().returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no mount on this system")
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("mirrored", [True, False])
def test_full_disk(server, small_disk, tmp_path, monkeypatch, mirrored):
    server.files["/b"] = CONTENT
    if mirrored:
        fill_mirror(tmp_path / "mirror", monkeypatch, a=CONTENT, b=CONTENT)
    sized = [remote(server.url), remote(server.url, name="b")]
    with rejects(OSError, small_disk, "2 MB are needed", "1 MB are free", "--root"):
        fetch(sized, small_disk, progress=False)
    assert there(small_disk) == [] and not server.asked
    with rejects(OSError, f"the disk at {small_disk} is full", "--root"):
        fetch([remote(server.url, size=0), remote(server.url, name="b", size=0)], small_disk, progress=False)
    assert there(small_disk) == ["a"] and (small_disk / "a").read_bytes() == CONTENT
    os.truncate(small_disk / "a", 0)
    (small_disk / "a").rename(small_disk / "elsewhere")
    assert fetch(sized[1:], small_disk, progress=False)[1] == 1


def test_unpacking_on_a_full_disk(small_disk, tmp_path):
    large = make_tar(tmp_path / "large.tar.gz", {"a": bytes(2_000_000)})
    with rejects(OSError, small_disk, "2 MB are needed", "--root"):
        unpack(large, small_disk / "new", progress=False)
    many = make_tar(
        tmp_path / "many.tar.gz", {f"{k}": b"x" for k in range(400)}
    )  # 400 bytes, but a page each
    with rejects(OSError, f"the disk at {small_disk} is full", "--root"):
        unpack(many, small_disk / "new", progress=False)
    assert there(small_disk) == []


def test_full_disk_anywhere(server, tmp_path, monkeypatch):
    """As above where nothing can be mounted: the second file's part does not take more than 100 kB."""
    server.files["/b"] = CONTENT

    def fills_up(path, mode="r", *args):
        file = builtins.open(path, mode, *args)
        if Path(path).name != ".b.part" or "r" in mode:
            return file

        class Full(io.BytesIO):
            def write(self, block):
                if file.tell() > 100_000:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return file.write(block)

            def tell(self):
                return file.tell()

            def close(self):
                file.close()

        return Full()

    monkeypatch.setattr(fetching, "open", fills_up, raising=False)
    with rejects(OSError, f"the disk at {tmp_path} is full: 1 MB more are needed", "--root"):
        fetch([remote(server.url), remote(server.url, name="b")], tmp_path, progress=False)
    assert there(tmp_path) == ["a"]


def test_only_a_full_disk_is_called_full(tmp_path):
    with rejects(OSError, "is full; free some"), full_disk(tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    with rejects(PermissionError, "x"), full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "x")
    check_space(tmp_path, 1000)
    with rejects(OSError, "1000000000000 MB are needed"):
        check_space(tmp_path, 10**18)


def make_tar(path, files, mode="w:gz", **kinds):
    """A tar of name: content; a kind other than a plain file is a TarInfo type by name."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return path


def make_zip(path, files, links=(), encrypted=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    if encrypted:  # the flag in the local header and in the directory
        content = bytearray(path.read_bytes())
        content[6] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1
        path.write_bytes(content)
    return path


FILES = {"top.txt": b"1", "set/a/x.bin": CONTENT[:70_000], "set/b.bin": b""}


@pytest.mark.parametrize("name", ["x.zip", "x.ZIP", "x.tar.gz", "x.tgz", "x.tar"])
def test_unpacks(tmp_path, name):
    if name.lower().endswith("zip"):
        archive = make_zip(tmp_path / name, {"set/": b"", **FILES})
    else:
        archive = make_tar(
            tmp_path / name, FILES, "w:" if name.endswith("tar") else "w:gz", **{"./": tarfile.DIRTYPE}
        )
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "stale").write_bytes(b"of a killed run")
    assert unpack(archive, tmp_path / "new", progress=False) == tmp_path / "new"
    found = {
        str(f.relative_to(tmp_path / "new")): f.read_bytes()
        for f in (tmp_path / "new").rglob("*")
        if f.is_file()
    }
    assert found == FILES and there(tmp_path) == sorted([name, "new"])
    with rejects(FileExistsError, tmp_path / "new", "already"):
        unpack(archive, tmp_path / "new", progress=False)
    assert there(tmp_path) == sorted([name, "new"])


GOOD = {"good": b"1"}
HOSTILE = {  # name: (maker of the archive, words)
    "tar ..": (lambda p: make_tar(p / "x.tar", GOOD | {"a/../../x": b""}, "w:"), ["'a/../../x'", "leaves"]),
    "tar absolute": (
        lambda p: make_tar(p / "x.tar.gz", GOOD | {"/elsewhere/x": b""}),
        ["'/elsewhere/x'", "leaves"],
    ),
    "tar symlink": (lambda p: make_tar(p / "x.tar.gz", GOOD, link=tarfile.SYMTYPE), ["'link'", "link"]),
    "tar hard link": (lambda p: make_tar(p / "x.tar.gz", GOOD, link=tarfile.LNKTYPE), ["'link'", "link"]),
    "tar device": (lambda p: make_tar(p / "x.tar.gz", GOOD, dev=tarfile.CHRTYPE), ["'dev'", "device"]),
    "tar pipe": (lambda p: make_tar(p / "x.tar.gz", GOOD, pipe=tarfile.FIFOTYPE), ["'pipe'", "device"]),
    "zip ..": (lambda p: make_zip(p / "x.zip", GOOD | {"../x": b""}), ["'../x'", "leaves"]),
    "zip absolute": (
        lambda p: make_zip(p / "x.zip", GOOD | {"/elsewhere/x": b""}),
        ["'/elsewhere/x'", "leaves"],
    ),
    "zip drive": (lambda p: make_zip(p / "x.zip", GOOD | {"C:x": b""}), ["'C:x'", "leaves"]),
    "zip backslash": (lambda p: make_zip(p / "x.zip", GOOD | {"..\\x": b""}), [r"'..\\x'", "leaves"]),
    "zip symlink": (lambda p: make_zip(p / "x.zip", GOOD, links=["link"]), ["'link'", "link"]),
    "zip encrypted": (lambda p: make_zip(p / "x.zip", GOOD, encrypted=True), ["'good'", "encrypted"]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives(tmp_path, case, monkeypatch):
    make, words = HOSTILE[case]
    (tmp_path / "in").mkdir()
    archive = make(tmp_path / "in")
    for kind in (tarfile.TarFile, zipfile.ZipFile):  # nothing may be written, so neither may begin
        monkeypatch.setattr(kind, "extract", lambda *a, **k: pytest.fail("began to unpack"))
    with rejects(ValueError, archive, "refused", *words):
        unpack(archive, tmp_path / "new", progress=False)
    assert there(tmp_path) == ["in"] and there(tmp_path / "in") == [archive.name]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar"])
def test_damaged_archives(tmp_path, name):
    """Text, nothing, zeros, every kind of cut, and a changed byte."""
    if name == "x.zip":
        whole = make_zip(tmp_path / name, FILES).read_bytes()
    else:
        whole = make_tar(tmp_path / name, FILES, "w:gz" if name.endswith("gz") else "w:").read_bytes()
    end = 512 * 142 if name == "x.tar" else len(whole)  # the end of the members, before zeros
    cuts = [whole[:k] for k in (100, 512, 1024, 1200, 1536, len(whole) // 2, end - 400, end - 1)]
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    broken = [b"no archive", b"", bytes(10240), *cuts] + (
        [] if name == "x.tar" else [bytes(flipped)]
    )  # a tar has no checksum
    for content in broken:
        (tmp_path / name).write_bytes(content)
        with rejects(ValueError, tmp_path / name):
            unpack(tmp_path / name, tmp_path / "new", progress=False)
        assert there(tmp_path) == [name]


UNPACK = """
import sys, tarfile, time
from pathlib import Path
from data_download.unpack import unpack
extract = tarfile.TarFile.extract
tarfile.TarFile.extract = lambda *args, **kwargs: (extract(*args, **kwargs), time.sleep(1))
unpack(Path(sys.argv[1]), Path(sys.argv[2]), progress=False)
"""


def test_killed_while_unpacking(tmp_path):
    archive = make_tar(tmp_path / "x.tar.gz", {f"{k}.bin": b"1" for k in range(20)})
    process = subprocess.Popen([sys.executable, "-c", UNPACK, str(archive), str(tmp_path / "new")], cwd=ROOT)
    wait_for((tmp_path / ".new.part" / "1.bin").exists)
    process.kill()
    process.wait()
    assert there(tmp_path) == [".new.part", "x.tar.gz"]
    unpack(archive, tmp_path / "new", progress=False)
    assert there(tmp_path) == ["new", "x.tar.gz"] and len(there(tmp_path / "new")) == 20


ARRAYS = (
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
    np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)[:, ::2],
    np.arange(5, dtype=">f4"),
)


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("numpy", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("protocol", range(6))
def test_loads_arrays(tmp_path, monkeypatch, protocol, kind, numpy):
    """Also as NumPy 1 writes them."""
    for call in (np.empty(0).__reduce__()[0], np.empty(0).__reduce_ex__(5)[0]):
        monkeypatch.setattr(call, "__module__", call.__module__.replace("numpy._core", numpy))
    written = pickle.dumps(kind(ARRAYS), protocol)
    assert numpy.encode() in written
    (tmp_path / "x.pkl").write_bytes(written)
    for array, plain, loaded in zip(
        ARRAYS, pickle.loads(written), load_arrays(tmp_path / "x.pkl"), strict=True
    ):
        assert loaded.dtype == plain.dtype.newbyteorder("=") and loaded.strides == plain.strides
        np.testing.assert_array_equal(loaded, array)


class Call:
    """Pickled, a call."""

    def __init__(self, function, *arguments):
        self.content = function, arguments

    def __reduce__(self):
        return self.content


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_does_not_run(tmp_path, protocol):
    marker = tmp_path / "marker"
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps((ARRAYS[0], Call(os.system, f"touch '{marker}'")), protocol))
    pickle.loads(path.read_bytes())
    assert marker.exists(), "this pickle is a real one"
    marker.unlink()
    with rejects(ValueError, path, "refused, this pickle would run code", f"({os.system.__module__}.system)"):
        load_arrays(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps(Call(eval, "1 + 1"), protocol))
    with rejects(ValueError, "refused", ".eval)"):
        load_arrays(path)


def test_no_way_around(tmp_path):
    """Dotted names below what is allowed, the extension registry, and another name in an allowed module."""
    path = tmp_path / "x.pkl"
    for content, words in {
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__base__\x93.": ["refused", "numpy.ndarray.__base__"],
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.": ["refused", "numpy.load"],
        b"\x80\x04\x8c\x05a\nb\nc\x8c\x01d\x93.": ["refused", "a\\nb\\nc.d"],
        b"\x80\x02\x82\x01.": ["not a whole pickle"],
        b"Pwhatever\n.": ["not a whole pickle"],
    }.items():
        path.write_bytes(content)
        with rejects(ValueError, path, *words):
            load_arrays(path)


def test_refuses_what_is_not_arrays(tmp_path):
    path = tmp_path / "x.pkl"
    record = np.zeros(2, dtype=[("a", "f4"), ("b", object)])
    for content, words in [
        ({"a": ARRAYS[0]}, ["tuple", "dict"]),
        (ARRAYS[0], ["tuple", "ndarray"]),
        ((), ["tuple"]),
        ((ARRAYS[0], "text"), ["arrays", "str"]),
        ((ARRAYS[0], None), ["NoneType"]),
        ((np.array([1, "a"], dtype=object),), ["numbers", "object"]),
        ((record,), ["numbers"]),
        ((np.array(["a"]),), ["numbers"]),
        ((np.float32(1),), ["refused", "scalar"]),
    ]:
        path.write_bytes(pickle.dumps(content))
        with rejects(ValueError, path, *words):
            load_arrays(path)


class Forged(Call):
    """Pickled, a call and the state that is given to what it makes."""

    def __reduce__(self):
        return *self.content[:1], self.content[1][:-1], self.content[1][-1]


def test_forged_descriptions_of_arrays_reach_no_memory(tmp_path):
    """A type claims to hold no objects, over bytes that would then be read as pointers.

    NumPy's own restoring crashes on it.
    """
    reconstruct, pointers = np.empty(0).__reduce__()[0], b"AAAAAAAA" * 2
    liar = Forged(np.dtype, "O", False, True, (3, "|", None, None, None, -1, -1, 0))
    flagged = Forged(np.dtype, "f8", False, True, (3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 63))
    path = tmp_path / "x.pkl"
    size = Forged(reconstruct, np.ndarray, (0,), b"b", (1, (2,), np.dtype("u1"), False, 10**12))
    path.write_bytes(pickle._dumps((size,), 2))
    with rejects(ValueError, path, "not a whole pickle"):
        load_arrays(path)
    for dtype in (liar, flagged):
        array = Forged(reconstruct, np.ndarray, (0,), b"b", (1, (2,), dtype, False, pointers))
        for content in (array, Call(np.ndarray, array), Call(np.ndarray, (2,), dtype, pointers)):
            path.write_bytes(pickle._dumps((content,), 2))
            try:
                [found] = load_arrays(path)
            except ValueError:
                continue
            assert (
                found.dtype == np.float64 and found.tobytes() == pointers
            )  # plain numbers, whatever else was claimed


def test_an_array_that_was_a_memory_map_is_read(tmp_path):
    np.save(tmp_path / "a.npy", ARRAYS[0])
    (tmp_path / "x.pkl").write_bytes(pickle.dumps((np.load(tmp_path / "a.npy", mmap_mode="r"),)))
    np.testing.assert_array_equal(load_arrays(tmp_path / "x.pkl")[0], ARRAYS[0])


@pytest.mark.parametrize("protocol", range(6))
def test_refuses_a_cut_pickle(tmp_path, protocol):
    whole = pickle.dumps(ARRAYS, protocol)
    for end in {0, 1, *range(2, len(whole), 7), len(whole) - 1}:
        (tmp_path / "x.pkl").write_bytes(whole[:end])
        with rejects(ValueError, "x.pkl", "cut short"):
            load_arrays(tmp_path / "x.pkl")
