//! VM snapshots of a real Linux: two processors, two disks, processes that check all that they have.

use super::harness::session::Session;
use super::harness::site::is_campaign;

/// count N TIMES: the guest counts, to N, and has done so for so many times then.
const COUNT: &str = r#"
count() {
    echo count >&3
    said "COUNT $1 $1 $1 $1" "$2"
}
"#;

#[test]
fn linux_with_two_processors_and_two_disks_goes_back_and_forth_and_into_another_process() {
    let session = Session::new();
    for disk in ["one.qcow2", "two.qcow2"] {
        session.qemu_img(&["create", "-q", "-f", "qcow2", disk, "96M"]);
    }
    // There and back.
    let rounds = if is_campaign() { 50 } else { 3 };
    session.run(
        256,
        &format!(
            "{COUNT}
            options='-smp 2 -m 256 -hda one.qcow2 -hdb two.qcow2'
            start first snapshots $options
            wait_for READY
            count 1 1
            monitor 'savevm a'
            count 2 1
            monitor 'savevm b'
            count 3 1
            for round in $(seq 2 {}); do
                monitor 'loadvm a'
                count 2 $round
                monitor 'loadvm b'
                count 3 $round
            done
            monitor 'info snapshots'
            printf '\\001x' >&3
            wait \"$vmm_pid\"
            start second snapshots $options -loadvm a
            count 2 1
            monitor 'savevm c'
            monitor 'delvm b'
            monitor 'loadvm c'
            count 3 1
            monitor 'system_powerdown'
            said POWER-BUTTON 1
            echo end >&3
            finish",
            1 + rounds
        ),
    );
    for guest in ["first", "second"] {
        let console = session.console(guest);
        assert!(!console.contains("Error") && !console.contains("GUEST-WRONG"), "{console}");
        assert_eq!(session.said(guest, "DMESG"), [""; 0]);
    }
    let lines = session.console("first").lines().filter(|line| line.starts_with("COUNT ")).count();
    assert_eq!(lines, 3 + 2 * rounds);
    assert!(session.console("first").contains("Snapshot devices: hda hdb"));
    session.assert_image_is_clean("one.qcow2");
    session.assert_image_is_clean("two.qcow2");
}
