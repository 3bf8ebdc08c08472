"""The least that a record of a benchmark has."""

RECORD = {
    "task": "sst2",
    "method": "stat",
    "seed": 0,
    "metric": "accuracy",
    "dense": 0.9,
    "scores": {"0.5": 0.8},
    "settings": {},
    "versions": {},
}
