"""`python -m ldd` is `latentdd`."""

import sys

from ldd.cli import main

if __name__ == "__main__":
    sys.exit(main())
