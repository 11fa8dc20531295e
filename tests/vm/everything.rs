//! All kinds of disks at once in a real Linux, and a drive whose medium is changed meanwhile.

use super::harness::session::Session;
use super::harness::site::Site;
use std::fs;

#[test]
fn linux_works_with_every_kind_of_disk_at_once_while_a_medium_comes_and_goes() {
    let session = Session::new();
    for image in ["image.qcow2", "export.qcow2"] {
        session.qemu_img(&["create", "-q", "-f", "qcow2", image, "64M"]);
    }
    session.qemu_img(&["create", "-q", "device.raw", "64M"]);
    fs::create_dir(session.path("shared")).unwrap();
    fs::write(session.path("shared/from the host.txt"), "hello\n").unwrap();
    let medium = |word: &str, len: usize| [word.as_bytes(), &vec![0; len - word.len()]].concat();
    fs::write(session.path("first.iso"), medium("first", 1 << 20)).unwrap();
    fs::write(session.path("second.iso"), medium("second", 2 << 20)).unwrap();
    session.run(
        256,
        r#"
        serve() {
            "$COWVM" nbd -t -k "$PWD/socket" -f qcow2 export.qcow2 &
            server=$!
        }
        # A file stands in where we may make no loop device.
        device=$(losetup -f 2>/dev/null) && losetup "$device" device.raw 2>/dev/null || device=device.raw
        echo "$device" >device
        serve
        start all everything -m 256 -hda image.qcow2 -hdb fat:rw:shared -hdc "nbd:unix:$PWD/socket" \
            -drive "file=$device,format=raw" -cdrom first.iso
        wait_for READY
        monitor 'change ide1-cd0 second.iso'
        echo changed >&3
        wait_for CHANGED
        kill -KILL "$server"
        rm socket
        serve
        echo written >&3
        wait_for WRITTEN
        monitor 'eject ide1-cd0'
        echo ejected >&3
        finish
        # What the guest has put into the directory.
        grep "^SUM $(sha256sum <shared/grüße | cut -d ' ' -f 1)" all.log
        kill "$server"
        wait "$server" || true
        [ "$device" = device.raw ] || losetup -d "$device""#,
    );
    let device = fs::read_to_string(session.path("device")).unwrap();
    assert!(session.site != Site::Emulated || device.starts_with("/dev/loop"), "{device}");
    for image in ["image.qcow2", "export.qcow2"] {
        session.assert_image_is_clean(image);
    }
    assert!(!session.console("all").contains("I/O error"), "{}", session.console("all"));
}
