"""What README and docs say is run here: every Python block, and the output shown below it.

The blocks of one page run in order in one namespace. A `text` block right below a Python block is
what that block prints: words and whole numbers to the letter, decimals to one unit in their last
digit (other processors round differently). Where numbers come from a sampler, a comment between the
two blocks, `<!-- within 0.1 -->` or `<!-- within 20 % -->`, widens that: a chain of the same seed
takes another course as soon as one number is rounded differently. What is stated there is at least
four Monte Carlo standard errors of every number below: one false alarm in 15,000 for each.
"""

import code
import contextlib
import io
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import pytest

import filterdyn as fd

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
#: Pages that sample, train or compile for long.
LONG = {
    "path_inference",
    "checking",
    "numpyro",
    "parallel",
    "particles",
    "particle_inference",
    "learned_gains",
    "sparse_terms",
    "hierarchical",
    "filters",
    "numerics",
    "failures",
    "learning",
    "ensembles",
}
#: Of those, the ones that take a minute or more, run by `make test-long`.
LONGEST = {"path_inference", "checking", "hierarchical", "sparse_terms", "parallel"}
MARKS = {True: [pytest.mark.slow, pytest.mark.long], False: [pytest.mark.slow]}
BY_COST = [pytest.param(p, marks=MARKS[p.stem in LONGEST] if p.stem in LONG else []) for p in PAGES]

_BLOCK = re.compile(
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```\n"
    r"(?:\s*(?:<!-- within (?P<within>[\d.]+)(?P<percent> %)? -->\s*)?^(?P=indent)```text\n"
    r"(?P<output>.*?)^(?P=indent)```\n)?",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Block(NamedTuple):
    line: int
    code: str
    output: str | None
    within: float
    relative: bool


def blocks_of(text: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(text):
        output = match["output"]
        found.append(
            Block(
                text[: match.start("code")].count("\n"),
                textwrap.dedent(match["code"]),
                None if output is None else textwrap.dedent(output),
                float(match["within"] or 0) / (100 if match["percent"] else 1),
                bool(match["percent"]),
            )
        )
    return found


def differences(printed: str, shown: str, within: float = 0.0, relative: bool = False) -> list[str]:
    """Where what was printed is not what is shown."""
    words = lambda text: [" ".join(_NUMBER.sub("#", line).split()) for line in _lines(text)]
    if words(printed) != words(shown):
        return [f"printed:\n{printed}\nshown:\n{shown}"]
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(shown), strict=True)
    return [f"printed {a}, shown {b}" for a, b in pairs if not _agree(a, b, within, relative)]


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _agree(a: str, b: str, within: float, relative: bool) -> bool:
    decimals = len(b.split("e")[0].partition(".")[2])
    unit = 10.0 ** (int(b.partition("e")[2] or 0) - decimals) if decimals else 0.0
    return abs(float(a) - float(b)) <= max(
        1.001 * unit, within * abs(float(b)) if relative else within
    )


@pytest.fixture
def as_before():
    """Pages set the precision, as their readers would; the tests after them shall not notice."""
    matplotlib.use("Agg")
    x64 = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", x64)


class Prompt(code.InteractiveConsole):
    """A Python prompt at which an error is an error."""

    def showtraceback(self):
        raise

    def showsyntaxerror(self, *args, **kwargs):
        raise

    def type_in(self, block: Block) -> None:
        for line in [*block.code.splitlines(), ""]:
            unfinished = self.push(line)
        assert not unfinished, f"the block at line {block.line} does not end: {line!r}"


def test_readme_can_be_typed_in_line_by_line(as_before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = Prompt()
    blocks = blocks_of(README.read_text())
    assert len(blocks) >= 2
    for block in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            prompt.type_in(block)
        assert block.output is not None
        assert not differences(out.getvalue(), *block[2:]), f"line {block.line}"


@pytest.mark.parametrize("page", BY_COST, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs_and_prints_what_it_shows(page, as_before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks_of(page.read_text()):
        where = f"{page.relative_to(ROOT)}, line {block.line}"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            # The blank lines make the line numbers of a traceback those of the page.
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
        if block.output is not None:
            assert not differences(out.getvalue(), *block[2:]), where


def test_every_python_fence_is_run():
    for page in (README, *PAGES):
        text = page.read_text()
        assert len(blocks_of(text)) == len(re.findall(r"^ *```\s*py", text, re.MULTILINE)), page


def test_output_that_differs_is_noticed():
    assert differences("mean 1.50", "mean 1.51") == []
    assert differences("mean 1.50", "mean 1.53") == ["printed 1.50, shown 1.53"]
    assert differences("mean 1.50", "mean 1.53", within=0.05) == []
    assert differences("mean 1.50", "mean 1.53", within=0.05, relative=True) == []
    assert differences("mean 15.0", "mean 15.3", within=0.05)
    assert differences("rows 7", "rows 8") == ["printed 7, shown 8"]
    assert differences("mean 1.50", "median 1.50")
    assert differences("mean 1.50\nsd 2.0", "mean 1.50")


def test_readme_quickstart_is_short():
    first = blocks_of(README.read_text())[0]
    assert 15 <= sum(bool(line.strip()) for line in first.code.splitlines()) <= 32


REFERENCE = "\n".join(p.read_text() for p in sorted((ROOT / "docs/reference").glob("*.md")))


def public_names() -> list[str]:
    """What a user can write after `fd.`: its names, and those of its public modules."""
    names = list(fd.__all__)
    for name in fd.__all__:
        names.extend(f"{name}.{member}" for member in getattr(getattr(fd, name), "__all__", ()))
    return names


def test_every_public_name_is_in_the_reference():
    described = re.findall(r"^::: filterdyn\.(\S+)$", REFERENCE, re.MULTILINE)
    # (Where a module bears the name of its function, MkDocs has to be told the function's full path.)
    described = {re.sub(r"\b(\w+)\.\1$", r"\1", name) for name in described}
    assert described == set(public_names())


def test_every_status_is_explained():
    for status in fd.Status:
        assert f"`{status.name}`" in REFERENCE


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"(\S+\.md)$", navigation, re.MULTILINE)
    pages = [str(p.relative_to(ROOT / "docs")) for p in PAGES]
    assert sorted(listed) == sorted(pages)
