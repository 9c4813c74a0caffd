"""Runs a notebook in this interpreter and its own folder: `python execute_notebook.py IN OUT`.

A process of its own: sockets of one run cannot meet those of another.
"""

import sys
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient


class ThisInterpreter(KernelManager):
    """Starts a kernel of the running Python, whatever kernels the machine has registered under a name."""

    @property
    def kernel_spec(self):
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])


if __name__ == "__main__":
    path, out = map(Path, sys.argv[1:])
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, resources=resources, kernel_manager_class=ThisInterpreter).execute()
    nbformat.write(notebook, out)
