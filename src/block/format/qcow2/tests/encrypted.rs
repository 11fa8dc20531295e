//! Encrypted images: what qemu-img makes we read and change, what we make it reads, and nobody reads without the
//! key.

use super::damaged::engine_and_state;
use super::interop::{fill, survives_changes};
use super::memory::{Disk, Folder, MemoryFile, described, open, with_key};
use super::model::{base, run};
use crate::block::aio::{Backend, Engine};
use crate::block::crypto::cipher::Cipher;
use crate::block::crypto::hash::Hash;
use crate::block::crypto::iv::IvKind;
use crate::block::crypto::sector::{Mode, Scheme};
use crate::block::crypto::{Key, luks};
use crate::block::encryption::SlotChange;
use crate::block::format::qcow2::encrypt::{EncryptOptions, Unlock};
use crate::block::format::qcow2::{CreateOptions, Image};
use crate::block::graph::driver::Specifics;
use crate::block::graph::{Driver, Node};
use crate::block::options::Preallocation;
use crate::block::{Buffer, Kind, Result};
use std::rc::Rc;
use std::time::Duration;

const QUICK: &str = "encrypt.key-secret=s,encrypt.iter-time=10";

fn qemu_creates(folder: &Folder, options: &str, size: &str) {
    folder
        .run(&format!("qemu-img create -q --object secret,id=s,data=abc -f qcow2 -o {options} disk {size}"));
}

#[test]
fn images_of_qemu_img_read_equal_and_survive_changes() {
    for (options, cluster) in [
        ("encrypt.format=aes,encrypt.key-secret=s".to_owned(), 65536),
        ("compat=0.10,cluster_size=512,encrypt.format=aes,encrypt.key-secret=s".to_owned(), 512),
        (format!("encrypt.format=luks,{QUICK}"), 65536),
        (format!("compat=0.10,cluster_size=4k,encrypt.format=luks,{QUICK}"), 4096),
        (format!("cluster_size=512,refcount_bits=64,encrypt.format=luks,{QUICK}"), 512),
        (
            format!(
                "encrypt.format=luks,{QUICK},encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,\
                 encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha1"
            ),
            65536,
        ),
        (
            format!("encrypt.format=luks,{QUICK},encrypt.cipher-alg=serpent-256,encrypt.hash-alg=ripemd160"),
            65536,
        ),
        (
            format!(
                "encrypt.format=luks,{QUICK},encrypt.cipher-alg=cast5-128,encrypt.cipher-mode=cbc,\
                 encrypt.hash-alg=md5,encrypt.ivgen-alg=plain"
            ),
            65536,
        ),
        (format!("encrypt.format=luks,{QUICK},encrypt.cipher-mode=ctr,encrypt.hash-alg=sha512"), 65536),
    ] {
        let folder = Folder::new();
        qemu_creates(&folder, &options, "3000k");
        fill(&folder, "disk", 3000 << 10, cluster, 20);
        survives_changes(&folder, "disk", cluster, None, &options);
    }
}

#[test]
fn twofish_images_of_qemu_img_read_equal() {
    let folder = Folder::new();
    let options =
        format!("encrypt.format=luks,{QUICK},encrypt.cipher-alg=twofish-128,encrypt.hash-alg=sha224");
    qemu_creates(&folder, &options, "64k");
    folder.run(&format!("qemu-io {} -c 'write -P 7 1k 2k'", described("disk")));
    let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
    assert!(disk.read_all() == folder.content("disk", ""));
}

fn encryption(scheme: Option<Scheme>) -> Option<EncryptOptions> {
    let passphrase = with_key().passphrase.unwrap();
    let Some(scheme) = scheme else { return Some(EncryptOptions::Aes(passphrase)) };
    let options = luks::CreateOptions { scheme, hash: Hash::Sha256, time: Duration::from_millis(1) };
    Some(EncryptOptions::Luks(options, passphrase))
}

fn xts() -> Option<EncryptOptions> {
    encryption(Some(luks::CreateOptions::default().scheme))
}

#[test]
fn random_requests_agree_with_the_model_and_with_qemu_img() {
    let cbc = Scheme { cipher: Cipher::AES_256, mode: Mode::Cbc, iv: IvKind::Essiv(Hash::Sha256) };
    for (cluster_size, version, encryption, backing) in [
        (4096, 3, xts(), Some(base(500_000))),
        (65536, 3, encryption(Some(cbc)), None),
        (512, 2, encryption(None), None),
        (65536, 3, encryption(None), Some(base(300_500))),
    ] {
        let options = CreateOptions {
            size: 1 << 20,
            cluster_size,
            version,
            encryption,
            backing_file: backing.as_ref().map(|_| "base".to_owned()),
            backing_format: backing.as_ref().map(|_| "raw".to_owned()),
            ..CreateOptions::default()
        };
        run(&options, backing, 60);
    }
}

