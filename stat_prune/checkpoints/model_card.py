"""The README of a saved folder."""

from __future__ import annotations

from transformers import PreTrainedModel

from stat_prune.model import modeling_stat_prune

#: What hubs sort models of sentence-transformers by.
_TASKS = {
    "SentenceTransformer": "sentence-similarity",
    "SparseEncoder": "feature-extraction",
    "CrossEncoder": "text-ranking",
}


def model_card(
    model: PreTrainedModel, name: str, encoder_kind: str | None = None, account: str = ""
) -> str:
    """What was done to the model, how it is loaded, and what with.

    Parameters
    ----------
    model : PreTrainedModel
    name : str
        Of the folder.
    encoder_kind : str or None
        The class of sentence-transformers that opens the folder.
    account : str
        What was done, in Markdown.
    """
    pruned = bool(getattr(model.config, "stat_prune", None))
    loader = modeling_stat_prune.auto_class_of(type(model).__name__, type(model.config))
    flag = ", trust_remote_code=True" if pruned else ""
    why = (
        "\nThe layers differ in size, which transformers cannot read from a config: the flag lets\n"
        "it run `modeling_stat_prune.py` in this folder, which gives them their recorded sizes.\n"
    )
    whole = ""
    if encoder_kind is not None:
        whole = f'\n`{encoder_kind}("{name}"{flag})` is the whole of it.\n'
    task = _TASKS.get(encoder_kind or "")
    of_task = f"pipeline_tag: {task}\n" if task else ""
    done = f"\n## What was done\n\n{account}\n" if account else ""
    return f"""---
library_name: {"transformers" if encoder_kind is None else "sentence-transformers"}
{of_task}tags: [stat-prune, pruned]
---

# {name}

A {type(model).__name__} with {model.num_parameters():,} parameters, pruned with stat-prune.

```python
from transformers import {loader}

model = {loader}.from_pretrained("{name}"{flag})
```
{why if pruned else ""}{whole}
With stat-prune installed, `stat_prune.load("{name}")` gives the same model and runs no code from
this folder.
{done}"""
