"""Typed settings of every process: defaults < TOML file < ``FORETHOUGHT_…`` environment < command line.

One schema for the whole run lives here rather than one next to each process, because ``forethought up``
must reject a bad ``[rollout]`` before it starts anything, and may not import any service. The price is
that a service's settings are declared outside its folder.
"""

from forethought.config.loading import load_settings, write_resolved
from forethought.config.sections import Settings

__all__ = ["Settings", "load_settings", "write_resolved"]
