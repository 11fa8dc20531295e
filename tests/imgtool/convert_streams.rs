//! `convert` from and to pipes: what comes out is an image that qemu-img finds whole.

use crate::harness::Lab;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};

fn sources() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q holes 70M");
    lab.qemu_io(
        "raw",
        "holes",
        &["write -P 1 0 64k", "write -P 2 1M 68k", "write -P 3 33000k 3M", "write -P 4 69M 1M"],
    );
    lab.qemu_img("convert -f raw -O qcow2 holes plain").qemu_img("convert -f raw -c -O qcow2 holes packed");
    lab.qemu_img("create -q -f qcow2 -b plain -F qcow2 top 80M");
    lab.qemu_io("qcow2", "top", &["write -P 9 5M 64k", "write -z 1M 64k", "write -P 8 79M 100k"]);
    lab.write("odd", &[7; 100_001]).write("empty", b"");
    lab
}

/// Ours, with files for its standard input and output.
fn run(lab: &Lab, line: &str, input: Option<&str>, output: Option<&str>) -> Output {
    let mut command = Command::new(lab.tool());
    command.args(line.split(' ')).current_dir(lab.path("")).stderr(Stdio::piped());
    let mut feeder =
        input.map(|name| Command::new("cat").arg(lab.path(name)).stdout(Stdio::piped()).spawn().unwrap());
    if let Some(feeder) = &mut feeder {
        command.stdin(feeder.stdout.take().unwrap());
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    // It has the other end of the feeder's pipe.
    drop(command);
    if let Some(name) = output {
        // Through a pipe all the same: the tool must not find a file.
        let mut file = File::create(lab.path(name)).unwrap();
        std::io::copy(&mut child.stdout.take().unwrap(), &mut file).unwrap();
    }
    let done = child.wait_with_output().unwrap();
    feeder.into_iter().for_each(|mut feeder| assert!(feeder.wait().is_ok()));
    done
}

fn must(output: &Output, line: &str) {
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_image_goes_to_a_pipe() {
    let lab = sources();
    for source in ["holes", "plain", "packed", "top", "odd", "empty"] {
        let format = if ["holes", "odd", "empty"].contains(&source) { "raw" } else { "qcow2" };
        for target in [
            "raw",
            "qcow2",
            "qcow2 -o cluster_size=4k",
            "qcow2 -o cluster_size=2M,compat=0.10,refcount_bits=16",
        ] {
            let line = format!("convert -f {format} -O {target} {source} -");
            must(&run(&lab, &line, None, Some("out")), &line);
            let kind = target.split(' ').next().unwrap();
            lab.qemu_img(&format!("compare -f {format} -F {kind} {source} out"));
            if kind == "qcow2" {
                lab.qemu_img("check -f qcow2 out");
            }
        }
    }
}

#[test]
fn holes_of_the_source_have_no_place_in_the_stream() {
    let lab = sources();
    must(&run(&lab, "convert -O qcow2 plain -", None, Some("out")), "plain");
    let len = std::fs::metadata(lab.path("out")).unwrap().len();
    assert!(len < std::fs::metadata(lab.path("plain")).unwrap().len() + (1 << 20), "{len}");
}

#[test]
fn a_disk_comes_from_a_pipe() {
    let lab = sources();
    for source in ["holes", "odd", "empty"] {
        for target in ["raw", "qcow2", "qcow2 -c", "qcow2 -o cluster_size=4k"] {
            let line = format!("convert -f raw -O {target} - out");
            must(&run(&lab, &line, Some(source), None), &line);
            let kind = target.split(' ').next().unwrap();
            lab.qemu_img(&format!("compare -f raw -F {kind} {source} out"));
            if kind == "qcow2" {
                lab.qemu_img("check -f qcow2 out");
            }
            std::fs::remove_file(lab.path("out")).unwrap();
        }
    }
}

#[test]
fn zeros_between_data_are_left_out_of_a_stream_as_of_a_file() {
    let lab = Lab::new();
    let mut bytes = vec![0; 16 << 20];
    bytes.chunks_mut(256 << 10).for_each(|part| part[..4096].fill(1));
    lab.write("thin", &bytes);
    let allocated = |name: &str| std::fs::metadata(lab.path(name)).unwrap().blocks() * 512;
    for target in ["raw", "qcow2", "raw -S 64k", "raw -S 512k", "raw -S 0", "qcow2 -c", "qcow2 -c -S 1M"] {
        let line = format!("convert -f raw -O {target}");
        must(&run(&lab, &format!("{line} - piped"), Some("thin"), None), &line);
        must(&lab.ours(&format!("{line} thin copied")), &line);
        let (piped, copied) = (allocated("piped"), allocated("copied"));
        assert!(piped.abs_diff(copied) <= 256 << 10, "{line}: {piped} of a pipe, {copied} of a file");
        lab.qemu_img(&format!("compare -f raw -F {} thin piped", target.split(' ').next().unwrap()));
    }
}

#[test]
fn a_raw_file_grows_no_further_than_its_stream() {
    let lab = sources();
    let script = "ulimit -f 204800; head -c 1000000 /dev/zero | \"$T\" convert -f raw -O raw - out";
    let mut shell = Command::new("sh");
    must(
        &shell.args(["-ec", script]).current_dir(lab.path("")).env("T", lab.tool()).output().unwrap(),
        script,
    );
    assert_eq!(std::fs::metadata(lab.path("out")).unwrap().len(), 1_000_448);
}

#[test]
fn standard_input_that_is_a_file_may_have_any_format() {
    let lab = sources();
    let mut command = Command::new(lab.tool());
    command.args(["convert", "-O", "raw", "-", "out"]).current_dir(lab.path(""));
    let done = command.stdin(File::open(lab.path("packed")).unwrap()).output().unwrap();
    must(&done, "packed");
    lab.qemu_img("compare -f raw -F raw holes out");
}

#[test]
fn what_no_stream_can_do_is_refused_and_leaves_nothing() {
    let lab = sources();
    let lines = [
        "convert -f qcow2 - out",
        "convert - out",
        "convert -c -O qcow2 holes -",
        "convert -f raw -o preallocation=falloc - out",
        "convert -f raw -O qcow2 -o preallocation=metadata - out",
        "convert -f raw - -",
        "convert -f raw - holes out",
        "convert -n -f raw - out",
        "convert -O qcow2 -B plain -F qcow2 top -",
        "convert -O qcow2 -o preallocation=metadata holes -",
        "convert -O qcow2 -o extended_l2=on holes -",
        "convert -C holes -",
        "convert -p holes -",
        "convert --bitmaps -O qcow2 plain -",
    ];
    for line in lines {
        let done = run(&lab, line, Some("packed"), Some("said"));
        assert_eq!(done.status.code(), Some(1), "{line}");
        assert!(!done.stderr.is_empty(), "{line}");
        assert_eq!(std::fs::metadata(lab.path("said")).unwrap().len(), 0, "{line}");
        assert!(!lab.path("out").exists(), "{line}");
    }
}
