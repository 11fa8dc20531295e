//! The command lines of QEMU's manual, typed as they stand there by a shell that finds `qemu-img` first in its PATH: ours
//! in one folder, the real one in a copy of it. Every line must say the same, and every folder must hold the same disks
//! in the end.

use crate::harness::Lab;
use std::path::Path;
use std::process::{Command, Output};

/// What is done before, by the real one; the lines of the manual; the images to compare in the end.
type Example = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);

const EXAMPLES: &[Example] = &[
    // "Quick start for disk image creation"
    (
        &[],
        &[
            "qemu-img create myimage.img mysize",
            "qemu-img create myimage.img 10240",
            "qemu-img create myimage.img 10M",
            "qemu-img create myimage.img 1G",
            "qemu-img info myimage.img",
        ],
        &["myimage.img"],
    ),
    // "info": the chain base.qcow2 <- snap1.qcow2 <- snap2.qcow2
    (
        &[
            "qemu-img create -q -f qcow2 base.qcow2 4M",
            "qemu-io -c 'write -P 1 1M 64k' base.qcow2 >/dev/null",
            "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 snap1.qcow2",
            "qemu-img create -q -f qcow2 -b snap1.qcow2 -F qcow2 snap2.qcow2",
            "qemu-io -c 'write -P 2 0 128k' snap2.qcow2 >/dev/null",
        ],
        &[
            "qemu-img info --backing-chain snap2.qcow2",
            "qemu-img info --backing-chain --output=json snap2.qcow2",
            "qemu-img map snap2.qcow2",
            "qemu-img map --output=json snap2.qcow2",
            "qemu-img check snap2.qcow2; echo $?",
            "qemu-img commit snap2.qcow2",
            "qemu-img check -r all snap2.qcow2; echo $?",
        ],
        &["snap2.qcow2", "snap1.qcow2"],
    ),
    // "measure"
    (
        &["qemu-img create -q -f qcow2 disk.qcow2 1G", "qemu-img snapshot -c one disk.qcow2"],
        &[
            "qemu-img measure -O qcow2 --size 1G",
            "qemu-img measure --output=json -O qcow2 --size 1G",
            "qemu-img measure -O qcow2 disk.qcow2",
            "qemu-img measure -O raw -l snapshot.id=1,snapshot.name=one disk.qcow2",
        ],
        &[],
    ),
    // "rebase": a thin image from two that were clones of each other; as the manual has it, and with the formats that
    // are asked for nowadays
    (
        &[
            "qemu-img create -q -f qcow2 base.img 4M",
            "qemu-io -f qcow2 -c 'write -P 1 0 2M' base.img >/dev/null",
            "cp base.img modified.img",
            "qemu-io -f qcow2 -c 'write -P 2 1M 64k' modified.img >/dev/null",
        ],
        &[
            "qemu-img create -f qcow2 -b modified.img diff.qcow2",
            "qemu-img rebase -b base.img diff.qcow2",
            "qemu-img create -f qcow2 -b modified.img -F qcow2 diff.qcow2",
            "qemu-img rebase -b base.img -F qcow2 diff.qcow2",
            "rm modified.img; qemu-img info diff.qcow2",
            "qemu-img rebase -u -b moved.img -F qcow2 diff.qcow2; mv base.img moved.img",
        ],
        &["diff.qcow2"],
    ),
    // The options of every command once, in the spelling of its description
    (
        &["qemu-img create -q disk.raw 2M", "qemu-io -f raw -c 'write -P 5 0 1M' disk.raw >/dev/null"],
        &[
            "qemu-img create -f qcow2 -o ? | wc -c | grep -c .",
            "qemu-img convert -c -f raw -O qcow2 disk.raw disk.qcow2",
            "qemu-img convert -p -f raw -O qcow2 disk.raw plain.qcow2",
            "qemu-img convert -f raw -O qcow2 -S 4k -m 4 -W disk.raw wide.qcow2",
            "qemu-img compare -f raw -F qcow2 -s disk.raw disk.qcow2; echo $?",
            "qemu-img compare -f raw -F qcow2 disk.raw disk.qcow2; echo $?",
            "qemu-img dd -f raw -O raw bs=64k count=2 if=disk.raw of=part.raw",
            "qemu-img snapshot -c tag disk.qcow2",
            "qemu-img snapshot -a tag disk.qcow2; qemu-img snapshot -d tag disk.qcow2",
            "qemu-img snapshot -l disk.qcow2",
            "qemu-img resize disk.qcow2 +1M",
            "qemu-img resize --preallocation=full -f raw part.raw 1M",
            "qemu-img resize --shrink disk.qcow2 2M",
            "qemu-img amend -o compat=0.10 disk.qcow2",
            "qemu-img amend -p -o compat=1.1,lazy_refcounts=on disk.qcow2",
        ],
        &["disk.qcow2", "wide.qcow2", "part.raw"],
    ),
    // "Sheepdog disk images": a protocol that neither has
    (
        &["qemu-img create -q filename 1M"],
        &[
            "qemu-img create sheepdog:image 1M",
            "qemu-img convert -f raw filename sheepdog:image",
            "qemu-img snapshot -c tag sheepdog:image",
            "qemu-img create -b sheepdog:base:tag sheepdog:image",
            "qemu-img create sheepdog:hostname:7000:image 1M",
        ],
        &[],
    ),
];

#[test]
fn examples_of_the_manual_do_the_same_as_typed() {
    for (before, lines, images) in EXAMPLES {
        let lab = Lab::new();
        for line in *before {
            assert!(shell(None, &lab.path(""), line).status.success(), "{line}");
        }
        // Both are copies, so that both have the same holes.
        copy(&lab.path(""), &lab.twin(""));
        std::fs::remove_dir_all(lab.path("")).unwrap();
        copy(&lab.twin(""), &lab.path(""));
        let tools = lab.tool().parent().unwrap().to_owned();
        for line in *lines {
            let ours = shell(Some(&tools), &lab.path(""), line);
            let real = shell(None, &lab.twin(""), line);
            assert_eq!(said(&ours), said(&real), "{line}");
        }
        for image in *images {
            let same = lab.real(&format!("compare -U {image} ../b/{image}"));
            assert!(same.status.success(), "{image}: {}", said(&same));
        }
    }
}

/// Runs a line by the shell, with the folder `tools` in front of its PATH.
fn shell(tools: Option<&Path>, folder: &Path, line: &str) -> Output {
    let path = std::env::var("PATH").unwrap();
    let path = tools.map_or(path.clone(), |tools| format!("{}:{path}", tools.display()));
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder).env("PATH", path).env("LC_ALL", "C").env("TZ", "UTC");
    command.output().unwrap()
}

/// Without what the host keeps for a file: where zeros stay holes, it is less.
fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let is_said = |line: &&str| !line.contains("disk size: ") && !line.contains("\"actual-size\": ");
    let lines = out.split_inclusive('\n').filter(is_said);
    format!("{}\n{}{err}", output.status, lines.collect::<String>())
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}
