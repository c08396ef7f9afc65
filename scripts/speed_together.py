"""The speed of runs that trained at the same time, of all together: python scripts/speed_together.py FOLDER."""

import statistics
import sys
from itertools import pairwise

import resnet_train

runs = [
    [record for record in run["records"] if record["kind"] == "train"] for run in resnet_train.read_runs(sys.argv[1])
]
if not all(len(records) > 1 for records in runs):
    sys.exit("no run trained long enough")
begin, end = max(run[0]["time"] for run in runs), min(run[-1]["time"] for run in runs)
# A record's speed is that since the record before it.
speeds = [
    [new["images_per_second"] for old, new in pairwise(run) if begin <= old["time"] and new["time"] <= end]
    for run in runs
]
if not all(speeds):
    sys.exit("there was no time in which all trained")
total = sum(map(statistics.median, speeds))
print(f"{total:,.0f} images/s of {len(runs)} together, in the {end - begin:.0f} s in which all trained")
