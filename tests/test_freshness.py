"""What makes a result stale: code by what it does, in every form in which it can be imported, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from fer_utils.pipeline.code_hash import hash_modules, normalize_cell, normalize_module
from fer_utils.pipeline.notebooks import CodeCell

SOURCES = {  # module of a package -> its source
    "__init__": "",
    "helper": "from . import deeper",
    "deeper": "",
    "unused": "",
    "sub/__init__": "",
    "sub/leaf": "",
    "sub/relative": "from . import leaf\nfrom ..deeper import x",
    "sub/far/__init__": "from ..leaf import x",
    "sub/far/end": "from ... import unused",
}
MODULE = '''"""What it is for."""

def area(side):
    """The area of a square."""
    return side**2  # no unit
'''


# --- Imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import fer_utils.helper as h", "__init__ helper deeper"),
        ("%matplotlib inline\ndef f():\n    from fer_utils.deeper import x", "__init__ deeper"),
        ("from fer_utils import unused, deeper", "__init__ unused deeper"),
        ("import fer_utils_2, numpy", ""),
        ("files = !ls\nfrom fer_utils import deeper", " ".join(SOURCES)),  # not Python: anything may be used
        ("%%time\nfrom fer_utils import deeper", " ".join(SOURCES)),
        ("import fer_utils.sub.leaf", "__init__ sub/__init__ sub/leaf"),
        ("from fer_utils.sub import leaf", "__init__ sub/__init__ sub/leaf"),
        ("from fer_utils.sub.leaf import x", "__init__ sub/__init__ sub/leaf"),
        ("from fer_utils.sub import x", "__init__ sub/__init__"),
        ("from fer_utils.sub.relative import x", "__init__ sub/__init__ sub/relative sub/leaf deeper"),
        ("import fer_utils.sub.far.end", "__init__ sub/__init__ sub/far/__init__ sub/far/end sub/leaf unused"),
    ],
)
def test_modules_that_a_cell_imports(tmp_path: Path, source: str, modules: str) -> None:
    package = tmp_path / "fer_utils"
    for name, content in SOURCES.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    expected = {f"fer_utils/{name}.py" for name in modules.split()}
    assert set(hash_modules([CodeCell(source, ())], package)) == expected


def test_module_of_a_sub_package_counts_by_what_it_does(tmp_path: Path) -> None:
    leaf = tmp_path / "fer_utils/sub/leaf.py"
    leaf.parent.mkdir(parents=True)
    hashes = []
    for source in (MODULE, MODULE.replace("of a square", "of one square"), MODULE.replace("side**2", "side**3")):
        leaf.write_text(source)
        hashes.append(hash_modules([CodeCell("from fer_utils.sub import leaf", ())], tmp_path / "fer_utils"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_module_of_this_package_is_found() -> None:
    package = Path(__file__).parent.parent / "fer_utils"
    assert "fer_utils/pipeline/runner.py" in hash_modules([CodeCell("import fer_utils.pipeline.runner", ())], package)


# --- What code does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The area of a square", "Area of a square, in the unit of its side"),
        ("What it is for.", "Better words."),
        ('    """The area of a square."""\n', ""),
        ("# no unit", "# of any unit"),
        ("return side**2", "return (\n        side ** 2\n    )"),
        ("\n\n", "\n\n\n# a remark\n"),
    ],
)
def test_words_and_layout_do_not_count(before: str, after: str) -> None:
    assert before in MODULE
    assert normalize_module(MODULE) == normalize_module(MODULE.replace(before, after))
    cell = MODULE.replace('"""What it is for."""', "%matplotlib inline")
    assert normalize_cell(cell) == normalize_cell(cell.replace(before, after))


def test_docstring_may_take_the_place_of_pass() -> None:
    assert normalize_module("class Error(Exception):\n    pass") == normalize_module(
        "class Error(Exception):\n    'Doc.'"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = '1'"),
        ("x = 1", "x: int = 1"),
        ("x = a.b", "x = a.c"),
        ("f'{x}'", "f'{x!r}'"),
        ("f'{x:.1f}'", "f'{x:.2f}'"),
        ("f(x)", "f(*x)"),
        ("x + 1", "x + 1;"),
        ("'shown'", "'shown below'"),
        ("%matplotlib inline", "%matplotlib widget"),
        ("!ls a", "!ls b"),
        ("%%time\nx = 1", "%%time\nx = 2"),
        ("if x:\n    f()\n    g()", "if x:\n    f()\ng()"),
        ("def f(a, *, b): return a", "def f(a, b): return a"),
        ("not python a", "not python b"),
    ],
)
def test_what_a_cell_does_counts(before: str, after: str) -> None:
    assert normalize_cell(before) != normalize_cell(after)


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ("f'a{x}' 'b'", "f'a{x}b'"),
        ("a = f(x, y=1)", "a = f(x, y=1,)"),
        ("a = (1, 2)", "a = 1, 2"),
        ("plot(x);  # the curve", "plot( x ) ;"),
        ("ax.set(title='größer');  # ä", "ax.set(title='größer');"),
        ("s = '''\n%a\n!b'''", "s = '\\n%a\\n!b'"),  # no magics, though lines begin like them
        ("x = u'a'", "x = 'a'"),
    ],
)
def test_spellings_of_the_same_cell_are_one(source: str, same: str) -> None:
    assert normalize_cell(source) == normalize_cell(same)


def test_meaning_is_the_same_text_in_every_version_of_python() -> None:
    """A clone may have another Python than the one that published: each must come to the hash written down here."""
    source = """\
from a import b as c
async def f(a: int, /, *b, c=1e3, **d) -> str:
    'Doc.'
    with open(a) as x, y: del z[1:, ...], z[-1]
    return f"{a!r:>{c}}x{d['k']}" f'{b}' "y" if d else lambda: (yield)
@g(1)
class A(B, metaclass=C):
    x: float = 1_000j
    def h(self): return {**self, 'a': [i for i in b'bytes' if not i], **{1, 2}}
try: pass
except F as e: raise e from None
"""
    assert hashlib.sha256(normalize_module(source).encode()).hexdigest()[:16] == "f6f392d32a9eeaa4"
