"""The notebooks run from top to bottom with small numbers in their first cell; they are stored without outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra `docs`")
pytest.importorskip("ipykernel", reason="needs the extra `test`")
from jupyter_client.manager import start_new_kernel  # noqa: E402 - after the test for them
from nbclient import NotebookClient  # noqa: E402
from small_world import protocol_file  # noqa: E402

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
    "STEPS": 1,
    "REVERSE_STEPS": 2,
    "REPEATS": 1,
    "WORKERS": 1,
    "AUTOENCODER_STEPS": 1,
    "PRIOR_STEPS": 2,
    "GAUSSIANS": 2,
    "WIDTH": 8,
    "SAMPLES": 2,
}
"""What the numbers of a first cell become."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all of them: most of their time is that of the imports."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
        patch.setenv("OMP_NUM_THREADS", "1")
        manager, client = start_new_kernel(cwd=str(folder))
    client.stop_channels()
    yield manager, folder
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, kernel):
    manager, folder = kernel
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "stored without outputs"
    first = code[0]
    assert first.metadata.tags == ["parameters"]
    names = {name: value for name, value in SMALL.items() if f"\n{name} =" in f"\n{first.source}"}
    names["PROTOCOL"] = protocol_file(folder, epochs=2)
    settings = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    notebook.cells.insert(notebook.cells.index(first) + 1, nbformat.v4.new_code_cell(settings))
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    NotebookClient(notebook, timeout=120, km=manager).execute(reset_kc=True)
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown), "a notebook shows pictures"
    assert any("narrow" in output.get("text", "") for output in shown), (
        "and a table of the protocol's networks"
    )


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == [
        "compare_two_sets",
        "d3_and_bytes",
        "ten_digits",
        "your_folder",
    ]
