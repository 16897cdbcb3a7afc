"""Runs the notebooks of `examples/`, and writes them with their outputs: `python tests/docs/notebook.py --write`.

What is kept of the outputs: text and tables as text and HTML, pictures as JPEG. No warnings, no times, no counters, so
that a notebook is small and changes only where its results do.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
"""Folder of the notebooks."""

KEPT = ("image/jpeg", "text/html", "text/plain")
"""Kinds of output that are kept."""


def executed(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder and return it with the outputs that are kept.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    node = nbformat.read(notebook, 4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(node, timeout=900, kernel_name="python3", resources=resources, coalesce_streams=True).execute()
    for cell in node.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_kept(output) for output in cell.outputs if output.get("name") != "stderr"]
    node.metadata.pop("widgets", None)
    node.metadata.language_info = {"name": "python"}
    return node


def _kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "execution_count" in output:
        output.execution_count = None
    if "data" in output:
        output.data = {kind: output.data[kind] for kind in KEPT if kind in output.data}
        if "image/jpeg" in output.data:
            output.data["text/plain"] = "a picture"
    return output


if __name__ == "__main__" and "--write" in sys.argv:
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        scratch = Path(tempfile.mkdtemp())
        nbformat.write(executed(path, scratch), path)
        shutil.rmtree(scratch)
