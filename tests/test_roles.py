"""Numbers in prose come from the stored files: the Sphinx roles, in a book of one page."""

import re
import shutil
import subprocess
import sys

import pytest

from tvf_core.evaluation.results import read_results
from tvf_core.paths import RESULTS, ROOT
from tvf_core.reporting import claims, tables


@pytest.fixture
def build(tmp_path):
    """``build(text)`` builds a page ``pages/one`` with this text: (HTML, warnings, output folder)."""
    source, out = tmp_path / "source", tmp_path / "html"
    shutil.copytree(RESULTS, source / "book" / "results", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(ROOT / "book" / "weights" / "anatomies", source / "book" / "weights" / "anatomies")
    shutil.copy2(ROOT / "book" / "claims.yml", source / "book")
    (source / "pages").mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_parser', 'results']\n"
    )
    (source / "index.md").write_text("# Book\n\n```{toctree}\npages/one\n```\n")

    def make(text):
        (source / "pages" / "one.md").write_text(f"# One\n\n{text}\n")
        done = subprocess.run(
            [sys.executable, "-m", "sphinx", "-q", "-n", str(source), str(out)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return (out / "pages" / "one.html").read_text(), done.stderr, out

    return make


def test_values_and_verdicts_are_links_to_where_they_come_from(build):
    html, warnings, out = build(
        "A {result}`demo_faces/tm-tvf ssim` b {result}`anatomies/tm mean dice 1` "
        "c {verdict}`tvf-smoother-than-tm anatomies`"
    )
    assert not warnings
    ours = {data: read_results(RESULTS, data) for data in ("demo_faces", "anatomies")}
    assert (
        f'href="../book/results/demo_faces/tm-tvf.json">{tables.plus_minus(ours["demo_faces"]["tm-tvf"]["summary"]["ssim"])}</a>'
        in html
    )
    assert (
        f'href="../book/results/anatomies/tm.json">{ours["anatomies"]["tm"]["summary"]["dice"]["mean"]:.1f}</a>'
        in html
    )
    [entry] = [e for e in tables.ledger()["claims"] if e["id"] == "tvf-smoother-than-tm"]
    [verdict] = [f.verdict for f in claims.claim(entry, RESULTS) if f.data == "anatomies"]
    assert f'href="../notebooks/07_claims.html">{verdict}</a>' in html
    assert (out / "book" / "results" / "demo_faces" / "tm-tvf.csv").is_file() and (
        out / "book" / "claims.yml"
    ).is_file()
    assert (out / "book" / "weights" / "anatomies" / "tm.json").is_file() and not list(
        out.rglob("*.safetensors")
    )


def test_a_wrong_name_is_a_warning_on_its_page(build):
    wrong = {
        "{result}`demo_faces/tm-tvf dice`": "no stored result",
        "{result}`demo_faces/nobody ssim`": "no stored result",
        "{result}`demo_faces/tm-tvf`": "no stored result",
        "{result}`demo_faces/tm-tvf median ssim`": "no stored result",
        "{verdict}`best-ssim anatomies`": "the ledger has no claim",
        "{verdict}`best demo_faces`": "the ledger has no claim",
    }
    _, warnings, _ = build("\n\n".join(wrong))
    for role, words in wrong.items():
        text = role.split("`")[1]
        assert [
            line
            for line in warnings.splitlines()
            if "one.md" in line and words in line and f"'{text}'" in line
        ], role


def test_every_verdict_that_a_page_asks_for_is_in_the_ledger():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")]
    asked = {found for text in texts for found in re.findall(r"\{verdict\}`([^`]+)`", text)}
    known = {f"{entry['id']} {name}" for entry in tables.ledger()["claims"] for name in entry.get("data", ())}
    assert len(asked) >= 10 and asked <= known
