"""Published methods that are pipelines of their own, from data to plan, to compare with.

`stat_prune.settings.methods.BASELINES` names them. A method that only ranks units is a criterion in
`stat_prune.choosing.criteria` instead.
"""