#[test]
fn preallocated_images_read_as_zeros_and_so_does_what_grows() {
    for (version, encryption) in [(3, xts()), (2, xts()), (2, encryption(None))] {
        let options = CreateOptions {
            size: 300 << 10,
            version,
            encryption,
            preallocation: Preallocation::Metadata,
            ..CreateOptions::default()
        };
        let disk = Disk::create(Backend::Auto, &options, None);
        assert!(disk.read_all() == vec![0; 300 << 10], "version {version}");
        disk.run(disk.node.truncate(500 << 10, Preallocation::Metadata)).unwrap();
        disk.run(disk.node.write_bytes(250_000, &[5; 60_000])).unwrap();
        let mut expect = vec![0; 500 << 10];
        expect[250_000..310_000].fill(5);
        assert!(disk.read_all() == expect, "version {version}");
    }
}

#[test]
fn snapshots_of_an_encrypted_disk_stay_as_they_are() {
    for format in [format!("luks,{QUICK}"), "aes,encrypt.key-secret=s".to_owned()] {
        let folder = Folder::new();
        qemu_creates(&folder, &format!("encrypt.format={format}"), "1M");
        fill(&folder, "disk", 1 << 20, 3, 20);
        folder.run(&format!("qemu-img snapshot -c one {}", described("disk")));
        let before = folder.content("disk", "");
        let disk = Disk::from_bytes(Backend::Auto, folder.read("disk"), None);
        disk.run(disk.node.write_bytes(1000, &[9; 300_000])).unwrap();
        disk.close();
        folder.write("disk", &disk.bytes());
        assert!(folder.content("disk", "-l one") == before);
        assert!(folder.content("disk", "")[1000..301_000] == [9; 300_000]);
    }
}

fn unlocked(bytes: &[u8], unlock: &Unlock) -> Result<(Rc<Engine>, Rc<Node>)> {
    let (engine, state) = engine_and_state(bytes);
    let file = MemoryFile::node(&engine, &state);
    let mut image = engine.block_on(Image::read(&file)).unwrap()?;
    engine.block_on(image.unlock(&engine, unlock)).unwrap()?;
    let driver = image.into_qcow2(&engine, None, false)?;
    Ok((engine, Node::new("disk", Box::new(driver))))
}

fn refusal(bytes: &[u8], unlock: &Unlock) -> String {
    unlocked(bytes, unlock).map(drop).unwrap_err().message().to_owned()
}

fn encrypted_disk(encryption: Option<EncryptOptions>) -> Vec<u8> {
    let options = CreateOptions { size: 1 << 20, encryption, ..CreateOptions::default() };
    let disk = Disk::create(Backend::Auto, &options, None);
    disk.run(disk.node.write_bytes(0, &[0x5a; 4096])).unwrap();
    disk.close();
    disk.bytes()
}

#[test]
fn without_the_key_nothing_is_read_or_written_and_the_file_stays_as_it_is() {
    for encryption in [xts(), encryption(None)] {
        let bytes = encrypted_disk(encryption);
        assert!(!bytes.windows(64).any(|window| window == [0x5a; 64]), "plain text in the file");
        let message = |unlock: &Unlock| refusal(&bytes, unlock);
        assert_eq!(message(&Unlock::default()), "Parameter 'encrypt.key-secret' is required for cipher");
        let unlock = Unlock { metadata_only: true, ..Unlock::default() };
        let (engine, node) = unlocked(&bytes, &unlock).unwrap();
        assert!(node.driver().specifics().is_some());
        for at in [0, 512 << 10] {
            let error = engine.block_on(node.read_bytes(at, 512)).unwrap().unwrap_err();
            assert_eq!(error.message(), "Parameter 'encrypt.key-secret' is required for cipher");
            assert!(engine.block_on(node.write(at, &Buffer::new(512).iov(512))).unwrap().is_err());
            assert!(engine.block_on(node.write_zeroes(at, 65536, true)).unwrap().is_err());
            assert!(engine.block_on(node.discard(at, 65536)).unwrap().is_err());
        }
    }
}

#[test]
fn an_image_that_nobody_unlocked_is_locked() {
    let (engine, state) = engine_and_state(&encrypted_disk(xts()));
    let file = MemoryFile::node(&engine, &state);
    let image = engine.block_on(Image::read(&file)).unwrap().unwrap();
    let driver = image.into_qcow2(&engine, None, false).unwrap();
    assert!(driver.read_only());
    assert!(engine.block_on(driver.read(0, &Buffer::new(512).iov(512))).unwrap().is_err());
}

#[test]
fn a_wrong_passphrase_or_format_is_refused() {
    let bytes = encrypted_disk(xts());
    let message = |unlock: &Unlock| refusal(&bytes, unlock);
    let wrong = Unlock { passphrase: Some(Key::from(b"wrong".to_vec())), ..Unlock::default() };
    assert_eq!(message(&wrong), "Invalid password, cannot unlock any keyslot");
    let other = Unlock { format: Some("aes".to_owned()), ..with_key() };
    assert_eq!(message(&other), "Header reported 'luks' encryption format but options specify 'aes'");
}

