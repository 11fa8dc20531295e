//! What an image of the real qemu-img goes through: it is read, written at random, given snapshots and other
//! sizes, and amended. After every stage `qemu-img check` must find nothing, and the real qemu-img must read the
//! disk and every snapshot as a plain array of bytes says.

use crate::fixture::{BACKENDS, Folder, Image};
use cowvm::block::aio::Backend;
use cowvm::block::graph::amend::AmendOptions;
use cowvm::block::graph::bitmaps::BitmapInfo;
use cowvm::block::graph::driver::Specifics;
use cowvm::block::graph::snapshots::{NewSnapshot, Selector, Snapshots};
use cowvm::block::options::{OpenOptions, Preallocation};
use cowvm::block::secret::Secrets;
use cowvm::block::{Error, Result};
use cowvm::util::keyval::Options;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;

/// The passphrase of encrypted images, for qemu-img and for us.
pub(crate) const SECRET: &str = "secret,id=s,data=abc";
/// The snapshot that we make.
const OURS: &str = "ours";

/// An image to be judged, and what QEMU refuses to do with it.
#[derive(Default)]
pub(crate) struct Variant {
    /// Kind and options: printed when it fails.
    pub(crate) name: String,
    /// Names of the snapshots that it has.
    pub(crate) snapshots: &'static [&'static str],
    /// It is encrypted with [`SECRET`].
    pub(crate) encrypted: bool,
    /// What its data file must hold: the disk as it is.
    pub(crate) raw_data: Option<&'static str>,
    /// Why it can have no snapshot.
    pub(crate) no_snapshot: Option<&'static str>,
    /// Why no snapshot can be applied.
    pub(crate) no_apply: Option<&'static str>,
    /// Why its size cannot be changed.
    pub(crate) no_resize: Option<&'static str>,
}

/// A variant on its way through the stages.
struct Case {
    variant: Variant,
    folder: Folder,
    backend: Backend,
    rng: StdRng,
    /// The disk as it must be.
    model: Vec<u8>,
    /// Every snapshot as it must be, in the order of the image.
    kept: Vec<(String, Vec<u8>)>,
    /// What was changed so far.
    changed: Vec<Range<u64>>,
}

/// Makes `disk` in a folder of its own and takes it through all stages.
pub(crate) fn judge(variant: Variant, make: impl FnOnce(&Folder)) {
    let seed = rand::random();
    println!("{}: seed {seed}", variant.name);
    let folder = Folder::new();
    make(&folder);
    let mut case = Case::new(variant, folder, seed);
    case.reads_the_same();
    case.change();
    case.verify("written");
    case.snapshot();
    case.verify("with a snapshot");
    case.grow();
    case.verify("grown");
    case.apply();
    case.verify("with a snapshot applied");
    case.delete();
    case.grow();
    case.verify("with snapshots deleted");
    case.shrink();
    case.verify("shrunk");
    case.amend();
    case.verify("amended");
}

impl Case {
    fn new(variant: Variant, folder: Folder, seed: u64) -> Case {
        let mut case = Case {
            variant,
            folder,
            backend: BACKENDS[seed as usize % 2],
            rng: StdRng::seed_from_u64(seed),
            model: Vec::new(),
            kept: Vec::new(),
            changed: Vec::new(),
        };
        case.model = case.content("");
        let read = |tag: &&str| (tag.to_string(), case.snapshot_content(tag));
        case.kept = case.variant.snapshots.iter().map(read).collect();
        case
    }

    /// The image `name` in words of a qemu-img command.
    fn described(&self, name: &str) -> String {
        match self.variant.encrypted {
            true => encrypted(name),
            false => format!("--image-opts driver=qcow2,file.filename={name}"),
        }
    }

    /// What qemu-img reads, the disk or the snapshot that `which` chooses.
    fn content(&self, which: &str) -> Vec<u8> {
        self.folder.qemu_img(&format!("convert -O raw{which} {} content", self.described("disk")));
        std::fs::read(self.folder.path("content")).unwrap()
    }

    fn snapshot_content(&self, tag: &str) -> Vec<u8> {
        self.content(&format!(" -l snapshot.name={tag}"))
    }

