//! What is refused at open, and in which words.

use crate::fixture::{BACKENDS, Folder, Image};
use cowvm::block::options::{CacheMode, OpenOptions};
use cowvm::block::{Buffer, Kind};

fn refusal(folder: &Folder, name: &str, options: &OpenOptions) -> cowvm::block::Error {
    Image::try_open(BACKENDS[0], &folder.path(name), options)
        .err()
        .unwrap_or_else(|| panic!("{name} was opened"))
}

#[test]
fn what_is_no_image_file_is_refused_with_its_name_and_a_remedy() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("folder")).unwrap();
    let fifo = std::ffi::CString::new(folder.path("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a valid C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    std::fs::write(folder.path("a.vmdk"), b"KDMV\x01\0\0\0").unwrap();
    std::fs::write(folder.path("plain"), vec![0; 4096]).unwrap();
    let probing = OpenOptions::default();
    let qcow2 = OpenOptions { format: Some("qcow2".into()), ..OpenOptions::default() };
    for (name, options, words) in [
        ("missing", &probing, "No such file or directory"),
        ("folder", &probing, "to be a regular file"),
        ("fifo", &probing, "to be a regular file"),
        ("a.vmdk", &probing, "vmdk"),
        ("plain", &qcow2, "Image is not in qcow2 format"),
    ] {
        let error = refusal(&folder, name, options);
        assert!(error.message().contains(words), "{name}: {error}");
        assert!(error.file().is_some_and(|file| file.ends_with(name)), "{name}: {error:?}");
        assert!(error.hint().is_some(), "{name}: {error:?}");
    }
}

#[test]
fn a_dirty_image_is_left_as_it_is_until_somebody_has_its_key() {
    let folder = Folder::new();
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    folder.qemu_img(&format!("create -q --object secret,id=s,data=abc -f qcow2 -o {options} disk 1M"));
    let path = folder.path("disk");
    let mut bytes = std::fs::read(&path).unwrap();
    // Incompatible bit 0.
    bytes[79] |= 1;
    std::fs::write(&path, &bytes).unwrap();
    let with = |passphrase: &str| {
        let format = Some("qcow2".into());
        let mut options = OpenOptions { format, read_only: false, ..OpenOptions::default() };
        options.secrets.define(&format!("secret,id=s,data={passphrase}")).unwrap();
        options.driver.set("encrypt.key-secret", "s");
        options
    };
    refusal(&folder, "disk", &with("wrong"));
    assert!(std::fs::read(&path).unwrap() == bytes, "the file changed");
    Image::open_with(BACKENDS[0], &path, &with("abc")).close();
    assert_eq!(std::fs::read(&path).unwrap()[79] & 1, 0);
}

#[test]
fn a_backing_chain_that_loops_ends_in_an_error() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 a.qcow2 1M");
    folder.qemu_img("create -q -f qcow2 -u -b a.qcow2 -F qcow2 b.qcow2 1M");
    folder.qemu_img("rebase -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2");
    let error = refusal(&folder, "b.qcow2", &OpenOptions::default());
    assert!(error.message().contains("loops"), "{error}");
}

#[test]
fn a_missing_backing_file_is_named() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f raw base.raw 1M");
    folder.qemu_img("create -q -f qcow2 -b base.raw -F raw top.qcow2");
    std::fs::remove_file(folder.path("base.raw")).unwrap();
    let error = refusal(&folder, "top.qcow2", &OpenOptions::default());
    assert!(error.message().contains("Could not open backing file"), "{error}");
    assert!(error.file().is_some_and(|file| file.ends_with("base.raw")), "{error:?}");
}

#[test]
fn an_image_cannot_make_us_open_a_device_or_a_protocol() {
    let folder = Folder::new();
    for name in ["nbd:localhost:10809", "json:{}", "/dev/zero", "fat:/"] {
        folder.qemu_img(&format!("create -q -f qcow2 -u -b {name} -F raw top.qcow2 1M"));
        assert!(refusal(&folder, "top.qcow2", &OpenOptions::default()).hint().is_some(), "{name}");
    }
}

#[test]
fn a_guessed_raw_image_cannot_be_turned_into_another_format() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f raw a.raw 1M");
    let writable = OpenOptions { read_only: false, ..OpenOptions::default() };
    let image = Image::try_open(BACKENDS[0], &folder.path("a.raw"), &writable).unwrap();
    for magic in [&b"QFI\xfb"[..], b"KDMV", b"vhdxfile", b"conectix", b"LUKS\xba\xbe", b"QED\0"] {
        let mut sector = magic.to_vec();
        sector.resize(512, 0);
        let iov = Buffer::from_bytes(&sector).iov(512);
        let error = image.engine.block_on(image.node.write(0, &iov)).unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::ReadOnly);
    }
    image.write(0, &[7; 512]);
    assert_eq!(image.read(0, 512), [7; 512]);
}

#[test]
fn direct_io_takes_any_offset_and_length() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f raw a.raw 64K");
    let options = OpenOptions {
        format: Some("raw".into()),
        read_only: false,
        cache: CacheMode { direct: true, ..CacheMode::WRITEBACK },
        ..OpenOptions::default()
    };
    for backend in BACKENDS {
        let image = Image::try_open(backend, &folder.path("a.raw"), &options).unwrap();
        image.write(0, &[1; 65536]);
        image.write(1000, &[2; 9000]);
        let mut expect = vec![1; 65536];
        expect[1000..10000].fill(2);
        assert_eq!(image.read(0, 65536), expect);
        assert_eq!(image.read(999, 3), [1, 2, 2]);
        image.close();
    }
}