#[test]
fn key_slots_are_filled_and_erased_but_not_the_last_one() {
    let (engine, state) = engine_and_state(&encrypted_disk(xts()));
    let node = open(&engine, &state, None, false).unwrap();
    let change = |change: SlotChange, force| {
        let slots = node.driver().key_slots().unwrap();
        engine.block_on(slots.change_key_slots(&change, force)).unwrap()
    };
    let key = |text: &str| Key::from(text.as_bytes().to_vec());
    let fill =
        |slot, text: &str| SlotChange::Fill { slot, passphrase: key(text), time: Duration::from_millis(1) };
    let erase = |slot, text: Option<&str>| SlotChange::Erase { slot, passphrase: text.map(key) };
    let opens = |text: &str| {
        let unlock = Unlock { passphrase: Some(key(text)), ..Unlock::default() };
        unlocked(&state.bytes.borrow(), &unlock).is_ok()
    };
    let refused = |result: Result<()>, part: &str| {
        let error = result.unwrap_err();
        assert!(error.message().contains(part), "{}", error.message());
    };
    refused(change(erase(Some(0), None), false), "the only active keyslot 0");
    refused(change(erase(None, Some("abc")), false), "All the active keyslots match");
    change(fill(None, "second"), false).unwrap();
    change(fill(Some(7), "third"), false).unwrap();
    refused(change(fill(Some(7), "fourth"), false), "Refusing to overwrite active keyslot 7");
    refused(change(fill(Some(8), "fourth"), false), "Invalid keyslot 8 specified, must be between 0 and 7");
    assert!(opens("abc") && opens("second") && opens("third") && !opens("fourth"));
    refused(change(erase(Some(1), Some("third")), false), "doesn't contain the given old password");
    refused(change(erase(Some(5), None), false), "already erased");
    refused(change(erase(None, None), false), "either explicit keyslot index or the password");
    change(erase(None, Some("abc")), false).unwrap();
    change(erase(Some(1), Some("second")), false).unwrap();
    assert!(!opens("abc") && !opens("second") && opens("third"));
    change(erase(Some(7), None), true).unwrap();
    assert!(!opens("third"));
}

/// Without a limit the overlap checks would take terabytes for the header's.
#[test]
fn a_luks_header_that_is_said_to_be_huge_is_refused() {
    let mut bytes = encrypted_disk(xts());
    let magic = 0x0537_be77u32.to_be_bytes();
    let len = bytes.windows(4).position(|window| window == magic).unwrap() + 16;
    for (value, fine) in [(16u64 << 20, true), ((16 << 20) + 1, false), (1 << 55, false)] {
        bytes[len..len + 8].copy_from_slice(&value.to_be_bytes());
        match unlocked(&bytes, &with_key()) {
            Ok(_) => assert!(fine, "{value}"),
            Err(error) => assert!(!fine && error.message() == "Encryption header length invalid", "{error}"),
        }
    }
}

#[test]
fn a_luks_image_that_nobody_unlocked_does_not_pass_for_one_of_the_old_kind() {
    for (encryption, expect) in [(xts(), None), (encryption(None), Some("Aes"))] {
        let (engine, state) = engine_and_state(&encrypted_disk(encryption));
        let file = MemoryFile::node(&engine, &state);
        let image = engine.block_on(Image::read(&file)).unwrap().unwrap();
        let driver = image.into_qcow2(&engine, None, true).unwrap();
        let Some(Specifics::Qcow2(specifics)) = driver.specifics() else { panic!("a qcow2 image") };
        let facts = specifics.encryption.map(|facts| format!("{facts:?}"));
        assert_eq!(facts.as_deref(), expect);
    }
}

/// Each field of the extension and of the LUKS header with each extreme value: an answer, no panic, and never
/// data.
#[test]
fn hostile_encryption_headers_are_refused_or_harmless() {
    let good = encrypted_disk(xts());
    let magic = 0x0537_be77u32.to_be_bytes();
    let extension = good.windows(4).position(|window| window == magic).unwrap();
    let luks = good.windows(6).position(|window| window == b"LUKS\xba\xbe").unwrap();
    let unlock = Unlock { metadata_only: true, ..Unlock::default() };
    let fields = (extension..extension + 24).step_by(4).chain((luks..luks + 592).step_by(4));
    for at in fields {
        for value in [0, 1, 511, 512, 513, u32::MAX / 2, u32::MAX - 1, u32::MAX] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            match unlocked(&bytes, &unlock) {
                Ok((engine, node)) => {
                    assert!(engine.block_on(node.read_bytes(0, 512)).unwrap().is_err(), "at {at}: {value}");
                }
                Err(error) => {
                    let fine = [Kind::InvalidFormat, Kind::Unsupported].contains(&error.kind());
                    assert!(fine, "at {at}: {value}: {error}");
                }
            }
        }
    }
}
