"""From what people have, files, tables and data sets, to single examples."""

from stat_prune.examples.iterating import (
    Example,
    LabelledExample,
    iterate_examples,
    iterate_labelled_examples,
)

__all__ = ["Example", "LabelledExample", "iterate_examples", "iterate_labelled_examples"]
