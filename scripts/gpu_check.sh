#!/usr/bin/env bash
# All that waits for a GPU, in one command and in given minutes: the `gpu` tests, the benchmarks of step and loaders,
# then CIFAR-10 training, four seeds at once and one, for as long as there is time. Fetches nothing; a table of what was
# found comes last.
#
#   scripts/gpu_check.sh MINUTES [DATA] [WHEELS]
#
# DATA (or RESNET_TRAIN_DATA) holds cifar-10-batches-py, and perhaps imagenet-natural-c100/{train,val}. WHEELS is a folder
# of wheels to use where torch is installed and the rest is not: they go into a folder of their own. PYTHON chooses the
# interpreter, PARTS="tests step loader cifar at-once train" what is done: they share the time, and what one leaves goes
# to the next. Logs and the table go to OUT, if that is set, else to docs/measurements/gpu-DATE. The exit code is 1 if a
# part failed or was cut short, 2 if there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
minutes=${1:?is missing: how many minutes it may take}
data=${2:-${RESNET_TRAIN_DATA:-}}
wheels=${3:-}
python=${PYTHON:-python3}
parts=${PARTS:-tests step loader cifar at-once train}
out=${OUT:-docs/measurements/gpu-$(date +%F)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$PWD
[ -z "$data" ] || data=$(realpath "$data")
export RESNET_TRAIN_DATA=$data

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu_check: no CUDA device is visible to $python; nothing was run" >&2
    exit 2
fi
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
        --target "$scratch/wheels" "$wheels"/*.whl || exit 2
    export PYTHONPATH=$PYTHONPATH:$scratch/wheels
fi
mkdir -p "$out"
rounds=$((minutes < 20 ? 3 : 9))
failed=0
table=()

# Each part's share of the time.
declare -A share=([tests]=30 [step]=40 [loader]=10 [cifar]=10 [at-once]=15 [train]=20)
# without WHAT PART...: these parts are left out.
without() {
    local what=$1 name
    shift
    for name; do
        [[ " $parts " != *" $name "* ]] || table+=("$name: left out, there is no $what in '${data:-DATA}'")
        share[$name]=0
    done
}
[ -d "$data/imagenet-natural-c100/train" ] || without imagenet-natural-c100 loader
[ -d "$data/cifar-10-batches-py" ] || without cifar-10-batches-py cifar at-once train
shares=0
for name in $parts; do
    [ -n "${share[$name]:-}" ] || { echo "gpu_check: PARTS: $name is none of ${!share[*]}" >&2 && exit 2; }
    shares=$((shares + share[$name]))
done

wanted() { [[ " $parts " == *" $1 "* && ${share[$1]} -gt 0 ]]; }

# part NAME SHARE COMMAND...: within its share of the time that is left; its log, and a line of the table.
part() {
    local name=$1 most=$(((minutes * 60 - SECONDS - 15) * $2 / shares)) begin=$SECONDS code
    shares=$((shares - $2))
    shift 2
    if [ "$most" -lt 20 ]; then
        table+=("$name: no time left")
        failed=1
        return
    fi
    echo "== $name, at most $most s"
    timeout --signal=TERM --kill-after=15 "$most" "$@" >"$out/$name.txt" 2>"$out/$name.err" </dev/null
    code=$?
    if [ "$code" -ne 0 ]; then
        failed=1
        tail -n 3 "$out/$name.err" "$out/$name.txt"
    fi
    case $code in 0) code="done" ;; 75 | 124 | 137) code="cut short" ;; *) code="failed ($code)" ;; esac
    table+=("$name: $code in $((SECONDS - begin)) s")
}

# found NAME PATTERN: lines of a log, for the table.
found() {
    local line
    while IFS= read -r line; do table+=("    $line"); done < <(grep -hE "$2" "$out/$1.txt" 2>/dev/null)
}

if wanted tests; then
    # -W default: what a machine unknown to us warns of is told, and fails nothing.
    part tests "${share[tests]}" "$python" -m pytest -W default -m gpu tests/test_gpu.py -p no:cacheprovider
    found tests '^(FAILED|ERROR)|^[0-9]+ (passed|failed|skipped|deselected|error)'
fi
if wanted step; then
    for setting in "cifar-resnet-20 128" "resnet-50-v1.5 256"; do
        read -r network batch <<<"$setting"
        part "step-$network" $((${share[step]} / 2)) \
            "$python" scripts/benchmark_step.py --network "$network" --batch "$batch" --rounds $rounds
        found "step-$network" '^(ours again|- |\+ |torchvision|timm|matrix|losses)'
    done
fi
if wanted loader; then
    part loader "${share[loader]}" \
        "$python" scripts/benchmark_loader.py "$data/imagenet-natural-c100" --workers "$(nproc)" --rounds 3
    found loader '^(random-resized|scale|there is no jpegtran) '
fi
if wanted cifar; then
    part cifar "${share[cifar]}" "$python" scripts/benchmark_cifar.py --data "$data" --rounds $rounds
    found cifar '^(script|ours)'
fi
if wanted at-once; then
    # Four seeds at once against one: images per second of all, in the time in which all train.
    for count in 1 4; do
        part "at-once-$count" $((${share[at-once]} * (count > 1 ? 2 : 1) / 3)) \
            "$python" -m resnet_train run configs/cifar10-depth.yaml --only cifar-resnet-20 \
            "data.path=$data" "output=$scratch/by-$count" train.device=cuda train.precision=bf16 \
            train.cuda_graph=true train.steps=10000 "eval.every={steps: 10000}" "checkpoint.every={steps: 10000}" \
            "log.every={steps: 250}" eval.clean_train_images=0 "seeds=[$(seq -s , 1 "$count")]" --jobs "$count"
        "$python" - "$scratch/by-$count" >>"$out/at-once-$count.txt" <<'PYTHON'
import json
import statistics
import sys
from pathlib import Path

runs = []
for path in Path(sys.argv[1]).rglob("metrics.jsonl"):
    runs.append([record for record in map(json.loads, path.open()) if record["kind"] == "train"])
speeds = []
if runs and all(runs):
    begin, end = max(run[0]["time"] for run in runs), min(run[-1]["time"] for run in runs)
    for run in runs:  # a record tells of the time since the one before it
        both = zip(run, run[1:])
        speeds.append([new["images_per_second"] for old, new in both if begin <= old["time"] and new["time"] <= end])
if speeds and all(speeds):
    total = sum(map(statistics.median, speeds))
    print(f"RESULT {total:,.0f} images/s of {len(speeds)} together, for {end - begin:.0f} s")
else:
    print("RESULT there was no time in which all trained")
PYTHON
        found "at-once-$count" '^RESULT'
    done
fi
if wanted train; then
    # The paper's run, whole; evaluated every tenth epoch. Cut short it saves, and what it reached is in its record.
    part train "${share[train]}" "$python" -m resnet_train run configs/cifar10-depth.yaml --only cifar-resnet-20 \
        "data.path=$data" "output=$scratch/runs" train.device=cuda train.precision=bf16 train.compile=true \
        train.cuda_graph=true "eval.every={epochs: 10}" "checkpoint.every={epochs: 10}" "log.every={steps: 500}"
    cp "$scratch"/runs/cifar10-depth/cifar-resnet-20/seed-0/{metrics.jsonl,env.json,config.yaml} "$out" 2>/dev/null
    "$python" - "$out/metrics.jsonl" >>"$out/train.txt" <<'PYTHON'
import json
import sys

try:
    records = [json.loads(line) for line in open(sys.argv[1])]
except OSError:
    sys.exit("no run to tell of")
last = {record["kind"]: record for record in records}
speeds = sorted(record["images_per_second"] for record in records if record["kind"] == "train")
reached = records[-1]
print(f"RESULT {reached['step']} steps in {reached['seconds']:.1f} s, all of it; {speeds[len(speeds) // 2]:,.0f} images/s")
if "eval" in last:
    print(f"RESULT validation error {last['eval']['val_error_top1']:.2f} % at step {last['eval']['step']}")
PYTHON
    found train '^RESULT'
fi

{
    "$python" -c 'import platform, torch; print(torch.cuda.get_device_name(), f"x {torch.cuda.device_count()}, torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "Python", platform.python_version())'
    echo "$(date -u +%FT%TZ), $SECONDS of $((minutes * 60)) s, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    printf '%s\n' "${table[@]}"
} | tee "$out/summary.txt"
exit $failed
