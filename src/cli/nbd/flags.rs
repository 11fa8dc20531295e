//! The options of `cowvm nbd`, and the help that they make up.

use crate::util::getopt::Flag;
use std::fmt::Write;

pub(super) static FLAGS: &[Flag] = &[
    Flag::switch("help", "display this help and exit").short('h'),
    Flag::switch("version", "output version information and exit").short('V'),
    Flag::value("port", "PORT", "port to listen on (default: 10809)").short('p'),
    Flag::value("bind", "IFACE", "interface to bind to (default: 0.0.0.0)").short('b'),
    Flag::value("socket", "PATH", "listen on a Unix socket").short('k'),
    Flag::value("shared", "NUM", "clients at a time (default: 1; 0: as many as come)").short('e'),
    Flag::switch("persistent", "go on when the last client has left").short('t'),
    Flag::switch("verbose", "taken, and ignored").short('v'),
    Flag::value("export-name", "NAME", "name of the export (default: empty)").short('x'),
    Flag::value("description", "TEXT", "a text for people").short('D'),
    Flag::value("handshake-limit", "N", "seconds that a handshake may take (default: 10; 0: no limit)"),
    Flag::value("offset", "OFFSET", "begin at this byte of the image").short('o'),
    Flag::switch("allocation-depth", "offer the depth of allocation as a context").short('A'),
    Flag::value("bitmap", "NAME", "offer a dirty bitmap of the image as a context").short('B'),
    Flag::switch("list", "list the exports of another server").short('L'),
    Flag::value("object", "OBJECT", "define an object, such as a secret"),
    Flag::value("tls-creds", "ID", "serve over TLS, with these credentials"),
    Flag::value("tls-authz", "ID", "authorize clients: refused, there is nothing to do it"),
    Flag::value("tls-hostname", "HOSTNAME", "-L: name in the server's certificate"),
    Flag::value("trace", "[[enable=]PATTERN][,events=FILE][,file=FILE]", "trace what happens inside")
        .short('T'),
    Flag::switch("fork", "go to the background once the server is running"),
    Flag::value("pid-file", "PATH", "write the server's process ID to a file"),
    Flag::value("selinux-label", "LABEL", "label of the socket: refused"),
    Flag::value("connect", "DEV", "attach the image to the kernel's device DEV").short('c'),
    Flag::switch("disconnect", "detach a device of the kernel").short('d'),
    Flag::value("format", "FORMAT", "format of the image (default: guessed)").short('f'),
    Flag::switch("read-only", "refuse writes").short('r'),
    Flag::switch("snapshot", "write to a temporary overlay, not to the image").short('s'),
    Flag::value("load-snapshot", "SNAPSHOT", "export an internal snapshot").short('l'),
    Flag::switch("nocache", "as --cache=none").short('n'),
    Flag::value("cache", "MODE", "none, writeback (default), writethrough, directsync or unsafe"),
    Flag::value("aio", "MODE", "native, io_uring or threads: taken, and the fastest is used"),
    Flag::value("discard", "MODE", "ignore (default) or unmap"),
    Flag::value("detect-zeroes", "MODE", "off (default), on or unmap"),
    Flag::switch("image-opts", "FILE is an option string"),
];

pub(super) fn version() -> String {
    format!("cowvm nbd version {} (works like qemu-nbd 10.0.2)\n", env!("CARGO_PKG_VERSION"))
}

pub(super) fn help(program: &str) -> String {
    let mut text = format!(
        "Usage: {program} [OPTIONS] FILE\n  or:  {program} -L [OPTIONS]\nServes a disk image to NBD clients.\n\n"
    );
    for flag in FLAGS {
        let short = flag.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
        let value = flag.value.map_or(String::new(), |value| format!("={value}"));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {short}{:<24} {}", format!("--{}{value}", flag.name), flag.help);
    }
    text
}
