//! The words of qemu-nbd, and of qemu-img where names of exports are given to it.

use crate::harness::{Folder, random_file, said};

/// What both say to each line; they must only read.
fn same(folder: &Folder, tool: &str, lines: &[&str]) {
    let mut differences = String::new();
    for line in lines {
        let run = |program: &str| {
            let output = folder.output(program, line);
            (output.status.code(), said(&output))
        };
        let (real, ours) = (run(tool), run(&format!("ours/{tool}")));
        if real != ours {
            differences += &format!("{line}:\n  real {real:?}\n  ours {ours:?}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn mistakes_are_told_as_by_qemu_nbd() {
    let folder = Folder::new();
    random_file(&folder.path("disk"), 1 << 20, 1);
    folder.run("qemu-img", "create -q -f qcow2 image 1M");
    let s = folder.socket();
    let lines = [
        String::new(),
        "a b".into(),
        "--bogus".into(),
        "--port".into(),
        "-k relative disk".into(),
        "-e x disk".into(),
        "-e -1 disk".into(),
        "--handshake-limit=x disk".into(),
        "--cache=foo disk".into(),
        "--aio=foo disk".into(),
        "--discard=foo disk".into(),
        "--detect-zeroes=foo disk".into(),
        "-n --cache=none disk".into(),
        "-o 5M disk".into(),
        "-L disk".into(),
        "-L -x a".into(),
        "-L --fork".into(),
        "-L -k /nonexistent/socket".into(),
        "-L -p 1".into(),
        "-d /dev/nbd-none".into(),
        "-k /nonexistent/x/s -f raw disk".into(),
        "-p abc -f raw disk".into(),
        format!("-k {s} nope"),
        format!("-k {s} -f bogus disk"),
        format!("-k {s} -f raw -o -5 disk"),
        format!("-k {s} -f raw -o 5000000 disk"),
        format!("-k {s} -f qcow2 -B none image"),
        format!("-k {s} -f qcow2 -l none image"),
        format!("-k {s} -f raw -l none disk"),
        format!("-k {s} -f raw --image-opts disk"),
        format!("-k {s} --image-opts driver=raw,file.filename=nope"),
        format!("-k {s} --object foo,id=a disk"),
        format!("-k {s} --aio=native -f raw disk"),
        format!("-k {s} --tls-creds none disk"),
        format!("-k {s} --tls-hostname x disk"),
        format!("-k {s} --tls-authz x disk"),
        format!("-k {s} --object secret,id=a,data=x --tls-creds a disk"),
        format!("-L -k {s} --tls-hostname x"),
        format!("-k {s} --object tls-creds-x509,id=a,endpoint=server disk"),
        format!("-k {s} --object tls-creds-x509,id=a,endpoint=foo,dir=/tmp disk"),
        format!("-k {s} --object tls-creds-x509,id=a,verify-peer=foo,dir=/tmp disk"),
        format!("-k {s} --object tls-creds-x509,id=a,dir=/nonexistent,endpoint=server disk"),
        format!("-k {s} -T bogus -f raw nope"),
    ];
    same(&folder, "qemu-nbd", &lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn names_of_exports_are_taken_and_shown_as_by_qemu_img() {
    let folder = Folder::new();
    random_file(&folder.path("disk"), 1 << 20, 1);
    let _server = folder.serve("qemu-nbd", "-t -e 0 -x exp -f raw disk");
    let s = folder.socket();
    let names = [
        format!("nbd:unix:{s}:exportname=exp"),
        format!("nbd+unix:///exp?socket={s}"),
        format!("nbd:unix:{s}"),
        format!("nbd+unix:///bad?socket={s}"),
        format!("nbd:unix:{s}.none"),
        format!("json:{{'driver':'raw','file':{{'driver':'nbd','path':'{s}','export':'exp'}}}}"),
        format!("json:{{'driver':'nbd','server':{{'type':'unix','path':'{s}'}},'export':'exp'}}"),
        "nbd:localhost:1".into(),
        "nbd://localhost:1/e".into(),
        "nbd:localhost".into(),
        "nbd:".into(),
        "nbd:a:b:c".into(),
        "nbd://".into(),
        "nbd://h:1/a?x=y".into(),
        "nbd+foo://a".into(),
    ];
    let commands = ["info", "info --output=json", "map", "map --output=json"];
    let lines: Vec<String> = commands
        .iter()
        .flat_map(|command| names.iter().map(move |name| format!("{command} {name}")))
        .collect();
    same(&folder, "qemu-img", &lines.iter().map(String::as_str).collect::<Vec<_>>());
    let described = [
        format!("driver=nbd,server.type=unix,server.path={s},export=exp"),
        format!("driver=raw,file.driver=nbd,file.path={s},file.export=exp"),
        "driver=nbd,server.type=unix,export=exp".into(),
        "driver=nbd,host=localhost,port=1".into(),
        "driver=nbd".into(),
        "driver=nbd,server.type=foo".into(),
    ];
    let lines: Vec<String> = described.iter().map(|options| format!("info --image-opts {options}")).collect();
    same(&folder, "qemu-img", &lines.iter().map(String::as_str).collect::<Vec<_>>());
}
