#!/usr/bin/env bash
# What waits for a GPU, in parts of a few minutes. Fetches nothing. Prints a table, and packs table, logs and runs into
# one file, OUT/gpu-PARTS.tar.
#
#   [PARTS="tests step …"] [MINUTES=9] scripts/gpu_check.sh [DATA] [WHEELS]
#
# The sequence, for a machine that is at hand for minutes at a time. Each command is useful alone and ends by itself:
#
#   PARTS=tests  scripts/gpu_check.sh "" WHEELS       # tests/test_gpu.py
#   PARTS=step   scripts/gpu_check.sh "" WHEELS       # ResNet-50's step, then cifar-resnet-20's, beside others'
#   PARTS=train  scripts/gpu_check.sh DATA WHEELS     # cifar-resnet-20, then the others of configs/cifar10-depth.yaml
#   PARTS=cifar  scripts/gpu_check.sh DATA WHEELS     # CIFAR-10 training against an ordinary script
#   PARTS=loader scripts/gpu_check.sh DATA WHEELS     # loaders, with a worker for each processor
#   PARTS=jobs   scripts/gpu_check.sh DATA WHEELS     # four runs at once against one, without and with MPS
#   PARTS=choices scripts/gpu_check.sh "" WHEELS      # what is not the default yet: benchmark_step.py's "+" lines
#   PARTS=ranks  scripts/gpu_check.sh DATA WHEELS     # several GPUs: CUDA graphs with NCCL, and --numa-binding
#
# DATA (or RESNET_TRAIN_DATA) holds cifar-10-batches-py for train, cifar and jobs, and imagenet-natural-c100/{train,val}
# for loader and ranks. RUNS, a folder `runs` of an earlier tar file, lets train go on from there. PYTHON is the interpreter. OUT
# is the folder of the tar file, by default docs/measurements.
#
# WHEELS holds what the machine lacks beside torch, torchvision, numpy, scipy, matplotlib, pillow, pyyaml, tensorboard,
# tqdm and pytest. For Python 3.12:
#   for_it="--only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64"
#   pip download $for_it -d WHEELS pydantic                    # and the versions that it needs
#   pip download $for_it --no-deps -d WHEELS filelock shtab simplejpeg
#
# The exit code is 1 if a part failed, 2 if nothing can run here; a part that the time ended is no failure.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:-${RESNET_TRAIN_DATA:-}}
wheels=${2:-}
python=${PYTHON:-python3}
minutes=${MINUTES:-9}
parts=${PARTS:-tests step train cifar loader jobs choices ranks}
out=${OUT:-docs/measurements}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
logs=$scratch/gpu
mkdir -p "$logs" "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
[ -z "$data" ] || data=$(realpath "$data")
export RESNET_TRAIN_DATA=$data

stop() { echo "gpu_check: $1; nothing was run" >&2 && exit 2; }
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$scratch/wheels" \
        "$wheels"/*.whl || stop "the wheels in $wheels cannot be installed"
    PYTHONPATH=$scratch/wheels:$PYTHONPATH
fi
lacking=$("$python" -c 'import resnet_train.commands.run, resnet_train.training.loop, simplejpeg, pytest' 2>&1) ||
    stop "$python lacks something: ${lacking##*$'\n'}; bring it in WHEELS"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || stop "no CUDA device is visible to $python"

needs_data() { # PART FOLDER
    [[ " $parts " != *" $1 "* ]] || [ -d "$data/$2" ] || stop "PARTS has $1, and there is no $2 in '${data:-DATA}'"
}
for name in train cifar jobs; do needs_data "$name" cifar-10-batches-py; done
for name in loader ranks; do needs_data "$name" imagenet-natural-c100/train; done

failed=0
table=()
left() { echo $((minutes * 60 - SECONDS - 10)); }

# part NAME SECONDS COMMAND...: run it for at most these seconds, or what is left; its log, and a line of the table.
part() {
    local name=$1 most=$(($2 < $(left) ? $2 : $(left))) begin=$SECONDS code
    shift 2
    if [ "$most" -lt 20 ]; then
        table+=("$name: no time left")
        return
    fi
    echo "== $name, at most $most s"
    timeout --signal=TERM --kill-after=20 "$most" "$@" >"$logs/$name.txt" 2>"$logs/$name.err" </dev/null
    code=$?
    case $code in
    0) code="done" ;;
    75 | 124 | 137) code="ended by the time" ;;
    *)
        failed=1
        tail -n 5 "$logs/$name.err" "$logs/$name.txt"
        code="failed ($code)"
        ;;
    esac
    table+=("$name: $code after $((SECONDS - begin)) s")
}

# found NAME PATTERN: lines of a log, for the table.
found() {
    local line
    while IFS= read -r line; do table+=("    $line"); done < <(grep -hE "$2" "$logs/$1.txt" 2>/dev/null)
}

