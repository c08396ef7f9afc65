#!/usr/bin/env bash
# Train on two nodes, both of them network namespaces of this machine: cut the link, lose a node, gain one.
#
#   tests/nodes.sh          needs root and iproute2; nothing of the machine's own network changes
#
# PYTHON chooses the interpreter. What is awaited is what the runs write, and their end, never some seconds.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-$top/.venv/bin/python}")
export PYTHONPATH=$top${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 PATH="$PATH:/usr/sbin:/sbin"
export GLOO_SOCKET_IFNAME=cable  # by default it takes the address of this machine's name, which the nodes lack
export TORCH_CPP_LOG_LEVEL=ERROR # else it warns of each address without a name
work=$(mktemp -d /tmp/nodes-test.XXXXXX)
cd "$work"

. "$top/tests/await.sh"

fail() {
    say "FAILED: $*"
    tail -n 30 ./*.out ./*.err || true
    exit 1
}

# --- the nodes --------------------------------------------------------------------------------------------------------

node() { # a pair of nodes, and which of the two: its namespace
    echo "resnet-train-$$-$1-$2"
}

# Two nodes with a cable between them: 10.0.0.1 and 10.0.0.2.
connect() {
    local i
    for i in 1 2; do ip netns add "$(node "$1" $i)"; done
    ip -netns "$(node "$1" 1)" link add cable type veth peer name cable netns "$(node "$1" 2)"
    for i in 1 2; do
        ip -netns "$(node "$1" $i)" address add 10.0.0.$i/24 dev cable
        ip -netns "$(node "$1" $i)" link set lo up
        ip -netns "$(node "$1" $i)" link set cable up
    done
}

kill_processes() { # of a node
    ip netns pids "$(node "$1" "$2")" | xargs --no-run-if-empty kill -KILL
}

finish() {
    local pair i
    [ -z "${parts[*]}" ] || kill "${parts[@]}" 2>/dev/null || true
    for pair in silent reset elastic; do
        for i in 1 2; do
            kill_processes $pair $i || true
            ip netns delete "$(node $pair $i)" || true
        done
    done 2>/dev/null
    wait || true
    rm -rf "$work"
}
parts=()
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Start a program on a node. $1, $2: the node; $3: the files for what it prints; then the program. Its number is in $!.
on() {
    local name files=$3
    name=$(node "$1" "$2")
    shift 3
    ip netns exec "$name" "$@" >>"$files.out" 2>>"$files.err" &
}

cat >tiny.yaml <<END
name: tiny
networks: [{base: cifar-resnet-8, name: one}]
data: {kind: synthetic, size: 16, classes: 4, train_images: 200, val_images: 14}
augment: {crop: {kind: pad, padding: 1}, flip: true}
optimizer: {lr: 0.01}
train: {steps: 60, batch_size: 64, device: cpu, sync_bn: true, timeout: 300}
eval: {every: {steps: 30}, batch_size: 5, clean_train_images: 10}
checkpoint: {every: {steps: 10}, keep_every: {steps: 10}}
log: {every: {steps: 1}}
END
run=(-m resnet_train run tiny.yaml)

folder() { echo "$1/tiny/one/seed-0"; }

has_step() { grep -q "\"step\": $2, " "$(folder "$1")/metrics.jsonl"; }

has_ended() { ! kill -0 "$1" 2>/dev/null; }

# --- a link that is cut ------------------------------------------------------------------------------------------------

# Train on a pair of nodes without a launcher; cut the link by a command. Both ranks must end with one line and code 69.
# $1: the pair; $2: what the line must say; then the command.
cut_amid_training() {
    local pair=$1 reason=$2 rank code pids=()
    shift 2
    connect "$pair"
    for rank in 0 1; do
        on "$pair" $((rank + 1)) "$pair-$rank" env RANK=$rank WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 \
            MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 "$python" "${run[@]}" output="$pair" train.timeout=30 \
            train.steps=100000
        pids+=($!)
    done
    await "step 4 of $pair" has_step "$pair" 4
    "$@"
    for rank in 0 1; do
        await "the end of rank $rank of $pair" has_ended "${pids[rank]}"
        code=0
        wait "${pids[rank]}" || code=$?
        [ "$code" = 69 ] || fail "rank $rank of $pair ended with $code"
        [ "$(grep -c "^resnet-train: " "$pair-$rank.err")" = 1 ] || fail "rank $rank of $pair has not one line"
        grep -q "^resnet-train: another rank .*$reason" "$pair-$rank.err" || fail "the line of rank $rank of $pair"
        ! grep -q Traceback "$pair-$rank.err" || fail "a traceback of rank $rank of $pair"
    done
    say "$pair: both ranks have ended"
}

# As a firewall does that knows the connection no longer: each packet is answered by a reset.
reset_connections() {
    local i
    for i in 1 2; do
        ip netns exec "$(node reset $i)" iptables --append INPUT --in-interface cable --protocol tcp \
            --tcp-flags RST NONE --jump REJECT --reject-with tcp-reset || {
            say "iptables cannot reset connections here: they are only cut"
            ip -netns "$(node reset $i)" link set cable down
        }
    done
}

cut_amid_training silent "(train.timeout = 30 s)" ip -netns "$(node silent 2)" link set cable down &
parts+=($!)
cut_amid_training reset "" reset_connections &
parts+=($!)

# --- a node that is lost, and one that comes ---------------------------------------------------------------------------

# What docs/clusters.md says. The nodes meet on the second (is_host: it does not know its address for its own, since the
# name of this machine has another). The first has rank 0, since its address is the smaller one.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
start_torchrun() { # on a node of the pair `elastic`
    local options="is_host=$(($1 == 2)),last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=5,read_timeout=300"
    on elastic "$1" "torchrun-$1" env LOGLEVEL=INFO "$python" -m torch.distributed.run --nnodes 1:2 --nproc-per-node 1 \
        --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint 10.0.0.2:29500 --rdzv-conf "$options" \
        --local-addr "10.0.0.$1" "${run[@]}" output=elastic
}
has_begun() { grep -q "Starting elastic_operator" "torchrun-$1.err"; }
ranks() { # of each session: 2 1
    grep -o '"ranks": [0-9]*' "$(folder elastic)/env.json" | grep -o '[0-9]*$' | paste -s -d ' '
}
trains_alone_to() { [ "$(ranks)" = "2 1" ] && has_step elastic "$1"; }
is_signalled() { grep -Eq '^(Sig|Shd)Pnd:.*[1-9a-f]' "/proc/$1/status" || has_ended "$1"; }

"$python" "${run[@]}" output=undisturbed >undisturbed.out 2>undisturbed.err &
undisturbed=$!
connect elastic
start_torchrun 1
await "torchrun on the first node" has_begun 1
start_torchrun 2
second=$!
await "step 23 of both nodes" has_step elastic 23
[ "$(ranks)" = 2 ] || fail "the ranks are $(ranks), not 2"
kill_processes elastic 1
say "elastic: the first node is lost"

# The second goes on alone. Its rank is stopped, so that it cannot finish before the first node is back.
await "training on the second node alone" trains_alone_to 30
rank=$(pgrep --parent "$second")
kill -STOP "$rank"
say "elastic: the second node trains alone"
start_torchrun 1
first=$!
await "the signal of the second node's torchrun" is_signalled "$rank"
kill -CONT "$rank"
for agent in "$first" "$second"; do
    await "the end of torchrun" has_ended "$agent"
    wait "$agent" || fail "torchrun ended with $?"
done
[ "$(ranks)" = "2 1 2" ] || fail "the ranks were $(ranks)"
say "elastic: both nodes have finished"

# --- the same samples --------------------------------------------------------------------------------------------------

# One rank that goes on from the checkpoint at which the node was lost.
cp -r elastic alone
mv "$(folder alone)/checkpoints/step-20.pt" "$(folder alone)/checkpoints/last.pt"
"$python" "${run[@]}" output=alone >alone.out 2>alone.err || fail "the run from the checkpoint"
wait "$undisturbed" || fail "the undisturbed run"

"$python" - "$(folder elastic)" "$(folder alone)" "$(folder undisturbed)" <<END || fail "the records differ"
import json, sys

def records(folder):
    with open(f"{folder}/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    keys = ("step", "kind", "loss", "error", "lr", "grad_norm", "train_error", "val_error")
    return [{key: line[key] for key in keys if key in line} for line in lines]

elastic, alone, undisturbed = map(records, sys.argv[1:])
with open(f"{sys.argv[1]}/env.json") as file:
    steps = [session["from_step"] for session in json.load(file)["sessions"]]
assert steps[1] == 20 and steps[2] >= 30, steps
assert [(r["step"], r["kind"]) for r in elastic] == [(r["step"], r["kind"]) for r in undisturbed]

# The node alone: bit for bit what one rank makes of the same checkpoint.
part = [[r for r in one if 20 < r["step"] <= steps[2] and r["kind"] == "train"] for one in (elastic, alone)]
assert len(part[0]) == steps[2] - 20 and part[0] == part[1], part

# All of it: the losses of a run that was never disturbed, on one rank, but for the order of sums. On other samples they
# are others, as the next step shows.
losses, expected = ([r["loss"] for r in one if r["kind"] == "train"] for one in (elastic, undisturbed))
far = max(abs(a - b) for a, b in zip(losses, expected))
next_step = sorted(abs(a - b) for a, b in zip(losses, expected[1:]))[30]
assert far < 2e-3 < next_step / 4, (far, next_step)
print(f"losses are at most {far:.1e} off; the median step changes them by {next_step:.1e}")
END
say "elastic: the same samples as without the loss"

for part in "${parts[@]}"; do
    wait "$part" || fail "a link that was cut"
done
say "all ended as they should"
