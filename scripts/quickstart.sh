#!/usr/bin/env bash
# From nothing to the figure: installs, trains four small networks on two cores in under a minute, compares them.
# Arguments go to `resnet-train run`: scripts/quickstart.sh seeds=[0,1,2]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh digits
# These networks are too small for two threads to share: on a busy machine they spend their time waiting for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
.venv/bin/python -m resnet_train run configs/quickstart.yaml "$@" >/dev/null
.venv/bin/python -m resnet_train compare runs/quickstart