for name in $parts; do
    case $name in
    tests)
        # -W default: what a machine that is new to us warns of fails nothing.
        part tests "$(left)" "$python" -m pytest -v -W default -m gpu tests/test_gpu.py -p no:cacheprovider
        found tests '^(FAILED|ERROR)|[0-9]+ (passed|failed|skipped|error)'
        ;;
    step)
        part step-resnet-50 $(($(left) * 2 / 3)) "$python" scripts/benchmark_step.py --rounds 5
        part step-cifar "$(left)" "$python" scripts/benchmark_step.py --network cifar-resnet-20 --batch 128 --rounds 5
        found step-resnet-50 .
        found step-cifar .
        ;;
    loader)
        # 600 images for each worker, or the first batches of all workers are most of a round.
        part loader "$(left)" "$python" scripts/benchmark_loader.py "$data/imagenet-natural-c100" \
            --workers "$(nproc)" --images $((600 * $(nproc))) --rounds 3
        found loader '^(random-resized|scale|there is no jpegtran) '
        ;;
    cifar)
        part cifar "$(left)" "$python" scripts/benchmark_cifar.py --data "$data" --rounds 3
        found cifar '^(script|ours)'
        ;;
    train)
        # The paper's runs, whole. What the time ends is saved, and RUNS continues it.
        [ -z "${RUNS:-}" ] || cp -r "$RUNS" "$logs/runs"
        options=("data.path=$data" "output=$logs/runs" train.device=cuda train.precision=bf16 train.compile=true
            train.cuda_graph=true "eval.every={epochs: 10}" "checkpoint.every={epochs: 10}" "log.every={steps: 500}")
        part train "$(left)" "$python" -m resnet_train run configs/cifar10-depth.yaml --only cifar-resnet-20 \
            "${options[@]}"
        part train-all "$(left)" "$python" -m resnet_train run configs/cifar10-depth.yaml "${options[@]}"
        "$python" -m resnet_train compare "$logs/runs" --out "$logs/compare" >"$logs/compare.txt" 2>&1
        found compare .
        ;;
    jobs)
        # 10,000 steps of one run, then of four at once. Without MPS processes take turns on the GPU.
        options=("data.path=$data" train.device=cuda train.precision=bf16 train.cuda_graph=true train.steps=10000
            "eval.every={steps: 10000}" "checkpoint.every={steps: 10000}" "log.every={steps: 250}"
            eval.clean_train_images=0)
        for setting in "1 1" "4 4" "4 4 mps"; do
            read -r seeds jobs mps <<<"$setting"
            log=jobs-$jobs${mps:+-mps}
            if [ -n "$mps" ]; then
                nvidia-cuda-mps-control -d >/dev/null 2>&1 || { table+=("$log: MPS does not start here") && continue; }
            fi
            part "$log" 150 "$python" -m resnet_train run configs/cifar10-depth.yaml --only cifar-resnet-20 \
                "${options[@]}" "output=$scratch/$log" "seeds=[$(seq -s , 1 "$seeds")]" --jobs "$jobs"
            "$python" scripts/speed_together.py "$scratch/$log" >>"$logs/$log.txt" 2>&1
            found "$log" 'images/s of'
            [ -z "$mps" ] || echo quit | nvidia-cuda-mps-control >/dev/null 2>&1
        done
        ;;
    choices)
        # 32 images: the papers' batch over 8 GPUs, where launching takes longer than computing.
        part choices-32 $(($(left) / 3)) "$python" scripts/benchmark_step.py --batch 32 --rounds 5 \
            --only "+ CUDA graph" --only "+ DDP" --only "+ DDP, CUDA graph"
        part choices "$(left)" "$python" scripts/benchmark_step.py --rounds 5 --only "+ normalise inside" \
            --only "+ cuDNN benchmark, all" --only "+ coordinate descent" --only "+ max autotune"
        found choices-32 .
        found choices .
        ;;
    ranks)
        gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
        if [ "${gpus:-1}" -lt 2 ]; then
            table+=("ranks: there is one GPU")
            continue
        fi
        # "step alone" is of all GPUs together.
        for setting in eager graph graph-numa; do
            numa=() graph=true
            [ "$setting" != eager ] || graph=false
            if [ "$setting" = graph-numa ]; then
                command -v numactl >/dev/null || { table+=("ranks-$setting: there is no numactl") && continue; }
                numa=(--numa-binding=node)
            fi
            part "ranks-$setting" $(($(left) / 2)) "$python" -m torch.distributed.run --standalone \
                --nproc-per-node="$gpus" "${numa[@]}" -m resnet_train bench configs/imagenet-resnet.yaml \
                --only resnet-50 "data.path=$data/imagenet-natural-c100" "train.batch_size=$((32 * gpus))" \
                train.device=cuda train.precision=bf16 train.compile=true "train.cuda_graph=$graph"
            found "ranks-$setting" '^(step alone|both together)'
        done
        ;;
    *) stop "PARTS: $name is none of tests, step, train, cifar, loader, jobs, choices and ranks" ;;
    esac
done

{
    "$python" -c 'import platform, torch; print(torch.cuda.get_device_name(), f"x {torch.cuda.device_count()}, torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "Python", platform.python_version())'
    echo "$(date -u +%FT%TZ), $SECONDS of $((minutes * 60)) s, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    printf '%s\n' "${table[@]}"
} | tee "$logs/summary.txt"
tar -cf "$out/gpu-${parts// /-}.tar" -C "$scratch" --exclude=previous.pt --exclude=best.pt gpu
exit $failed
