"""The README of a saved folder."""

from __future__ import annotations

from transformers import PreTrainedModel

from stat_prune import modeling_stat_prune


def model_card(model: PreTrainedModel, name: str, *, encodes_sentences: bool) -> str:
    """How the model is loaded, and what with.

    Parameters
    ----------
    model : PreTrainedModel
    name : str
        Of the folder.
    encodes_sentences : bool
        Whether the folder is one of sentence-transformers, too.
    """
    pruned = bool(getattr(model.config, "stat_prune", None))
    loader = modeling_stat_prune.auto_class_of(type(model).__name__, type(model.config))
    flag = ", trust_remote_code=True" if pruned else ""
    why = (
        "\nThe layers differ in size, which transformers cannot read from a config: the flag lets\n"
        "it run `modeling_stat_prune.py` in this folder, which gives them their recorded sizes.\n"
    )
    sentences = (
        f'\n`SentenceTransformer("{name}"{flag})` is the sentence encoder, with its pooling.\n'
    )
    return f"""---
library_name: {"sentence-transformers" if encodes_sentences else "transformers"}
tags: [stat-prune, pruned]
---

# {name}

A {type(model).__name__} with {model.num_parameters():,} parameters, pruned with stat-prune.

```python
from transformers import {loader}

model = {loader}.from_pretrained("{name}"{flag})
```
{why if pruned else ""}{sentences if encodes_sentences else ""}
With stat-prune installed, `stat_prune.load("{name}")` gives the same model and runs no code from
this folder.
"""
