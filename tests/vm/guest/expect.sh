# For the scripts of the inner guests.

# expect WHAT IS SHOULD: ends the guest's script when the two differ.
expect() {
    if [ "$2" != "$3" ]; then
        echo "GUEST-WRONG $1 is '$2', not '$3'"
        exit 1
    fi
}

# checksum FILE OFFSET LENGTH: of a part of a file, in MiB, as the disk has it now.
checksum() {
    dd if="$1" bs=1M skip="$2" count="$3" 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

# forget: what is read from now on comes from the disks.
forget() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}
