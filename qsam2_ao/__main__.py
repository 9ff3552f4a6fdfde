"""``python -m qsam2_ao`` is ``qsam2``."""

from .cli.main import main

if __name__ == "__main__":
    main()
