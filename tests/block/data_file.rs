//! External data files: what is refused, who may use them, and how they grow.

use crate::fixture::{BACKENDS, Folder, Image};
use cowvm::block::options::{OpenOptions, Preallocation};
use cowvm::block::{Error, Kind};

const MIB: u64 = 1 << 20;
/// The header extension with the data file's name is the first: where its length and text stand.
const NAME_LEN: usize = 116;
const NAME: usize = 120;
/// Feature bits: the last bytes of their fields.
const INCOMPATIBLE: usize = 79;
const AUTOCLEAR: usize = 95;

fn options() -> OpenOptions {
    OpenOptions { format: Some("qcow2".into()), read_only: false, ..OpenOptions::default() }
}

fn refusal(folder: &Folder, name: &str, options: &OpenOptions) -> Error {
    match Image::try_open(BACKENDS[0], &folder.path(name), options) {
        Ok(_) => panic!("{name} was opened"),
        Err(error) => error,
    }
}

/// A folder with an image `a` whose data file is `data`.
fn folder(options: &str) -> Folder {
    let folder = Folder::new();
    folder.qemu_img(&format!("create -q -f qcow2 -o data_file=data{options} a 1M"));
    folder
}

/// Changes a copy of the image `a`.
fn patched(folder: &Folder, name: &str, patch: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(folder.path("a")).unwrap();
    patch(&mut bytes);
    std::fs::write(folder.path(name), &bytes).unwrap();
}

fn named(folder: &Folder, name: &str) {
    patched(folder, "named", |bytes| {
        bytes[NAME_LEN..NAME].copy_from_slice(&(name.len() as u32).to_be_bytes());
        bytes[NAME..NAME + 8].fill(0);
        bytes[NAME..NAME + name.len()].copy_from_slice(name.as_bytes());
    });
}

#[test]
fn a_data_file_that_is_not_there_is_named_with_a_remedy_and_another_one_can_be_given() {
    let folder = folder("");
    folder.qemu_io("qcow2", "a", &["write -P 7 64k 64k"]);
    std::fs::rename(folder.path("data"), folder.path("moved")).unwrap();
    let error = refusal(&folder, "a", &options());
    assert!(error.message().contains("data': No such file or directory"), "{error}");
    assert!(error.hint().unwrap().contains("data-file.filename="), "{error}");
    let moved = folder.path("moved").to_str().unwrap().to_owned();
    let given = OpenOptions { data_file: Some(moved.clone()), ..options() };
    let image = Image::try_open(BACKENDS[0], &folder.path("a"), &given).unwrap();
    assert_eq!(image.read(65_536, 512), [7; 512]);
    image.close();
    folder.qemu_img("create -q -f qcow2 plain 1M");
    let error = refusal(&folder, "plain", &given);
    assert_eq!(error.message(), "'data-file' can only be set for images with an external data file");
}

#[test]
fn names_in_an_image_are_names_of_files_beside_it_and_nothing_else() {
    let folder = folder("");
    for name in ["js:{}", "nbd:a", "file:", "fat:/"] {
        named(&folder, name);
        let error = refusal(&folder, "named", &options());
        assert_eq!(error.kind(), Kind::Io, "{name}: {error}");
    }
    for name in ["/dev", "."] {
        named(&folder, name);
        let error = refusal(&folder, "named", &OpenOptions { read_only: true, ..options() });
        assert!(error.message().contains("to be a regular file"), "{name}: {error}");
    }
    // A colon is a character like any other.
    std::fs::rename(folder.path("data"), folder.path("nbd:a")).unwrap();
    named(&folder, "nbd:a");
    Image::try_open(BACKENDS[0], &folder.path("named"), &options()).unwrap().close();
    named(&folder, "named");
    let error = refusal(&folder, "named", &options());
    assert!(error.message().contains("is in use as an image"), "{error}");
}

#[test]
fn headers_that_contradict_themselves_are_refused_in_qemus_words() {
    let folder = folder("");
    patched(&folder, "noname", |bytes| bytes[NAME_LEN - 4..NAME_LEN].fill(0x55));
    assert_eq!(refusal(&folder, "noname", &options()).message(), "'data-file' is required for this image");
    patched(&folder, "nobit", |bytes| (bytes[INCOMPATIBLE], bytes[AUTOCLEAR]) = (0, 2));
    assert_eq!(refusal(&folder, "nobit", &options()).message(), "data-file-raw requires a data file");
}

