"""Lets Hydra find the training configs of qsam2_ao by name, from SAM2's own ``training/train.py`` too."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class QSAM2SearchPath(SearchPathPlugin):
    """Puts the package behind whatever a program searches already."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add ``pkg://qsam2_ao``, whose configs are named ``configs/qsam2/...``."""
        search_path.append(provider="qsam2_ao", path="pkg://qsam2_ao")
