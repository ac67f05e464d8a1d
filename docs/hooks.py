"""Pages that `mkdocs build` makes of other files: each notebook as a page."""

from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).parent / "notebooks"


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - MkDocs' configuration
    """Add a page for each notebook beside `notebooks/index.md`."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=as_markdown(path)))
    return files


def as_markdown(path: Path) -> str:
    """Return the cells of a notebook, which is stored without outputs, with a line that names its file."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        text = cell.source.strip()
        parts.append(f"```python\n{text}\n```" if cell.cell_type == "code" else text)
    parts.insert(1, f"The notebook is `docs/notebooks/{path.name}`; open it in Jupyter, or read it here.")
    return "\n\n".join(parts) + "\n"
