//! Two tools, equal folders.

use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The real one.
const REAL: &str = "qemu-img";

/// A folder with images made by QEMU's tools; it goes away with the test.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        // The name that it is called by makes cowvm a drop-in.
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cowvm"), folder.path().join("bin/qemu-img")).unwrap();
        Lab { folder }
    }

    /// The folder that commands run in.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("a").join(name)
    }

    /// The same file in the copy of the folder.
    pub(crate) fn twin(&self, name: &str) -> PathBuf {
        self.folder.path().join("b").join(name)
    }

    /// Runs the real qemu-img, which must succeed.
    pub(crate) fn qemu_img(&self, line: &str) -> &Lab {
        must(&run(Path::new(REAL), &words(line), &self.path("")), line);
        self
    }

    /// Runs qemu-io commands on an image.
    pub(crate) fn qemu_io(&self, format: &str, image: &str, commands: &[&str]) -> &Lab {
        let mut line = vec!["-f".to_owned(), format.to_owned()];
        line.extend(commands.iter().flat_map(|command| ["-c".to_owned(), (*command).to_owned()]));
        line.push(image.to_owned());
        must(&run(Path::new("qemu-io"), &line, &self.path("")), image);
        self
    }

    /// Runs qemu-io commands on an image that takes the passphrase "abc".
    pub(crate) fn qemu_io_with_key(&self, image: &str, commands: &[&str]) -> &Lab {
        let mut line = words("--object secret,id=s,data=abc --image-opts");
        line.extend(commands.iter().flat_map(|command| ["-c".to_owned(), (*command).to_owned()]));
        line.push(image.to_owned());
        must(&run(Path::new("qemu-io"), &line, &self.path("")), image);
        self
    }

    /// Ours, under the real one's name.
    pub(crate) fn tool(&self) -> PathBuf {
        self.folder.path().join("bin/qemu-img")
    }

    /// Runs the real qemu-img, however it ends.
    pub(crate) fn real(&self, line: &str) -> Output {
        run(Path::new(REAL), &words(line), &self.path(""))
    }

    /// Runs ours.
    pub(crate) fn ours(&self, line: &str) -> Output {
        run(&self.tool(), &words(line), &self.path(""))
    }

    /// Runs each line with both tools in the same folder; they must only read.
    pub(crate) fn same(&self, lines: &[&str]) {
        let mut differences = String::new();
        for line in lines {
            differences += &compare(line, &self.real(line), &self.ours(line));
        }
        assert!(differences.is_empty(), "{differences}");
    }

    /// Runs each line with both tools, each in a fresh copy of the folder. Where it succeeds and names
    /// `output`, both files must be the same image.
    pub(crate) fn same_result(&self, lines: &[&str], output: Option<&str>) {
        self.same_results(lines, &output.into_iter().collect::<Vec<_>>());
    }

    /// As [`Lab::same_result`], of several files.
    pub(crate) fn same_results(&self, lines: &[&str], outputs: &[&str]) {
        let mut differences = String::new();
        let fresh = self.folder.path().join("fresh");
        copy_folder(&self.path(""), &fresh);
        for line in lines {
            copy_folder(&fresh, &self.path(""));
            copy_folder(&fresh, &self.twin(""));
            let ours = run(&self.tool(), &words(line), &self.path(""));
            let real = run(Path::new(REAL), &words(line), &self.twin(""));
            differences += &compare(line, &real, &ours);
            if real.status.success() && ours.status.success() {
                outputs.iter().for_each(|output| differences += &self.compare_images(line, output));
            }
        }
        copy_folder(&fresh, &self.path(""));
        assert!(differences.is_empty(), "{differences}");
    }

    /// What qemu-img finds different between our image and its own.
    fn compare_images(&self, line: &str, name: &str) -> String {
        let (mut ours, mut real) = (self.facts(&self.path(""), name), self.facts(&self.twin(""), name));
        let format = ours["format"].as_str().unwrap().to_owned();
        let mut differences = String::new();
        for facts in [&mut ours, &mut real] {
            let facts = facts.as_object_mut().unwrap();
            facts.remove("children");
            facts.remove("actual-size");
        }
        if ours != real {
            writeln!(differences, "{line}: {name}:\n  real {real}\n  ours {ours}").unwrap();
        }
        // qemu-img looks for data files in the folder where it runs: each image is read in its own.
        let has_data_file = !ours["format-specific"]["data"]["data-file"].is_null();
        let (kind, image) = if has_data_file { ("raw", "content") } else { (&*format, name) };
        for folder in [self.path(""), self.twin("")].iter().filter(|_| has_data_file) {
            let converted = run(Path::new(REAL), &words(&format!("convert -O raw {name} content")), folder);
            assert!(converted.status.success(), "{line}: {}", text(&converted));
        }
        let (a, b) = (self.path(image), self.twin(image));
        let both = format!("compare -f {kind} -F {kind} {} {}", a.display(), b.display());
        let compared = run(Path::new(REAL), &words(&both), &self.path(""));
        if !compared.status.success() {
            writeln!(differences, "{line}: {name}: {}", text(&compared)).unwrap();
        }
        if ours["format"] == "qcow2" {
            let checked = run(Path::new(REAL), &words(&format!("check {name}")), &self.path(""));
            if !checked.status.success() {
                writeln!(differences, "{line}: {name}: {}", text(&checked)).unwrap();
            }
        }
        differences
    }

    fn facts(&self, folder: &Path, name: &str) -> serde_json::Value {
        let line = format!("info -U --output=json {name}");
        let output = run(Path::new(REAL), &words(&line), folder);
        must(&output, &line);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs ours where no file can become longer than so many KiB.
    pub(crate) fn ours_with_limit(&self, kib: u64, line: &str) -> Output {
        let program = self.folder.path().join("bin/qemu-img");
        let script = format!("trap '' XFSZ; ulimit -f {}; exec {} {line}", 2 * kib, program.display());
        run(Path::new("sh"), &["-c".to_owned(), script], &self.path(""))
    }

    /// Starts ours, and kills it when it has said `text` on standard output.
    pub(crate) fn ours_dies_at(&self, line: &str, text: &str) {
        let mut child = command(&self.folder.path().join("bin/qemu-img"), &words(line), &self.path(""))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut byte) = (Vec::new(), [0]);
        while !String::from_utf8_lossy(&said).contains(text) {
            child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Where an image has data and where zeros, in the words of the real qemu-img's map, after a line that was run by the
    /// real one or by ours in a copy of the folder.
    pub(crate) fn shape_after(&self, line: &str, name: &str, real: bool) -> Vec<String> {
        let fresh = self.folder.path().join("fresh");
        copy_folder(&self.path(""), &fresh);
        let program = if real { PathBuf::from(REAL) } else { self.tool() };
        run(&program, &words(line), &self.path(""));
        let map = self.qemu_map(name);
        copy_folder(&fresh, &self.path(""));
        let mut shape: Vec<(u64, String)> = Vec::new();
        for extent in map.as_array().unwrap() {
            let state = format!(
                "{} {} {} {}",
                extent["present"], extent["zero"], extent["data"], extent["compressed"]
            );
            let len = extent["length"].as_u64().unwrap();
            match shape.last_mut() {
                Some((total, last)) if *last == state => *total += len,
                _ => shape.push((len, state)),
            }
        }
        shape.into_iter().map(|(len, state)| format!("{len} {state}")).collect()
    }

    /// What the real qemu-img's map of an image says.
    pub(crate) fn qemu_map(&self, name: &str) -> serde_json::Value {
        let line = format!("map --output=json {name}");
        let output = self.real(&line);
        must(&output, &line);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The disk of an image, as the real qemu-img sees it.
    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        self.qemu_img(&format!("convert -O raw {name} content.raw"));
        let bytes = std::fs::read(self.path("content.raw")).unwrap();
        std::fs::remove_file(self.path("content.raw")).unwrap();
        bytes
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> &Lab {
        std::fs::write(self.path(name), bytes).unwrap();
        self
    }

    /// Changes a copy of an image.
    pub(crate) fn patched(&self, from: &str, to: &str, patch: impl FnOnce(&mut Vec<u8>)) -> &Lab {
        let mut bytes = std::fs::read(self.path(from)).unwrap();
        patch(&mut bytes);
        self.write(to, &bytes)
    }
}

/// Splits at spaces; `''` is an empty word.
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split(' ').map(|word| if word == "''" { String::new() } else { word.to_owned() }).collect()
}

fn run(program: &Path, words: &[String], folder: &Path) -> Output {
    command(program, words, folder).output().unwrap()
}

fn command(program: &Path, words: &[String], folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(words).current_dir(folder).env("LC_ALL", "C").env("TZ", "Asia/Kolkata");
    command
}

fn must(output: &Output, line: &str) {
    assert!(output.status.success(), "{line}: {}", text(output));
}

fn text(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    format!("{}\n--- stdout\n{out}--- stderr\n{err}", output.status)
}

fn compare(line: &str, real: &Output, ours: &Output) -> String {
    if (real.status, &real.stdout, &real.stderr) == (ours.status, &ours.stdout, &ours.stderr) {
        return String::new();
    }
    format!("\n===== {line}\n----- real: {}----- ours: {}", text(real), text(ours))
}

/// Makes `to` a copy of `from`, holes included.
fn copy_folder(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
