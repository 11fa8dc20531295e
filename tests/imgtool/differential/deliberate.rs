//! Where ours differs on purpose. Each reason stands in docs/imgtool.md in the same words.

use super::Patch;
use std::process::Output;

/// A line that was run, and what both said.
pub(super) struct Run<'a> {
    pub(super) line: &'a str,
    pub(super) real: &'a Output,
    pub(super) ours: &'a Output,
    pub(super) patch: Option<&'a Patch>,
}

impl Run<'_> {
    fn has_word(&self, words: &[&str]) -> bool {
        self.line.split(' ').any(|word| words.contains(&word))
    }

    fn real_says(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.real.stderr).contains(text)
    }

    fn ours_says(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.ours.stderr).contains(text)
    }

    /// The size in the header is patched, and no multiple of a sector.
    fn has_odd_size(&self) -> bool {
        let size = self.patch.filter(|patch| patch.offset == 24).and_then(|patch| patch.bytes.last());
        size.is_some_and(|byte| *byte != 0)
    }

    fn real_prints(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.real.stdout).contains(text)
    }
}

/// A deliberate difference.
pub(super) struct Difference {
    is_about: fn(&Run) -> bool,
    /// What is not compared.
    excused: Excused,
    /// Why.
    pub(super) reason: &'static str,
}

/// What need not be the same.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Excused {
    pub(super) status: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) files: bool,
    /// The steps of progress between the first and the last.
    pub(super) steps: bool,
    /// What is allocated for what is in the files, and where.
    pub(super) allocation: bool,
}

const NOTHING: Excused =
    Excused { status: false, stdout: false, stderr: false, files: false, steps: false, allocation: false };
const ALL: Excused =
    Excused { status: true, stdout: true, stderr: true, files: true, steps: true, allocation: true };

/// Refusals of headers that break a rule, and that qemu-img lets pass or tells otherwise.
const STRICT: &[&str] = &[
    "Table at offset 0",
    "Snapshot table is too large",
    "Snapshot L1 table offset invalid",
    "data-file-raw requires a data file",
    "Invalid backing file offset",
];

