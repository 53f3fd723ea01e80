"""What MkDocs does besides: runs the examples, and shows their code, their output and their figures.

On a page, a line of its own

- `<!-- code: nile_level.py local_level -->` becomes that function of the example;
- `<!-- output: nile_level.py -->` becomes what the example prints in its quick mode.

Figures are where Markdown expects them: `![...](nile_level_smoothed.png)` on a page in
`docs/examples/` is the file of that name that the example writes. What was run is kept in the
directory for temporary files until the example or the library changes.
"""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_CODE = re.compile(r"^<!-- code: (?P<script>\S+) (?P<names>.+) -->$", re.MULTILINE)
_OUTPUT = re.compile(r"^<!-- output: (?P<script>\S+) -->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Run the examples that have a page, and add their figures to the files of the site."""
    for page in sorted((ROOT / "docs" / "examples").glob("*.md")):
        for figure in sorted((_run(f"{page.stem}.py") / "output").glob("*.png")):
            uri = f"examples/{figure.name}"
            files.append(File.generated(config, uri, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = _CODE.sub(
        lambda m: _fence("python", _code(m["script"], m["names"])), markdown
    )
    return _OUTPUT.sub(lambda m: _fence("text", _printed(m["script"])), markdown)


def _fence(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _code(script: str, names: str) -> str:
    """The named functions and constants of an example."""
    source = (ROOT / "examples" / script).read_text()
    found = {}
    for node in ast.parse(source).body:
        targets = [node] if hasattr(node, "name") else getattr(node, "targets", [])
        for target in targets:
            name = getattr(target, "name", getattr(target, "id", None))
            found[name] = ast.get_source_segment(source, node)
    missing = set(names.split()) - set(found)
    if missing:
        raise PluginError(f"examples/{script} has no {', '.join(sorted(missing))}")
    return "\n\n\n".join(found[name] for name in names.split())


def _printed(script: str) -> str:
    return (_run(script) / "printed.txt").read_text()


def _run(script: str) -> Path:
    """The directory in which an example was run: `printed.txt`, and `output/` with its figures."""
    path = ROOT / "examples" / script
    examples = sorted(path.parent.glob("*.py"))  # one may import another
    parts = [*examples, *sorted((ROOT / "filterdyn").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[
        :16
    ]
    done = Path(tempfile.gettempdir()) / f"filterdyn-docs-{path.stem}-{digest}"
    if done.exists():
        return done
    print(f"Running examples/{script} --quick", file=sys.stderr)
    work = Path(tempfile.mkdtemp())
    # Copies, so that the figures of a full run stay where they are.
    for example in examples:
        shutil.copy(example, work)
    run = subprocess.run(
        [sys.executable, str(work / script), "--quick"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise PluginError(
            f"examples/{script} --quick failed:\n{run.stdout}\n{run.stderr}"
        )
    (work / "printed.txt").write_text(run.stdout.replace(f"{work}/", "examples/"))
    try:
        work.rename(done)
    except OSError:  # another build was faster
        shutil.rmtree(work)
    return done
