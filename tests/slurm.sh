#!/usr/bin/env bash
# Run the files of slurm/ on a Slurm of three nodes, all of them this machine, started here and stopped at the end.
#
#   tests/slurm.sh          needs slurmctld, slurmd and munged (Debian: slurm-wlm, munge), and not root
#
# PYTHON chooses the interpreter. Jobs are awaited by what they write and by their state, never for some seconds.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-$top/.venv/bin/python}")
export PATH="${python%/*}:$PATH:/usr/sbin:/sbin" PYTHONPATH=$top${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
work=$(mktemp -d /tmp/slurm-test.XXXXXX) # a socket's path must be short
chmod 755 "$work"                        # munged requires it
cd "$work"
daemons=()

. "$top/tests/await.sh"

fail() {
    say "FAILED: $*"
    squeue --all || true
    tail -n 40 ./*.out slurmctld.log || true
    exit 1
}

no_jobs() { [ -z "$(squeue --all --noheader)" ]; }

finish() {
    if [ ${#daemons[@]} -gt 1 ]; then
        scancel --user "$(id -un)" || true
        await "the end of all jobs" no_jobs
    fi
    [ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# --- the cluster ------------------------------------------------------------------------------------------------------

# Four ports that are free now.
read -r controller_port port_1 port_2 port_3 < <("$python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in sockets))')

# cred_expire: a job that is put back begins after 6 seconds, not 121. Names of nodes that resolve anywhere are numbers.
cat >slurm.conf <<END
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MailProg=/bin/true
NodeName=127.0.0.1 Port=$port_1 CPUs=16 State=UNKNOWN
NodeName=127.0.0.2 Port=$port_2 CPUs=16 State=UNKNOWN
NodeName=127.0.0.3 Port=$port_3 CPUs=16 State=UNKNOWN Weight=9
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$work/slurm.conf
mkdir state spool
(umask 077 && head -c 1024 /dev/urandom >munge.key)

start() {
    "$@" >"daemon-${#daemons[@]}.log" 2>&1 &
    daemons+=($!)
}

start munged --foreground --key-file="$work/munge.key" --socket="$work/munge.socket" --log-file="$work/munge.log" \
    --pid-file="$work/munge.pid" --seed-file="$work/munge.seed"
await "munged" test -S munge.socket
start slurmctld -D
start slurmd -D -N 127.0.0.1
start slurmd -D -N 127.0.0.2
start slurmd -D -N 127.0.0.3 # used last, for its weight
daemon_of_node_3=$!
nodes_are_idle() { [ "$(sinfo --noheader --Node --states=idle | wc -l)" = 3 ]; }
await "three idle nodes" nodes_are_idle
say "three nodes are up"

# --- the jobs ---------------------------------------------------------------------------------------------------------

cat >tiny.yaml <<END
name: tiny
networks: [{base: cifar-resnet-8, name: one, widths: [4, 8, 8]}, {base: cifar-resnet-8, name: two, widths: [4, 8, 8]}]
data: {kind: synthetic, size: 8, classes: 4, train_images: 40, val_images: 14}
augment: {crop: {kind: pad, padding: 1}, flip: true}
train: {steps: 300, batch_size: 16, device: cpu}
eval: {every: {steps: 100}, batch_size: 5, clean_train_images: 10}
checkpoint: {every: {steps: 100000}}
log: {every: {steps: 1}}
END

# A validation image that cannot be read. Only the second of two ranks reads it.
cat >broken.yaml <<END
base: tiny.yaml
data: {kind: imagefolder, path: images, workers: 1}
augment: {crop: {kind: random-resized, size: 8}}
eval: {every: {steps: 2}, view: {resize: 8, crop: 8}}
END
"$python" - <<END
from pathlib import Path
from PIL import Image

for part in ("train", "val"):
    for name in "ab":
        folder = Path("images", part, name)
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (12, 12)).save(folder / f"{i}.png")
Path("images/val/a/1.png").write_bytes(b"broken")
END

# Submit a file of slurm/; the job's number. The files' limits for GPUs and processors are not of this machine. Two
# minutes before the limit of time, which is far away, a job is warned.
submit() {
    local file=$1 experiment=$2 warning=USR1@120
    [ "$file" != nodes ] || warning=B:$warning
    shift 2
    sbatch --parsable --gpus-per-node=0 --cpus-per-task=1 --time=60 --signal="$warning" "${options[@]}" \
        "$top/slurm/$file.sbatch" "$experiment" "$@"
}

field() { # of a job: field 7_1 JobState
    scontrol --oneliner show job "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | tail -n 1
}

is() { [ "$(field "$1" "$2")" = "$3" ]; }

folder() { # of an output and a network
    echo "$1/tiny/$2/seed-0"
}

has_step() { grep -q "\"step\": $2, " "$(folder "$1" "${3:-one}")/metrics.jsonl"; }

saved() { test -f "$(folder "$1" "${2:-one}")/checkpoints/last.pt"; }

ranks() { # processes that train into an output
    local pid
    for pid in $(pgrep -f -- "resnet_train run tiny.yaml .*output=$1( |$)"); do
        if tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -q '^RANK='; then echo "$pid"; fi
    done
}

signalled() { # whether each of these stopped processes has a signal that it has not taken yet, or has ended since
    local pid
    for pid in "$@"; do
        if grep -q '^State:.*T' "/proc/$pid/status" && ! grep -Eq '^(Sig|Shd)Pnd:.*[1-9a-f]' "/proc/$pid/status"; then
            return 1
        fi
    done
}

networks=(one two)
export NETWORKS="${networks[*]}"
options=(--array=0-1 --ntasks-per-node=2)
array=$(submit one-node tiny.yaml output=array)
options=(--nodes=2 --ntasks-per-node=1)
several=$(submit nodes-srun tiny.yaml output=several --only one)
options=(--nodes=2)
torchrun=$(submit nodes tiny.yaml output=torchrun --only one)
options=(--nodes=2 --ntasks-per-node=1)
broken=$(submit nodes-srun broken.yaml output=broken --only one)
options=(--nodes=2)
broken_torchrun=$(submit nodes broken.yaml output=broken-torchrun --only one)
options=(--nodes=1 --ntasks-per-node=1 --nodelist=127.0.0.3)
orphan=$(submit nodes-srun tiny.yaml output=orphan --only one)
options=(--array=0-0 --ntasks-per-node=1)
mistaken=$(submit one-node tiny.yaml output=mistaken train.epoch=3)
unwanted=$(submit one-node tiny.yaml output=unwanted train.steps=100000)
options=(--nodes=1)
unwanted_torchrun=$(submit nodes tiny.yaml output=unwanted-torchrun --only one train.steps=100000)
options=(--array=0-0 --ntasks-per-node=1)
mkdir -p "$(folder in-use one)"
exec {lock}>"$(folder in-use one)/lock"
flock "$lock" # as a process of an earlier job holds it
in_use=$(submit one-node tiny.yaml output=in-use)

# Stop the two ranks of a job while they train, so that they cannot finish; let its limit of time come near; let them go
# on once Slurm's warning has reached them; and await that the job is put back. $1: the job, $2: its output, $3: network.
warn_amid_training() {
    local pids minutes
    await "step 4 of $2" has_step "$2" 4 "$3"
    mapfile -t pids < <(ranks "$2 --only $3")
    kill -STOP "${pids[@]}"
    [ ${#pids[@]} = 2 ] || fail "the ranks of $2 are not two: ${pids[*]}"
    minutes=$(squeue --noheader --job "$1" --format %M | sed 's/:.*//')
    scontrol update JobId="$1" TimeLimit=$((minutes + 2))
    await "the warning of job $1" signalled "${pids[@]}"
    kill -CONT "${pids[@]}"
    say "job $1, of output=$2, is warned"
    await "job $1 in the queue again" is "$1" Restarts 1
    scontrol update JobId="$1" TimeLimit=60
}
# Kill a rank of a job that has been put back once, while it trains, and await that it is put back again. Both ranks are
# stopped before, so that they cannot finish.
kill_amid_training() {
    local step pids
    step=$(grep -o '"step": [0-9]*' "$(folder "$2" "$3")/metrics.jsonl" | tail -n 1 | grep -o '[0-9]*$')
    await "the steps after $step of $2" has_step "$2" $((step + 2)) "$3"
    mapfile -t pids < <(ranks "$2 --only $3")
    kill -STOP "${pids[@]}"
    [ ${#pids[@]} = 2 ] || fail "the ranks of $2 are not two: ${pids[*]}"
    kill -KILL "${pids[1]}"
    kill -CONT "${pids[0]}"
    say "a rank of job $1 is killed"
    await "job $1 in the queue again, after its rank was killed" is "$1" Restarts 2
}

disturb() {
    warn_amid_training "$@"
    [ "$2" != several ] || kill_amid_training "$@"
}
disturbed=()
for job in "${array}_1 array two" "$several several one" "$torchrun torchrun one"; do
    # shellcheck disable=SC2086
    disturb $job &
    disturbed+=($!)
done

# The daemon of a node is killed, and Slurm takes the node for lost. The job lives on, stopped here so that it cannot
# finish: the next try finds the folder in use, and one after its end goes on.
await "step 4 of orphan" has_step orphan 4
mapfile -t orphans < <(pgrep -f -- "output=orphan( |$)")
kill -STOP "$(ranks "orphan --only one")"
kill -KILL "$daemon_of_node_3"
mapfile -t -O ${#orphans[@]} orphans < <(ps -o ppid= -p "$(IFS=,; echo "${orphans[*]}")" | tr -d ' ' | sort -u)
scontrol update NodeName=127.0.0.3 State=DOWN Reason=test
await "job $orphan in the queue again" is "$orphan" Restarts 1
scontrol update JobId="$orphan" ReqNodeList=
say "the daemon of a node is killed, and job $orphan put back"

for output in unwanted unwanted-torchrun; do await "step 4 of $output" has_step $output 4; done
scancel "${unwanted}_0" "$unwanted_torchrun"

await "the job that finds its folder in use, in the queue again" is "${in_use}_0" Restarts 1
flock --unlock "$lock"
exec {lock}>&-
await "job $orphan in the queue again, after it found its folder in use" is "$orphan" Restarts 2
kill -KILL "${orphans[@]}" 2>/dev/null || true # srun ended with its node, the rank did not
for process in "${disturbed[@]}"; do
    wait "$process" || fail "a disturbed job"
done

# --- how they end -----------------------------------------------------------------------------------------------------

await "the end of all jobs" no_jobs
expect() { # job, state, restarts
    is "$1" JobState "$2" || fail "job $1 is $(field "$1" JobState), not $2"
    is "$1" Restarts "$3" || fail "job $1 was put back $(field "$1" Restarts) times, not $3"
}
expect "${array}_0" COMPLETED 0
expect "${array}_1" COMPLETED 1
expect "$several" COMPLETED 2
expect "$torchrun" COMPLETED 1
expect "$orphan" COMPLETED 2
grep -q "another process trains in it" "resnet-train-$orphan.out" || fail "job $orphan did not find its folder in use"
expect "$broken" FAILED 0
is "$broken" ExitCode 69:0 || fail "where a rank failed alone srun's code is $(field "$broken" ExitCode)"
expect "$broken_torchrun" FAILED 0
expect "${in_use}_0" COMPLETED 1
expect "${mistaken}_0" FAILED 0
is "${mistaken}_0" ExitCode 2:0 || fail "a bad key is exit code $(field "${mistaken}_0" ExitCode)"
expect "${unwanted}_0" CANCELLED 0
expect "$unwanted_torchrun" CANCELLED 0
saved unwanted || fail "the cancelled job saved nothing"
saved unwanted-torchrun || fail "the cancelled job of torchrun saved nothing"
for output in "array two" "several one" "torchrun one" "in-use one" "orphan one"; do
    # shellcheck disable=SC2086
    tail -n 1 "$(folder $output)/metrics.jsonl" | grep -q '"status": "finished"' || fail "$output is not finished"
done
sessions() { grep -c '"ranks"' "$(folder "$1" "$2")/env.json"; }
[ "$(sessions array two)" = 2 ] || fail "the warned task has $(sessions array two) sessions"
say "all jobs ended as they should"
