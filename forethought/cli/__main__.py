"""``python -m forethought.cli`` is ``forethought``, for environments where the script is not on PATH."""

from forethought.cli import main

main()