    fn open(&self, read_only: bool) -> Image {
        let mut options =
            OpenOptions { format: Some("qcow2".into()), read_only, unmap: true, ..OpenOptions::default() };
        if self.variant.encrypted {
            options.secrets = Secrets::default();
            options.secrets.define(SECRET).unwrap();
            options.driver = Options::parse("encrypt.key-secret=s", None);
        }
        Image::open_with(self.backend, &self.folder.path("disk"), &options)
    }

    fn reads_the_same(&self) {
        let (name, image) = (&self.variant.name, self.open(true));
        assert_eq!(image.node.size(), self.model.len() as u64, "{name}");
        for start in (0..self.model.len()).step_by(700_001) {
            let len = 700_001.min(self.model.len() - start);
            assert!(image.read(start as u64, len) == self.model[start..start + len], "{name}: at {start}");
        }
        image.close();
    }

    /// The real qemu-img finds nothing and reads the disk, its raw data file, and all snapshots as they must be.
    fn verify(&self, stage: &str) {
        let name = format!("{}, {stage}", self.variant.name);
        println!("{name}");
        self.folder.qemu_img(&format!("check -q {}", self.described("disk")));
        std::fs::write(self.folder.path("model"), &self.model).unwrap();
        let model = "driver=raw,file.filename=model";
        let told = self.folder.qemu_img(&format!("compare {} {model}", self.described("disk")));
        // It warns of another size, where the longer image ends with zeros.
        assert_eq!(told, "Images are identical.\n", "{name}");
        if let Some(data) = self.variant.raw_data {
            assert!(std::fs::read(self.folder.path(data)).unwrap() == self.model, "{name}: {data}");
        }
        for (tag, content) in &self.kept {
            // qemu-img shows snapshots with the size of the disk.
            let theirs = self.snapshot_content(tag);
            let both = theirs.len().min(content.len());
            assert!(theirs[..both] == content[..both], "{name}: snapshot {tag} changed");
        }
    }

    /// Writes, zeros and discards at random.
    fn change(&mut self) {
        let image = self.open(false);
        for _ in 0..30 {
            let at = self.rng.random_range(0..self.model.len());
            let len = self.rng.random_range(1..=150_000.min(self.model.len() - at));
            self.step(&image, at..at + len);
        }
        self.bitmaps_note_changes(&image);
        image.close();
        let image = self.open(true);
        self.bitmaps_note_changes(&image);
        image.close();
    }

    fn step(&mut self, image: &Image, range: Range<usize>) {
        let (at, len) = (range.start as u64, range.len() as u64);
        match self.rng.random_range(0..10) {
            0 => return image.flush(),
            1 | 2 => {
                image.write_zeroes(at, len, self.rng.random());
                self.model[range].fill(0);
            }
            3 => {
                image.discard(at, len);
                let now = image.read(at, range.len());
                let mut bytes = now.iter().zip(&self.model[range.clone()]);
                assert!(bytes.all(|(now, old)| *now == 0 || now == old), "{range:?} discarded");
                self.model[range].copy_from_slice(&now);
            }
            _ => {
                self.rng.fill(&mut self.model[range.clone()]);
                image.write(at, &self.model[range]);
            }
        }
        self.changed.push(at..at + len);
    }

    /// Every enabled bitmap has all that was changed.
    fn bitmaps_note_changes(&self, image: &Image) {
        for bitmap in bitmaps(image).iter().filter(|bitmap| bitmap.enabled && !bitmap.inconsistent) {
            let all = image.node.driver().bitmaps().unwrap().dirty(&bitmap.name, 0, usize::MAX);
            let dirty = all_of(image, all).unwrap();
            for range in &self.changed {
                let noted = dirty.iter().any(|dirty| dirty.start <= range.start && range.end <= dirty.end);
                assert!(noted, "{}: {range:?} is missing in {bitmap:?}", self.variant.name);
            }
        }
    }

    /// Makes a snapshot, changes the disk, and reads all snapshots through the image itself.
    fn snapshot(&mut self) {
        let image = self.open(false);
        let new = NewSnapshot { name: OURS.into(), date: (1_700_000_000, 0), ..NewSnapshot::default() };
        let done = all_of(&image, snapshots(&image).create(&new));
        image.close();
        if let Some(words) = self.variant.no_snapshot {
            return self.refused(done.unwrap_err(), words, "snapshot -c other");
        }
        done.unwrap();
        self.kept.push((OURS.into(), self.model.clone()));
        self.change();
        let image = self.open(true);
        for (tag, content) in &self.kept {
            let view = all_of(&image, snapshots(&image).view(&Selector::Name(tag.clone()))).unwrap();
            let bytes = all_of(&image, view.read_bytes(0, view.size() as usize)).unwrap();
            assert!(bytes == *content, "{}: view of {tag}", self.variant.name);
        }
        image.close();
    }