/// All of them.
pub(super) const LIST: &[Difference] = &[
    Difference {
        is_about: |run| run.real_prints("Usage:\n") || run.real_prints("qemu-img version"),
        excused: Excused { stdout: true, ..NOTHING },
        reason: "The texts of `--help` and `--version` are our own",
    },
    Difference {
        is_about: |run| run.ours_says("A parameter is unexpected"),
        excused: Excused { stderr: true, ..NOTHING },
        reason: "What stands behind `data=` of a secret is never shown, as it may be a part of it",
    },
    Difference {
        is_about: |run| run.has_word(&["-T", "--trace"]) && run.line.contains("bdrv"),
        excused: Excused { stderr: true, files: true, ..NOTHING },
        reason: "The names of events for `-T` are our own",
    },
    Difference {
        is_about: |run| run.ours_says("not supported yet"),
        excused: ALL,
        reason: "What is not there yet is refused by name",
    },
    Difference {
        is_about: |run| run.has_word(&["vdi", "vmdk", "foreign.vmdk", "old.qcow"]),
        excused: ALL,
        reason: "Images of formats other than raw, qcow2 and LUKS are not opened",
    },
    Difference {
        is_about: |run| run.line.contains("nbd:") || run.has_word(&["remote.qcow2"]),
        excused: Excused { stderr: true, ..NOTHING },
        reason: "New images with a network protocol in their names are refused, and so are protocols other than NBD",
    },
    Difference {
        is_about: |run| {
            run.has_word(&["text.qcow2"])
                || run.ours_says("Unknown driver 'qcow'")
                || run.ours_says("Unsupported qcow2 version 0")
        },
        excused: ALL,
        reason: "A file that begins with the magic number of a format is never taken for a raw disk, however short \
                 it is, or however wrong its version",
    },
    Difference {
        is_about: |run| STRICT.iter().any(|refusal| run.ours_says(refusal)),
        excused: ALL,
        reason: "A header that breaks a rule of the format is refused, where qemu-img reads on",
    },
    Difference {
        is_about: |run| run.has_odd_size(),
        excused: Excused { stdout: true, files: true, ..NOTHING },
        reason: "The size of a qcow2 disk that is no multiple of 512 is rounded up, not down",
    },
    Difference {
        is_about: |run| {
            let endless = run.real.stderr.len() > 1 << 20;
            endless || run.real_says("mage is corrupt") || run.real_says("Marking image as corrupt")
        },
        excused: Excused { stderr: true, ..NOTHING },
        reason: "What is said of damaged metadata is our own",
    },
    Difference {
        is_about: |run| !run.real.status.success() && run.has_word(&["create", "convert", "dd"]),
        excused: Excused { files: true, ..NOTHING },
        reason: "A refused `create`, `convert` or `dd` leaves what was there untouched",
    },
    Difference {
        is_about: |run| run.line.contains("data_file=") && run.has_word(&["dir/y"]),
        excused: Excused { files: true, stderr: true, ..NOTHING },
        reason: "The name of a data file is relative to the folder of its image, as that of a backing file is",
    },
    Difference {
        is_about: |run| run.ours_says("is not a multiple of what direct I/O needs"),
        excused: Excused { status: true, stderr: true, ..NOTHING },
        reason: "A raw image whose size is no multiple of what direct I/O needs is not opened for writing with \
                 `cache=none`",
    },
    Difference {
        is_about: |run| run.has_word(&["short.qcow2"]) && run.has_word(&["-r"]),
        excused: ALL,
        reason: "A repair of a file that was cut off before its refcounts goes on where qemu-img's gives up",
    },
    Difference {
        is_about: |run| run.ours_says("Backing format cannot be used without backing file"),
        excused: Excused { stderr: true, ..NOTHING },
        reason: "Options of a new image that do not go together are refused before the host is asked for anything",
    },
    Difference {
        is_about: |run| run.real_says("#block"),
        excused: Excused { stderr: true, ..NOTHING },
        reason: "Where qemu-img names a node by a random number (`#block131`), the name of its file stands",
    },
    Difference {
        is_about: |run| {
            let cut_otherwise = run.has_word(&["commit", "compare", "convert", "rebase"]);
            run.has_word(&["-p"]) && (cut_otherwise || run.line.contains("refcount_bits"))
        },
        excused: Excused { steps: true, ..NOTHING },
        reason: "The steps of `-p` between 0 and 100 % are those of the work, which `commit`, `compare`, `convert`, \
                 `rebase` and `amend -o refcount_bits` cut otherwise",
    },
    Difference {
        is_about: |run| run.has_word(&["commit", "dd", "rebase"]),
        excused: Excused { allocation: true, ..NOTHING },
        reason: "`commit`, `dd` and `rebase` leave zeros holes, or write zero clusters, where qemu-img writes them as \
                 data or has more zero clusters",
    },
    Difference {
        is_about: |run| run.has_word(&["resize"]) && run.line.contains("--preallocation="),
        excused: Excused { allocation: true, ..NOTHING },
        reason: "`resize --preallocation` takes clusters that are free within the file first",
    },
    Difference {
        is_about: |run| run.has_word(&["amend"]) && run.ours_says("persistent bitmaps"),
        excused: ALL,
        reason: "An image with bitmaps is not made one of version 2, which has none: qemu-img loses them, and their \
                 clusters",
    },
    Difference {
        is_about: |run| {
            let bench = run.has_word(&["bench"]) && run.has_word(&["--quiet"]);
            let measure = run.has_word(&["measure"]) && run.has_word(&["-s"]);
            let snapshot = ["--create", "--apply", "--delete"];
            bench || measure || snapshot.iter().any(|name| run.line.contains(name))
        },
        excused: ALL,
        reason: "Options that qemu-img's help promises and its parser refuses do what the help says: `bench --quiet`, \
                 `measure -s SIZE`, and `snapshot --create NAME`, `--apply NAME` and `--delete NAME`",
    },
    Difference {
        is_about: |run| run.ours_says("need too much memory"),
        excused: ALL,
        reason: "`bench` refuses requests in flight of more than 4 GiB, where qemu-img aborts",
    },
    Difference {
        is_about: |run| run.has_word(&["measure"]) && run.line.contains("preallocation=metadata"),
        excused: Excused { stdout: true, ..NOTHING },
        reason: "`measure -o preallocation=metadata` requires the length that the file has, holes and all",
    },
    Difference {
        is_about: |run| {
            let refused = ["backing format must be specified", "Invalid format name"];
            run.has_word(&["rebase"]) && refused.iter().any(|refusal| run.ours_says(refusal))
        },
        excused: Excused { files: true, ..NOTHING },
        reason: "`rebase` refuses a missing or wrong format of a backing file before it writes anything",
    },
    Difference {
        is_about: |run| {
            run.has_word(&["snapshot"]) && run.real_says("WARNING: Image format was not specified")
        },
        excused: Excused { stderr: true, ..NOTHING },
        reason: "That a format was guessed is said once, also where qemu-img opens the image twice",
    },
];

/// What of a line is not compared.
pub(super) fn excuses(run: &Run) -> Excused {
    let about = LIST.iter().filter(|difference| (difference.is_about)(run));
    about.map(|difference| difference.excused).fold(NOTHING, |a, b| Excused {
        status: a.status | b.status,
        stdout: a.stdout | b.stdout,
        stderr: a.stderr | b.stderr,
        files: a.files | b.files,
        steps: a.steps | b.steps,
        allocation: a.allocation | b.allocation,
    })
}
