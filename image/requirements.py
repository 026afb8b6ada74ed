"""requirements.py PYPROJECT: prints what the package and its extras but `dev` need, a requirement a line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path) -> list[str]:
    """What goes into the image beside the package itself.

    Args:
        pyproject: A pyproject.toml.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(need for extra in extras if extra != "dev" for need in extras[extra])]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]))) + "\n")