    /// Makes the disk longer by a part of a cluster and more.
    fn grow(&mut self) {
        let more = 512 * self.rng.random_range(1..3000);
        self.resize(self.model.len() + more);
    }

    /// Cuts off a quarter of the disk, or a bit more.
    fn shrink(&mut self) {
        let more = self.rng.random_range(0..100);
        self.resize((self.model.len() / 512 * 3 / 4 - more) * 512);
    }

    /// Another version, where it is old, or another width of refcounts.
    fn amend(&mut self) {
        let image = self.open(false);
        let Some(Specifics::Qcow2(facts)) = image.node.driver().specifics() else { panic!("no qcow2 image") };
        let width = if facts.refcount_bits == 64 { 16 } else { 2 * u64::from(facts.refcount_bits) };
        let options = match facts.compat {
            "0.10" => AmendOptions { compat: Some("1.1".into()), ..AmendOptions::default() },
            _ => AmendOptions { refcount_bits: Some(width), ..AmendOptions::default() },
        };
        let done = all_of(&image, image.node.driver().amender().unwrap().amend(&options));
        image.close();
        done.unwrap();
        self.change();
    }

    fn resize(&mut self, size: usize) {
        let image = self.open(false);
        let old = image.node.driver().specifics();
        let done = all_of(&image, image.node.truncate(size as u64, Preallocation::Off));
        image.close();
        let Some(Specifics::Qcow2(facts)) = old else { panic!("no qcow2 image") };
        let narrow = (facts.compat == "0.10" && !self.kept.is_empty())
            .then_some("Can't resize a v2 image which has snapshots");
        match self.variant.no_resize.or(narrow) {
            Some(words) => self.refused(done.unwrap_err(), words, "resize SIZE"),
            None => {
                done.unwrap();
                self.model.resize(size, 0);
                self.changed.retain(|range| range.end <= size as u64);
                self.change();
            }
        }
    }

    /// Makes the disk what it was when we made the snapshot.
    fn apply(&mut self) {
        let Some((_, content)) = self.kept.iter().find(|(tag, _)| tag == OURS).cloned() else { return };
        let image = self.open(false);
        let done = all_of(&image, snapshots(&image).apply(&Selector::Name(OURS.into())));
        image.close();
        if let Some(words) = self.variant.no_apply {
            return self.refused(done.unwrap_err(), words, "snapshot -a ours");
        }
        done.unwrap();
        self.model = content;
        self.change();
    }

    /// Deletes our snapshot and the first of qemu-img's.
    fn delete(&mut self) {
        let last = self.kept.pop();
        let first = (!self.kept.is_empty()).then(|| self.kept.remove(0));
        let image = self.open(false);
        for (tag, _) in last.into_iter().chain(first) {
            all_of(&image, snapshots(&image).delete(&Selector::Name(tag))).unwrap();
        }
        image.close();
    }

    /// We refused it by name, and so does qemu-img.
    fn refused(&self, error: Error, words: &str, line: &str) {
        assert!(error.message().contains(words), "{}: {error}", self.variant.name);
        std::fs::copy(self.folder.path("disk"), self.folder.path("copy")).unwrap();
        let copy = self.described("copy");
        self.folder.qemu_img_refuses(&match line {
            "resize SIZE" => format!("resize {copy} +1M"),
            line => format!("{line} {copy}"),
        });
    }
}

/// An encrypted image in words of a qemu-img command.
pub(crate) fn encrypted(name: &str) -> String {
    format!("--object {SECRET} --image-opts driver=qcow2,file.filename={name},encrypt.key-secret=s")
}

fn all_of<T>(image: &Image, work: impl Future<Output = Result<T>>) -> Result<T> {
    image.engine.block_on(work).unwrap()
}

fn snapshots(image: &Image) -> &dyn Snapshots {
    image.node.driver().snapshots().unwrap()
}

fn bitmaps(image: &Image) -> Vec<BitmapInfo> {
    image.node.driver().bitmaps().map_or_else(Vec::new, |bitmaps| bitmaps.list())
}
