//! TLS both ways: our client with qemu-nbd and nbdkit, our server with qemu-img, nbdinfo and nbdcopy, and both with
//! those who must not be let in.

use crate::client::agrees_with_the_model;
use crate::harness::{BACKENDS, Folder, Image, random_file, said, seed};
use cowvm::block::aio::Backend;
use cowvm::block::options::OpenOptions;
use cowvm::block::protocol::Location;
use cowvm::block::protocol::nbd::Target;
use cowvm::block::secret::Secrets;
use cowvm::util::keyval::Options;
use cowvm::util::nbd::handshake::{go_data, option_message, reply_message};
use cowvm::util::nbd::{GREETING, NEWSTYLE, OptionReply, option, reply};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, date_time_ymd,
};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const SIZE: usize = 2 << 20;

/// Number of the server's certificate.
const SERIAL: u64 = 77;

/// Fills a folder with an authority, with a server's and a client's certificates from it, and with a list (under a name
/// that nobody looks for) that takes the server's back.
fn make_credentials(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    authority.distinguished_name.push(DnType::CommonName, dir.to_str().unwrap());
    let key = KeyPair::generate().unwrap();
    write("ca-cert.pem", authority.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(authority, key);
    for (side, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let mut own = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        // QEMU wants the second one.
        own.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        own.extended_key_usages = vec![usage];
        own.serial_number = (side == "server").then(|| SERIAL.into());
        own.distinguished_name.push(DnType::CommonName, side);
        let key = KeyPair::generate().unwrap();
        write(&format!("{side}-cert.pem"), own.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{side}-key.pem"), key.serialize_pem());
    }
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(4000, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SERIAL.into(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    write("revoked.pem", list.signed_by(&issuer).unwrap().pem().unwrap());
}

/// A folder with an image and credentials, in `pki` those that count and in `other` those of somebody else; `bare` has
/// the authority alone.
fn folder() -> Folder {
    let folder = Folder::new();
    random_file(&folder.path("disk"), SIZE, 7);
    make_credentials(&folder.path("pki"));
    make_credentials(&folder.path("other"));
    std::fs::create_dir(folder.path("bare")).unwrap();
    std::fs::copy(folder.path("pki/ca-cert.pem"), folder.path("bare/ca-cert.pem")).unwrap();
    folder
}

/// The option that names credentials.
fn object(folder: &Folder, dir: &str, side: &str, more: &str) -> String {
    format!("tls-creds-x509,id=tls0,dir={},endpoint={side}{more}", folder.path(dir).display())
}

/// The line of a server with credentials.
fn server(folder: &Folder, more: &str) -> String {
    format!("--object {} --tls-creds tls0 -t -e 0 -f raw disk", object(folder, "pki", "server", more))
}

/// How the folder's server is connected to with the credentials in `dir`; `name` must be proved.
fn options(folder: &Folder, dir: &str, name: &str) -> OpenOptions {
    let mut secrets = Secrets::default();
    secrets.define(&object(folder, dir, "client", "")).unwrap();
    let mut options = OpenOptions {
        format: Some("raw".into()),
        read_only: false,
        unmap: true,
        secrets,
        ..OpenOptions::default()
    };
    let more = if name.is_empty() { String::new() } else { format!(",tls-hostname={name}") };
    let target = Target::from_name(&folder.uri("")).unwrap().unwrap();
    let own = Options::parse(&format!("tls-creds=tls0,reconnect-delay=20{more}"), None);
    options.location = Some(Location::Nbd(target, own));
    options
}

fn refusal(folder: &Folder, dir: &str, name: &str) -> String {
    let opened = Image::try_open(Backend::Auto, &folder.uri(""), &options(folder, dir, name));
    opened.err().unwrap().message().to_owned()
}

fn works_with(program: &str, line: impl Fn(&Folder) -> String) {
    let seed = seed();
    let folder = folder();
    for backend in BACKENDS {
        let mut model = std::fs::read(folder.path("disk")).unwrap();
        let server = folder.serve(program, &line(&folder));
        for name in ["localhost", ""] {
            let image = Image::try_open(backend, &folder.uri(""), &options(&folder, "pki", name)).unwrap();
            agrees_with_the_model(&image, &mut model, seed, 30);
            image.close();
        }
        server.kill();
        assert!(std::fs::read(folder.path("disk")).unwrap() == model);
    }
}

#[test]
fn requests_to_qemu_nbd_over_tls_agree_with_a_model() {
    works_with("qemu-nbd", |folder| server(folder, ""));
}

#[test]
fn requests_to_nbdkit_over_tls_agree_with_a_model() {
    works_with("nbdkit", |folder| {
        let pki = folder.path("pki");
        format!("--tls=require --tls-verify-peer --tls-certificates={} file disk", pki.display())
    });
}

#[test]
fn requests_to_our_own_server_over_tls_agree_with_a_model() {
    works_with("ours/qemu-nbd", |folder| server(folder, ""));
}

#[test]
fn clients_of_other_hands_are_served_over_tls() {
    let folder = folder();
    let server = folder.serve("ours/qemu-nbd", &server(&folder, ""));
    let object = object(&folder, "pki", "client", "");
    let image = format!("driver=nbd,path={},tls-creds=tls0,tls-hostname=localhost", folder.socket());
    let pki = folder.path("pki");
    let uri = format!("nbds+unix://alice@/?socket={}&tls-certificates={}", folder.socket(), pki.display());
    for program in ["qemu-img", "ours/qemu-img"] {
        folder.run(program, &format!("convert --object {object} --image-opts -O raw {image} copy"));
        assert!(std::fs::read(folder.path("copy")).unwrap() == std::fs::read(folder.path("disk")).unwrap());
    }
    folder
        .run("ours/qemu-img", &format!("info --object {object} {}", folder.uri("").replace("nbd+", "nbds+")));
    assert!(folder.run("nbdinfo", &format!("--size {uri}")).trim() == SIZE.to_string());
    let bytes = random_file(&folder.path("new"), SIZE, 8);
    folder.run("nbdcopy", &format!("--flush --requests=64 new {uri}"));
    assert!(std::fs::read(folder.path("disk")).unwrap() == bytes);
    folder.run("nbdcopy", &format!("--requests=64 {uri} copy2"));
    assert!(std::fs::read(folder.path("copy2")).unwrap() == bytes);
    let line =
        format!("-L -k {} --object {object} --tls-creds tls0 --tls-hostname localhost", folder.socket());
    assert_eq!(folder.run("ours/qemu-nbd", &line), folder.run("qemu-nbd", &line));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn who_proves_nothing_is_not_let_in() {
    let folder = folder();
    for program in ["qemu-nbd", "ours/qemu-nbd"] {
        let _server = folder.serve(program, &server(&folder, ""));
        // They hear of it from the server, each in its library's words.
        assert!(!refusal(&folder, "bare", "").is_empty());
        assert_eq!(refusal(&folder, "other", ""), "The certificate hasn't got a known issuer");
        assert_eq!(
            refusal(&folder, "pki", "else.where"),
            "Certificate does not match the hostname else.where"
        );
    }
    for dir in ["bare", "other"] {
        let object = object(&folder, dir, "client", "");
        let image = format!("driver=nbd,path={},tls-creds=tls0", folder.socket());
        let output = folder.output("qemu-img", &format!("info --object {object} --image-opts {image}"));
        assert!(!output.status.success(), "{dir}: {}", said(&output));
    }
}

#[test]
fn a_certificate_that_was_taken_back_counts_no_more() {
    let folder = folder();
    let _server = folder.serve("qemu-nbd", &server(&folder, ",verify-peer=off"));
    assert!(Image::try_open(Backend::Auto, &folder.uri(""), &options(&folder, "bare", "")).is_ok());
    std::fs::copy(folder.path("pki/revoked.pem"), folder.path("bare/ca-crl.pem")).unwrap();
    assert_eq!(refusal(&folder, "bare", ""), "The certificate has been revoked");
}

#[test]
fn peers_that_need_not_be_checked_are_not_checked() {
    let folder = folder();
    let _server = folder.serve("ours/qemu-nbd", &server(&folder, ",verify-peer=off"));
    assert!(Image::try_open(Backend::Auto, &folder.uri(""), &options(&folder, "bare", "")).is_ok());
    let mut trusting = options(&folder, "bare", "else.where");
    trusting.secrets = Secrets::default();
    trusting.secrets.define(&object(&folder, "other", "client", ",verify-peer=off")).unwrap();
    assert!(Image::try_open(Backend::Auto, &folder.uri(""), &trusting).is_ok());
}

/// Sends the bytes of a client that does without TLS; what the server answers, without its greeting.
fn answers(folder: &Folder, messages: &[Vec<u8>]) -> Vec<(u32, u32)> {
    let mut stream = UnixStream::connect(folder.path("socket")).unwrap();
    stream.write_all(&[&3u32.to_be_bytes()[..], &messages.concat()].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    let (mut rest, mut replies) = (&heard[18..], Vec::new());
    while let Some(head) = rest.get(..OptionReply::SIZE).and_then(OptionReply::parse) {
        replies.push((head.option, head.kind));
        rest = &rest[OptionReply::SIZE + head.len as usize..];
    }
    assert!(rest.is_empty(), "{rest:?}");
    replies
}

#[test]
fn without_tls_a_client_is_told_nothing() {
    let folder = folder();
    let _server = folder.serve("ours/qemu-nbd", &server(&folder, ""));
    for which in [option::LIST, option::STRUCTURED_REPLY, option::EXTENDED_HEADERS, 77] {
        assert_eq!(answers(&folder, &[option_message(which, &[])]), [(which, reply::ERR_TLS_REQD)]);
    }
    for which in [option::INFO, option::GO] {
        let message = option_message(which, &go_data("", &[]));
        assert_eq!(answers(&folder, &[message]), [(which, reply::ERR_TLS_REQD)]);
    }
    assert_eq!(answers(&folder, &[option_message(option::EXPORT_NAME, &[])]), []);
    assert_eq!(answers(&folder, &[option_message(option::ABORT, &[])]), [(option::ABORT, reply::ACK)]);
    let with_data = option_message(option::STARTTLS, b"x");
    assert_eq!(answers(&folder, &[with_data]), [(option::STARTTLS, reply::ERR_INVALID)]);
    for client in ["qemu-img", "ours/qemu-img"] {
        let output = folder.output(client, &format!("info {}", folder.uri("")));
        assert!(said(&output).contains("TLS negotiation required before option 7 (go)"), "{}", said(&output));
    }
}

/// Somebody on the way who sends options behind STARTTLS, for the server to take as the client's.
#[test]
fn what_comes_behind_starttls_without_tls_is_not_listened_to() {
    let folder = folder();
    let _server = folder.serve("ours/qemu-nbd", &server(&folder, ""));
    let messages = [option_message(option::STARTTLS, &[]), option_message(option::LIST, &[])];
    assert_eq!(answers(&folder, &messages), []);
}

/// Our client against a server that answers STARTTLS with `answer`; what it was told, and what the client said.
fn told_by_rogue(folder: &Folder, answer: &[u8]) -> (String, Vec<u8>) {
    let _ = std::fs::remove_file(folder.path("socket"));
    let listener = UnixListener::bind(folder.path("socket")).unwrap();
    let answer = answer.to_vec();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let greeting = [&GREETING.to_be_bytes()[..], &NEWSTYLE.to_be_bytes(), &3u16.to_be_bytes()].concat();
        stream.write_all(&greeting).unwrap();
        let mut heard = vec![0; 4 + 16];
        stream.read_exact(&mut heard).unwrap();
        stream.write_all(&answer).unwrap();
        let mut more = [0; 4096];
        let len = stream.read(&mut more).unwrap();
        heard.extend(&more[..len]);
        heard
    });
    let why = refusal(folder, "pki", "");
    (why, server.join().unwrap())
}

#[test]
fn a_client_says_nothing_before_tls_is_on() {
    let folder = folder();
    let hello = [&3u32.to_be_bytes()[..], &option_message(option::STARTTLS, &[])].concat();
    let (why, heard) = told_by_rogue(&folder, &reply_message(option::STARTTLS, reply::ERR_POLICY, b"no"));
    assert_eq!(why, "Denied by server for option 5 (starttls)\nserver reported: no");
    assert_eq!(heard, hello);
    // An answer with another behind it, as if TLS was on.
    let acks = [reply_message(option::STARTTLS, reply::ACK, &[]), reply_message(7, reply::ACK, &[])].concat();
    let (why, heard) = told_by_rogue(&folder, &acks);
    assert_eq!((why.as_str(), heard), ("the server goes on without TLS", hello));
    let nonsense = [reply_message(option::STARTTLS, reply::ACK, &[])].concat();
    let (_, heard) = told_by_rogue(&folder, &nonsense);
    // A record of TLS, and nothing that begins as an option does.
    assert_eq!(heard[20..23], [22, 3, 1]);
}

#[test]
fn a_server_that_dies_is_waited_for_over_tls_too() {
    let folder = folder();
    let line = server(&folder, "");
    let mut server = folder.serve("ours/qemu-nbd", &line);
    let image = Image::try_open(Backend::Auto, &folder.uri(""), &options(&folder, "pki", "")).unwrap();
    for round in 0..5u8 {
        image.write(u64::from(round) * 4096, &[round + 1; 4096]);
        server.kill();
        server = folder.serve("ours/qemu-nbd", &line);
        assert_eq!(image.read(u64::from(round) * 4096, 4096), [round + 1; 4096]);
    }
    image.close();
}
