"""A pruned model in the forms that other programs read.

A module a form, imported when it is asked for: each needs packages of its own.
"""

from stat_prune.exporting.export import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