#[test]
fn entries_that_no_data_file_can_have_are_corruption() {
    let folder = folder(",preallocation=metadata");
    let bytes = std::fs::read(folder.path("a")).unwrap();
    let field = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l2 = (field(field(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    for (entry, words) in [(1u64 << 63 | 0x30000, "does not match guest"), (1 << 62 | 0x10000, "compressed")]
    {
        patched(&folder, "bad", |bytes| bytes[l2 + 8..l2 + 16].copy_from_slice(&entry.to_be_bytes()));
        let image = Image::open(BACKENDS[0], &folder.path("bad"), "qcow2", true);
        let read = image.engine.block_on(image.node.read_bytes(65_536, 512)).unwrap();
        let error = read.unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.message().contains(words), "{error}");
    }
}

#[test]
fn a_second_user_of_a_data_file_is_excluded() {
    let folder = folder("");
    std::fs::copy(folder.path("a"), folder.path("b")).unwrap();
    let image = Image::open(BACKENDS[0], &folder.path("a"), "qcow2", false);
    for read_only in [true, false] {
        let error = refusal(&folder, "b", &OpenOptions { read_only, ..options() });
        assert_eq!(error.kind(), Kind::Locked);
        assert!(error.message().contains("data]?"), "{error}");
    }
    image.close();
    Image::open(BACKENDS[0], &folder.path("b"), "qcow2", false).close();
}

#[test]
fn growing_an_image_grows_its_data_file_and_shows_zeros_whatever_stood_there() {
    use Preallocation::{Falloc, Full, Metadata, Off};
    for raw in ["", ",data_file_raw=on"] {
        for preallocation in [Off, Metadata, Falloc, Full] {
            let folder = folder(raw);
            folder.qemu_io("qcow2", "a", &["write -P 9 0 1M"]);
            // Behind the disk's end stands something else.
            let mut data = std::fs::read(folder.path("data")).unwrap();
            data.resize(3 << 19, 0x55);
            std::fs::write(folder.path("data"), &data).unwrap();
            let image = Image::open(BACKENDS[0], &folder.path("a"), "qcow2", false);
            image.engine.block_on(image.node.truncate(2 * MIB, preallocation)).unwrap().unwrap();
            let expect = [vec![9; MIB as usize], vec![0; MIB as usize]].concat();
            assert!(image.read(0, 2 << 20) == expect, "{raw} {preallocation:?}");
            image.close();
            folder.qemu_img("check -q a");
            assert!(folder.content("qcow2", "a") == expect, "{raw} {preallocation:?}");
            assert!(std::fs::read(folder.path("data")).unwrap() == expect, "{raw} {preallocation:?}");
        }
    }
}

#[test]
fn shrinking_an_image_cuts_its_data_file_and_what_stood_there_never_comes_back() {
    for raw in ["", ",data_file_raw=on"] {
        let folder = folder(raw);
        folder.qemu_io("qcow2", "a", &["write -P 9 0 1M"]);
        let image = Image::open(BACKENDS[0], &folder.path("a"), "qcow2", false);
        let resize = |size| {
            image.engine.block_on(image.node.truncate(size, Preallocation::Off)).unwrap().unwrap();
        };
        resize(300_032);
        assert_eq!(std::fs::metadata(folder.path("data")).unwrap().len(), 300_032, "{raw}");
        resize(MIB);
        image.close();
        let expect = [vec![9; 300_032], vec![0; MIB as usize - 300_032]].concat();
        folder.qemu_img("check -q a");
        assert!(folder.content("qcow2", "a") == expect, "{raw}");
    }
}

#[test]
fn a_raw_data_file_stays_one_and_other_autoclear_features_do_not() {
    let folder = folder(",data_file_raw=on");
    patched(&folder, "named", |bytes| bytes[AUTOCLEAR] |= 0x80);
    let image = Image::open(BACKENDS[0], &folder.path("named"), "qcow2", false);
    image.write(5, b"x");
    image.close();
    assert_eq!(std::fs::read(folder.path("named")).unwrap()[AUTOCLEAR], 2);
}

#[test]
fn space_of_tables_is_given_back_where_they_were_and_not_in_the_data_file() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 -o cluster_size=4k,data_file=data a 8M");
    folder.qemu_io("qcow2", "a", &["write -P 5 0 8M"]);
    let unmap = OpenOptions { unmap: true, ..options() };
    let image = Image::open_with(BACKENDS[0], &folder.path("a"), &unmap);
    image.engine.block_on(image.node.truncate(2 * MIB, Preallocation::Off)).unwrap().unwrap();
    image.close();
    assert!(std::fs::read(folder.path("data")).unwrap() == vec![5; 2 << 20]);
}
