//! Peers that no other test has: libnbd by its shell, and Debian's nbd-server.

use crate::client::{agrees_with_the_model, keeps_many_in_flight};
use crate::harness::{BACKENDS, Folder, Image, random_file, seed};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

const SIZE: usize = 4 << 20;

/// The same conversation succeeds with qemu-nbd.
#[test]
fn nbdsh_finds_the_handshake_all_commands_and_all_refusals_as_they_should_be() {
    let seed = seed();
    for server in ["ours/qemu-nbd", "qemu-nbd"] {
        let folder = Folder::new();
        random_file(&folder.path("disk"), SIZE, seed);
        let _server = folder.serve(server, "-t -e 0 -x name -D words --discard=unmap -f raw disk");
        let script = include_str!("nbdsh.py");
        let script = format!("SEED = {seed}\nURI = {:?}\n{script}", folder.uri("name"));
        // Debian's own Python has the module, whichever comes first in PATH.
        let said = folder.run_of("/usr/bin/python3", &["-m", "nbd", "-n", "-c", &script]);
        assert_eq!(said, "good\n", "{server}");
    }
}

/// It knows neither chunks nor contexts, and serves the client that it has on its standard input.
#[test]
fn requests_to_debians_nbd_server_agree_with_a_model() {
    let seed = seed();
    for backend in BACKENDS {
        let folder = Folder::new();
        let mut model = random_file(&folder.path("disk"), SIZE, seed);
        let disk = folder.path("disk");
        let settings = format!(
            "[generic]\nport=0\n[name]\nexportname={}\nflush=true\nfua=true\ntrim=true\n",
            disk.display()
        );
        std::fs::write(folder.path("settings"), settings).unwrap();
        let listener = UnixListener::bind(folder.path("socket")).unwrap();
        let settings = folder.path("settings");
        let server = std::thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let mut server = Command::new("/usr/bin/nbd-server");
            server.args(["-d", "-C"]).arg(settings).stdin(OwnedFd::from(client)).stderr(Stdio::null());
            server.status().unwrap();
        });
        let image = Image::open(backend, &folder.uri("name"));
        assert_eq!(image.read(0, SIZE), model);
        keeps_many_in_flight(&image, &mut model, seed);
        agrees_with_the_model(&image, &mut model, seed, 60);
        image.close();
        server.join().unwrap();
        assert!(std::fs::read(&disk).unwrap() == model);
    }
}
