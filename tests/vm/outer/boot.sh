# Shell functions that boot inner guests, for the scripts of sessions (run by sh -eu).
# A guest is known by a NAME: its console goes to NAME.log. $COWVM is the program under test.

# A guard against hangs only, in seconds.
LIMIT=300

# Lines of a console may begin with some.
cr=$(printf '\r')

# boot NAME SCRIPT OPTION...: runs a guest with the script tests/vm/guest/SCRIPT to its end.
boot() {
    launch "$@" 4</dev/null
    finish
}

# start NAME SCRIPT OPTION...: the same in the background, with descriptor 3 as the guest's keyboard.
start() {
    mkfifo "$1.keyboard"
    exec 3<>"$1.keyboard"
    launch "$@" 4<"$1.keyboard"
}

# launch NAME SCRIPT OPTION... 4<KEYBOARD
launch() {
    name=$1
    script=$2
    asked=0
    shift 2
    "$COWVM" run -kernel vmlinuz -initrd initrd -append "console=ttyS0 panic=-1 quiet guest=$script" "$@" \
        <&4 4<&- >"$name.log" 2>&1 &
    vmm_pid=$!
}

# finish: waits for the end of the guest: it must say that it is done, and cowvm exit with 0.
finish() {
    waited=0
    while vmm_runs; do pause "it does not come to its end"; done
    wait "$vmm_pid" || fail "cowvm exited with $?"
    grep -q '^GUEST-DONE' "$name.log" || fail "the guest did not come to its end"
}

# wait_for TEXT: until the guest's console has a line that starts with TEXT.
wait_for() {
    waited=0
    until grep -q "^$1" "$name.log"; do
        vmm_runs || fail "cowvm ended before the guest said '$1'"
        pause "the guest never said '$1'"
    done
}

# said TEXT COUNT: until it has so many of them.
said() {
    waited=0
    until [ "$(grep -c "^$cr*$1" "$name.log")" -ge "$2" ]; do
        vmm_runs || fail "cowvm ended before it said '$1' $2 times"
        pause "it never said '$1' $2 times"
    done
}

# monitor COMMAND: has the monitor on the console of a guest that was started do it.
monitor() {
    asked=$((asked + 1))
    printf '\001c%s\ninfo status\n' "$1" >&3
    said 'VM status: running' "$asked"
    printf '\001c' >&3
}

# murder: ends cowvm without a warning.
murder() {
    kill -KILL "$vmm_pid"
    wait "$vmm_pid" || true
}

vmm_runs() {
    kill -0 "$vmm_pid" 2>/dev/null
}

# pause COMPLAINT: a third of a second, at most LIMIT seconds long since waited=0. Looking again starts processes, on
# the processor that emulates the guest too.
pause() {
    if [ "$waited" -ge $((LIMIT * 3)) ]; then
        murder
        fail "$1"
    fi
    waited=$((waited + 1))
    sleep 0.33
}

fail() {
    echo "FAILED: $name: $*" >&2
    exit 1
}
