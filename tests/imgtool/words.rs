//! Command lines that are wrong in themselves: the words and the exit status are the real tool's.

use crate::harness::Lab;

#[test]
fn wrong_command_lines_are_refused_in_the_same_words() {
    let lab = Lab::new();
    lab.write("x", &[0; 512]);
    lab.same(&[
        "frob",
        "--bogus",
        "-x",
        "-T",
        "--trace",
        "create",
        "create --bogus",
        "create --bogus=1",
        "create --b",
        "create --back=x",
        "create --backing",
        "create --forma",
        "create --quiet=3 x",
        "create -f",
        "create -5",
        "create -q5 x",
        "create -f qcow2 x -5",
        "create x",
        "create a b c",
        "create x 1M extra",
        "create -o",
        "create --o",
        "info",
        "info a b",
        "info --f",
        "info --o",
        "info --output=foo x",
        "info --output x",
        "info --output=json,human x",
        "check",
        "check a b",
        "check --output=foo x",
        "check -r foo x",
        "check -T bogus x",
        "check --f",
        "map",
        "map a b",
        "map --output=x x",
        "map --o=json x",
        "map -s 1x x",
        "map --start-offset=-1 x",
        "map --max-length=1kk x",
        "map --max-length=8E x",
        "map -s",
        "convert",
        "convert a",
        "convert -s x a b",
        "convert --s",
        "convert --t",
        "convert --b",
        "convert -S 1x x y",
        "convert -S 100 x y",
        "convert -S 1000 x y",
        "convert -S 5G x y",
        "convert -S -1 x y",
        "convert -m 0 x y",
        "convert -m 17 x y",
        "convert -m -1 x y",
        "convert -m x x y",
        "convert -m 1x x y",
        "convert -m 99999999999999999999 x y",
        "convert -t bogus x y",
        "convert -T bogus x y",
        "convert -n -o size=1M x y",
        "convert -O bogus x y",
        "convert -f bogus x y",
        "convert -O qcow2 -o foo=1 x y",
        "convert x foo:y",
    ]);
}

#[test]
fn no_command_at_all_is_refused() {
    let lab = Lab::new();
    let output = lab.ours("--");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "qemu-img: Not enough arguments\nTry 'qemu-img --help' for more info\n");
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    let lab = Lab::new();
    lab.write("x", &[0; 512]);
    let cases = [
        ("convert -O vdi x y", "qemu-img: the format 'vdi' is not supported yet\n"),
        ("create -f vdi y 1M", "qemu-img: y: the format 'vdi' is not supported yet\n"),
    ];
    for (line, message) in cases {
        let output = lab.ours(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with(message), "{line}");
        assert!(!lab.path("y").exists(), "{line}");
    }
}

#[test]
fn help_names_every_command_and_every_option() {
    let lab = Lab::new();
    let help = |line: &str| {
        let output = lab.ours(line);
        assert!(output.status.success(), "{line}");
        String::from_utf8(output.stdout).unwrap()
    };
    let tool = help("--help");
    for command in [
        "amend", "bench", "bitmap", "check", "checksum", "commit", "compare", "convert", "create", "dd",
        "info", "map", "measure", "rebase", "resize", "snapshot",
    ] {
        assert!(tool.contains(&format!("\n  {command} ")), "{command}");
        for line in [format!("{command} --help"), format!("{command} -h"), format!("{command} x y --he")] {
            assert!(help(&line).contains(&format!("Usage: qemu-img {command} ")), "{line}");
        }
    }
    assert!(help("convert --help").contains("-S, --sparse-size SIZE"));
    assert!(help("--version").starts_with("cowvm imgtool version "));
    assert!(help("-V create").starts_with("cowvm imgtool version "));
}

#[test]
fn under_its_own_name_it_says_what_to_do() {
    let lab = Lab::new();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cowvm"))
        .args(["imgtool", "info", "nofile"])
        .current_dir(lab.path(""))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let first = "cowvm imgtool: Could not open 'nofile': Could not open 'nofile': No such file or directory";
    assert_eq!((lines[0], lines.len()), (first, 2), "{said}");
    assert!(lines[1].starts_with("cowvm imgtool: check the name"), "{said}");
}

#[test]
fn results_and_failures_are_json_when_asked() {
    let lab = Lab::new();
    let object = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let made = lab.ours("create --output=json -f qcow2 x 1M");
    assert!(made.status.success());
    let made = object(&made.stdout);
    assert_eq!((&made["filename"], &made["virtual-size"]), (&"x".into(), &(1 << 20).into()), "{made}");
    assert_eq!(made["options"]["cluster_size"], "65536", "{made}");
    for line in
        ["create --output=json -f qcow2 x", "--errors=json info nofile", "--errors=json check -f qcow2"]
    {
        let output = lab.ours(line);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{line}");
        let error = &object(&output.stderr)["error"];
        assert_eq!(error["status"], 1, "{line}: {error}");
        assert!(error["message"].is_string() && error["command"].is_string(), "{line}: {error}");
    }
    // A command whose output qemu-img defines keeps it.
    let output = lab.ours("info --output=json nofile");
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("qemu-img: Could not open"));
}
