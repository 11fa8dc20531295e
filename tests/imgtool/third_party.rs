//! Programs of others that call `qemu-img` find ours first in their PATH, and do with it what they do with the real one.

use crate::harness::Lab;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a program in `folder`; with `tools`, that folder is the first in its PATH.
fn run(program: &str, args: &[&str], folder: &Path, tools: Option<&Path>) -> Output {
    let path = std::env::var("PATH").unwrap();
    let path = tools.map_or(path.clone(), |tools| format!("{}:{path}", tools.display()));
    let output = Command::new(program).args(args).current_dir(folder).env("PATH", path).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; tests/setup installs it"))
}

/// As management programs do: what the tool says of each image is parsed, and numbers and flags are taken out of it.
const PARSER: &str = r#"
import json, subprocess, sys

def ask(*words):
    done = subprocess.run(["qemu-img", *words], stdout=subprocess.PIPE, check=False)
    return done.returncode, json.loads(done.stdout)

facts = {}
for name in sys.argv[1:]:
    status, info = ask("info", "-U", "--output=json", name)
    chain = ask("info", "-U", "--output=json", "--backing-chain", name)[1]
    specific = info.get("format-specific", {}).get("data", {})
    extents = ask("map", "-U", "--output=json", name)[1]
    check = ask("check", "-U", "--output=json", name) if info["format"] == "qcow2" else None
    measured = ask("measure", "-U", "--output=json", "-O", "qcow2", name)[1]
    facts[name] = {
        "status": status,
        "size": int(info["virtual-size"]),
        "format": info["format"],
        "cluster": info.get("cluster-size"),
        "dirty": info["dirty-flag"],
        "backing": [image.get("full-backing-filename") for image in chain],
        "files": [image["children"][0]["info"]["filename"] for image in chain],
        "snapshots": [(one["id"], one["name"], one["vm-state-size"]) for one in info.get("snapshots", [])],
        "bitmaps": [(one["name"], one["granularity"], sorted(one["flags"])) for one in specific.get("bitmaps", [])],
        "compat": specific.get("compat"),
        "data": sum(extent["length"] for extent in extents if extent["data"] and not extent["zero"]),
        "depths": sorted({extent["depth"] for extent in extents}),
        "offsets": [extent.get("offset") for extent in extents],
        "check": check and (check[0], check[1]["image-end-offset"], check[1]["check-errors"],
                            check[1].get("corruptions", 0), check[1].get("leaks", 0)),
        "measured": (measured["required"], measured["fully-allocated"], measured.get("bitmaps")),
    }
print(json.dumps(facts, indent=1))
"#;

#[test]
fn programs_that_parse_json_see_the_same_facts() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 base.qcow2 8M").qemu_io("qcow2", "base.qcow2", &["write -P 1 1M 2M"]);
    lab.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    lab.qemu_io("qcow2", "top.qcow2", &["write -P 2 0 70k", "write -z 2M 128k"]);
    lab.qemu_img("snapshot -c one top.qcow2").qemu_img("bitmap --add -g 32k top.qcow2 marks");
    lab.qemu_img("convert -c -O qcow2 -o compat=v2 base.qcow2 packed.qcow2");
    lab.qemu_img("convert -O raw base.qcow2 disk.raw");
    // Its first refcount block is the third cluster.
    lab.patched("base.qcow2", "leak.qcow2", |bytes| bytes[0x2_0000 + 2 * 60 + 1] = 1);
    let args = ["-c", PARSER, "base.qcow2", "top.qcow2", "packed.qcow2", "disk.raw", "leak.qcow2"];
    let tools = lab.tool().parent().unwrap().to_owned();
    let real = run("python3", &args, &lab.path(""), None);
    let ours = run("python3", &args, &lab.path(""), Some(&tools));
    assert!(real.status.success(), "{real:?}");
    assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&real.stdout));
    assert_eq!(String::from_utf8_lossy(&ours.stderr), String::from_utf8_lossy(&real.stderr));
}

#[test]
fn cloud_localds_makes_a_seed_that_a_guest_finds() {
    let lab = Lab::new();
    lab.write("user-data", b"#cloud-config\nhostname: seed\n").write("meta-data", b"instance-id: i-1\n");
    let tools = lab.tool().parent().unwrap().to_owned();
    for format in ["qcow2", "raw"] {
        let args = ["-f", "vfat", "-d", format, "seed", "user-data", "meta-data"];
        let made = run("cloud-localds", &args, &lab.path(""), Some(&tools));
        assert!(made.status.success(), "{made:?}");
        lab.qemu_img(&format!("convert -f {format} -O raw seed seed.raw"));
        for name in ["user-data", "meta-data"] {
            let from = format!("::{name}");
            let read = run("mcopy", &["-n", "-i", "seed.raw", &from, "-"], &lab.path(""), None);
            assert_eq!(read.stdout, std::fs::read(lab.path(name)).unwrap(), "{format} {name}: {read:?}");
        }
    }
}

/// What guestfish is told: it asks the tool for formats and sizes, and has it make disks and overlays.
const GUESTFISH: &str = "
disk-create over.qcow2 qcow2 -1 backingfile:made.qcow2 backingformat:qcow2
disk-create plain.qcow2 qcow2 64M preallocation:metadata compat:1.1 clustersize:4096
disk-format over.qcow2
disk-virtual-size plain.qcow2
disk-has-backing-file over.qcow2
disk-has-backing-file plain.qcow2
add over.qcow2 format:qcow2
add-ro made.qcow2
run
mount /dev/sda /
cat /word
write /another second
umount-all
mount-ro /dev/sdb /
ls /
";

/// Not part of the suite: the Debian packages guestfs-tools and guestfish are a hundred, and their machine boots for a
/// minute where the host cannot virtualize. `cargo test --test imgtool libguestfs -- --ignored`
#[test]
#[ignore = "needs guestfs-tools, guestfish and a kernel in /boot"]
fn libguestfs_makes_and_fills_disks() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("tree")).unwrap();
    lab.write("tree/word", b"first\n").write("script", GUESTFISH.as_bytes());
    let tools = lab.tool().parent().unwrap().to_owned();
    let folder = format!("TMPDIR={}", lab.path("").display());
    let args = ["LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg", &folder];
    let guestfs = |words: &[&str]| run("env", &[&args[..], words].concat(), &lab.path(""), Some(&tools));
    let made = guestfs(&["virt-make-fs", "--format=qcow2", "--type=ext4", "tree", "made.qcow2"]);
    assert!(made.status.success(), "{made:?}");
    let told = guestfs(&["guestfish", "-f", "script"]);
    let expect = "qcow2\n67108864\ntrue\nfalse\nfirst\n\nlost+found\nword\n";
    assert_eq!(String::from_utf8_lossy(&told.stdout), expect, "{told:?}");
    for image in ["made.qcow2", "over.qcow2", "plain.qcow2"] {
        assert!(lab.real(&format!("check {image}")).status.success(), "{image}");
    }
}
