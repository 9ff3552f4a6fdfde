"""The ``qsam2`` command: one file for each of its commands, which only parse, call the package and print."""
