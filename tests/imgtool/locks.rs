//! Images that another process has open: refused in the same words, and read when forced.

use crate::harness::Lab;
use crate::holder::Holder;

#[test]
fn images_in_use_are_refused_in_the_same_words_and_read_when_forced() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 held 1M").qemu_img("create -q -f qcow2 -b held -F qcow2 over");
    lab.write("free", &[1; 4096]);
    let _holder = Holder::new(&["-f", "qcow2"], &lab.path("held"));
    lab.same(&[
        "info held",
        "info -U held",
        "info over",
        "info --backing-chain over",
        "info --backing-chain -U over",
        "check held",
        "check -U held",
        "check over",
        "map held",
        "map over",
        "map -U --output=json over",
        "convert held out",
        "convert over out",
        "convert -n -O qcow2 -f raw free held",
        "convert -f raw -O qcow2 free held",
        "convert -f raw free held",
        "create -f qcow2 held 1M",
        "create held 1M",
    ]);
    lab.same(&["create -f qcow2 -b held -F qcow2 new", "info new", "convert -U over out"]);
}
