//! Command lines put together at random from all options of a command, with good values and bad ones.
//!
//! The seed is the same at every run unless `COWVM_SEED` says otherwise.

use super::Case;
use crate::seed::seed_or;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Lines of each command.
const LINES: usize = 40;

/// A command: its options, and what its operands may be.
struct Grammar {
    command: &'static str,
    options: &'static [&'static str],
    operands: &'static [&'static [&'static str]],
}

const IMAGES: &[&str] = &[
    "small.raw",
    "a.qcow2",
    "v2.qcow2",
    "sub.qcow2",
    "top.qcow2",
    "ov.qcow2",
    "snap.qcow2",
    "marks.qcow2",
    "zlib.qcow2",
    "orphan.qcow2",
    "dirty.qcow2",
    "corrupt.qcow2",
    "short.qcow2",
    "leak.qcow2",
    "odd.raw",
    "empty.raw",
    "nofile",
    "dir",
];

const GRAMMARS: &[Grammar] = &[
    Grammar {
        command: "info",
        options: &[
            "-f raw",
            "-f qcow2",
            "-f bogus",
            "--output=json",
            "--output=human",
            "--output=x",
            "--backing-chain",
            "-U",
            "-b",
            "--image-opts",
        ],
        operands: &[IMAGES],
    },
    Grammar {
        command: "map",
        options: &[
            "-f raw",
            "-f qcow2",
            "--output=json",
            "-s 64k",
            "-l 1M",
            "-s 2M",
            "-l x",
            "-U",
            "--object secret,id=s,data=a",
        ],
        operands: &[IMAGES],
    },
    Grammar {
        command: "check",
        options: &[
            "-f raw",
            "-f qcow2",
            "--output=json",
            "-q",
            "-r all",
            "-r leaks",
            "-T none",
            "-T x",
            "-U",
        ],
        operands: &[IMAGES],
    },
    Grammar {
        command: "create",
        options: &[
            "-f raw",
            "-f qcow2",
            "-q",
            "-u",
            "-b base.raw",
            "-b nofile",
            "-F raw",
            "-F qcow2",
            "-o cluster_size=4k",
            "-o size=1M",
            "-o compat=v2",
            "-o bogus",
            "-o preallocation=metadata",
            "-o refcount_bits=8",
        ],
        operands: &[&["out", "nodir/out", "small.raw"], &["1M", "0", "x", "3k", ""]],
    },
    Grammar {
        command: "convert",
        options: &[
            "-f raw",
            "-f qcow2",
            "-O raw",
            "-O qcow2",
            "-c",
            "-n",
            "-W",
            "-q",
            "-S 0",
            "-S 64k",
            "-m 4",
            "-m 99",
            "-o cluster_size=4k",
            "-o compat=v2",
            "-B base.raw",
            "-F raw",
            "-t none",
            "-T none",
            "-U",
        ],
        operands: &[IMAGES, &["out", "out", "out", "other.raw", "dir"]],
    },
    Grammar {
        command: "bitmap",
        options: &[
            "--add",
            "--remove",
            "--clear",
            "--enable",
            "--disable",
            "--merge second",
            "-g 64k",
            "-g 1",
            "-b marks.qcow2",
            "-F qcow2",
            "-f qcow2",
            "-f raw",
        ],
        operands: &[IMAGES, &["first", "second", "new", ""]],
    },
    Grammar {
        command: "amend",
        options: &[
            "-o compat=v2",
            "-o compat=v3",
            "-o size=8M",
            "-o lazy_refcounts=on",
            "-o refcount_bits=8",
            "-o bogus=1",
            "-f qcow2",
            "-f raw",
            "-q",
            "-t none",
        ],
        operands: &[IMAGES],
    },
    Grammar {
        command: "compare",
        options: &["-f raw", "-f qcow2", "-F raw", "-F qcow2", "-s", "-q", "-T none", "-U"],
        operands: &[IMAGES, IMAGES],
    },
    Grammar {
        command: "resize",
        options: &[
            "-f raw",
            "-f qcow2",
            "--shrink",
            "-q",
            "--preallocation=full",
            "--preallocation=metadata",
            "--preallocation=x",
        ],
        operands: &[IMAGES, &["1M", "+1M", "-1M", "x", "8M"]],
    },
    Grammar {
        command: "snapshot",
        options: &["-l", "-c new", "-a one", "-d two", "-d 1", "-q", "-U"],
        operands: &[IMAGES],
    },
    Grammar {
        command: "commit",
        options: &["-f qcow2", "-f raw", "-b base.qcow2", "-b base.raw", "-d", "-q", "-t none", "-r 1G"],
        operands: &[IMAGES],
    },
    Grammar {
        command: "rebase",
        options: &[
            "-f qcow2",
            "-b base.raw",
            "-b base.qcow2",
            "-b ''",
            "-F raw",
            "-F qcow2",
            "-u",
            "-c",
            "-q",
            "-U",
        ],
        operands: &[IMAGES],
    },
    Grammar {
        command: "measure",
        options: &[
            "-f raw",
            "-f qcow2",
            "-O raw",
            "-O qcow2",
            "--output=json",
            "--size 1G",
            "-o cluster_size=4k",
            "-o compat=v2",
            "-l one",
            "-U",
        ],
        operands: &[IMAGES],
    },
    Grammar {
        command: "dd",
        options: &[
            "-f raw", "-f qcow2", "-O raw", "-O qcow2", "bs=4k", "bs=1000", "count=3", "skip=2", "-U",
            "foo=1",
        ],
        operands: &[
            &["if=small.raw", "if=a.qcow2", "if=ov.qcow2", "if=nofile"],
            &["of=out", "of=other.raw", ""],
        ],
    },
];

/// All lines.
pub(super) fn cases() -> Vec<Case> {
    let mut random = StdRng::seed_from_u64(seed_or(20));
    GRAMMARS
        .iter()
        .flat_map(|grammar| (0..LINES).map(|_| grammar.line(&mut random)).collect::<Vec<_>>())
        .collect()
}

impl Grammar {
    fn line(&self, random: &mut StdRng) -> Case {
        let mut words = vec![self.command];
        for _ in 0..random.random_range(0..5) {
            words.extend(self.options.choose(random));
        }
        for choices in self.operands {
            words.extend(choices.choose(random).filter(|word| !word.is_empty()));
        }
        if random.random_ratio(1, 20) {
            words.extend(IMAGES.choose(random));
        }
        Case::from(words.join(" "))
    }
}
