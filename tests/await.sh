# For the scripts of tests, which source it. Each has its own `fail`.

begin=$SECONDS

say() { echo "${0##*/}, $((SECONDS - begin)) s: $*"; }

# Wait until a command succeeds; $1 says what for.
await() {
    local what=$1 end=$((SECONDS + 600))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        sleep 0.1
    done
}
