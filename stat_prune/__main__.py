"""``python -m stat_prune``."""

from stat_prune.cli import main

main()
