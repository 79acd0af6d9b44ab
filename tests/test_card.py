"""The hash of code changes with what the code does, and with nothing else."""

import pytest

from tvf_core import card

FILES = {
    "__init__.py": '"""A package."""\n',
    "used.py": (
        '"""Its docstring."""\nfrom . import deep\nfrom .sub.inner import VALUE\n\n\n'
        'def work(x):\n    """Docs."""\n    return deep.twice(x) + VALUE  # why\n'
    ),
    "deep.py": "def twice(x):\n    return 2 * x\n",
    "sub/__init__.py": "",
    "sub/inner.py": "VALUE = 3\nTEXT = '# not a comment'\n",
    "other.py": "def draw():\n    pass\n",
}

INDENTED = FILES["used.py"] + "\n\ndef add(x):\n    if x:\n        work(x)\n    work(1)\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """It writes the package ``toy``, with some files replaced, and hashes what imports ``toy.used``."""
    monkeypatch.setattr(card, "ROOT", tmp_path)
    monkeypatch.setattr(card, "PACKAGES", ("toy",))

    def write(changed=(), source="import toy.used"):
        for name, text in (FILES | dict(changed)).items():
            path = tmp_path / "toy" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return card.code_hash(source)

    return write


def test_comments_docstrings_and_layout_do_not_count(package):
    rewritten = (
        FILES["used.py"]
        .replace("Its docstring.", "Other\nlines,\n'and' ä quote.")
        .replace("# why", "# because")
        .replace('"""Docs."""', "'''More\n\n    docs.'''")
    )
    assert package() == package({"used.py": "\n# a remark\n" + rewritten + "\n\n"})


@pytest.mark.parametrize(
    "change",
    [
        {"used.py": FILES["used.py"].replace("+ VALUE", "- VALUE")},
        {"deep.py": "def twice(x):\n    return 3 * x\n"},
        {"sub/inner.py": "VALUE = 4\nTEXT = '# not a comment'\n"},
        {"sub/inner.py": "VALUE = 3\nTEXT = '# not a remark'\n"},
        {"sub/__init__.py": "SIDE = 1\n"},
        {"used.py": FILES["used.py"].replace('    """Docs."""\n', "    x = '''Docs.'''\n")},
        {"used.py": INDENTED.replace("    work(1)", "        work(1)")},
        {"sub/inner.py": "VALUE = 3\nTEXT = '#not a comment'\n"},
        {"used.py": FILES["used.py"].replace("inner import VALUE", "inner import TEXT as VALUE")},
    ],
    ids=[
        "itself",
        "what it imports",
        "what that imports",
        "a string that looks like a comment",
        "the package around",
        "a string that is used",
        "a line that moves into a block",
        "a blank in a string",
        "another object under the same name",
    ],
)
def test_what_the_code_does_counts_wherever_it_stands(change, package):
    before = {"used.py": INDENTED} if "work(1)" in str(change) else {}
    assert package(before) != package(change)


def test_a_module_that_moves_and_keeps_its_content_does_not_count(package, tmp_path):
    before = package()
    used = FILES["used.py"].replace("from . import deep\n", "from .sub import (\n    deep,  # moved\n)\n")
    (tmp_path / "toy" / "deep.py").unlink()
    assert package({"used.py": used, "sub/deep.py": FILES["deep.py"], "deep.py": ""}) == before
    assert package({"used.py": used, "sub/deep.py": FILES["deep.py"] + "TWO = 2\n", "deep.py": ""}) != before


def test_a_name_offered_at_the_top_stands_for_its_module():
    assert "tvf_core.data.pairs" not in card.closure("import tvf_core")
    for source in (
        "import tvf_core\ntvf_core.load_data('demo_faces', 'test')",
        "from tvf_core import load_data",
    ):
        assert "tvf_core.data.pairs" in card.closure(source)


def test_modules_that_are_not_imported_do_not_count(package):
    drawn, deep = (
        {"other.py": "def draw():\n    return 1\n"},
        {"deep.py": "def twice(x):\n    return 3 * x\n"},
    )
    assert package() == package(drawn)
    other = "from toy import other"
    assert package(source=other) == package(deep, other) != package(drawn, other)


def test_the_evaluation_depends_on_networks_and_metrics_but_not_on_drawing():
    names = set(card.closure("import tvf_core.evaluation.evaluate"))
    assert {
        "tvf_core.metrics",
        "tvf_core.metrics.feature_similarity",
        "tvf_core.networks.swin",
        "tvf_core.networks.lapirn",
        "tvf_core.data.face_painter",
    } <= names
    assert (
        "" in names
        and not {
            "tvf_core.reporting.figures",
            "tvf_core.reporting.tables",
            "tvf_core.commands",
            "tvf_core.training.train",
            "tvf_core.reporting.claims",
        }
        & names
    )
