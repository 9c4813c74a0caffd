import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))

from scanning import command, engine  # noqa: E402, F401
