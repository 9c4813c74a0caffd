"""`python -m safeqwen` is the command `safeqwen`."""

import sys

from safeqwen_cli import main


if __name__ == "__main__":
    sys.exit(main())
