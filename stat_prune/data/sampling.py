"""Which examples of a data set are scored, where not all are."""

from __future__ import annotations


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """Indices of `limit` of `count` examples, as far apart as can be; of all without a limit.

    Development sets come in order of their articles or sources, so that the first examples are
    of one: the first 810 questions of SQuAD's are about a single article.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]
