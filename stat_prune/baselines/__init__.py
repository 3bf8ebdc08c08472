"""Published methods that are pipelines of their own, from data to plan, to compare with.

Each declares what it can as a `stat_prune.Baseline` in its own file. A method that only ranks units
is a criterion in `stat_prune.choosing.criteria` instead.
"""

#: Where each is declared, by its name: below this package, as ``"module:object"``.
PLACES = {
    "stat-paper": "stat_paper:STAT_PAPER",
    "flap": "flap:FLAP",
    "fisher": "fisher:FISHER",
    "fisher-untuned": "fisher:UNTUNED",
    "kprune": "kprune:KPRUNE",
    "grail": "grail:GRAIL",
    "corp": "corp:CORP",
    "kcm": "kcm:KCM",
    "kcm-untuned": "kcm:UNTUNED",
}
