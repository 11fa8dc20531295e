//! A directory of the host as a FAT disk of a real Linux, which changes it.

use super::harness::session::Session;
use crate::seed::seed_or;
use std::fs;

/// Rounds of changes, each with a flush at its end, and changes of a round: as many as fit into a minute, or, with
/// `COWVM_SWEEP=full`, 10,000 of them.
fn extent() -> (u32, u32) {
    match std::env::var("COWVM_SWEEP").as_deref() {
        Ok("full") => (200, 50),
        _ => (8, 30),
    }
}

#[test]
fn the_directory_is_what_linux_made_of_its_disk_at_each_flush() {
    let seed = seed_or(rand::random::<u32>().into());
    let (rounds, changes) = extent();
    let session = Session::new();
    let shared = session.path("shared");
    fs::create_dir_all(shared.join("Deep/er")).unwrap();
    fs::write(shared.join("untouched, and Größe.txt"), [1; 70_000]).unwrap();
    fs::write(shared.join("Deep/er/A.BIN"), [2; 3000]).unwrap();
    fs::write(shared.join("FILE1.TXT"), b"one").unwrap();
    session.run(
        256,
        &format!(
            r#"
            list() {{
                find . -type d | LC_ALL=C sort
                find . -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 sha256sum
            }}
            tree() {{ (cd "$1" && list) | sha256sum | cut -d ' ' -f 1; }}
            start linux fat -m 256 -hda fat:rw:shared
            echo '{rounds} {changes} {seed}' >&3
            round=1
            while [ "$round" -le {rounds} ]; do
                wait_for "MODEL $round [0-9a-f]\{{64\}}"
                model=$(tr -d '\r' <linux.log | sed -n "s/^MODEL $round //p")
                if [ "$model" != "$(tree shared)" ]; then
                    # What both have, and what cowvm says at its end.
                    echo list >&3
                    wait_for LISTED
                    (cd shared && list | sed 's/^/HOST /') >>linux.log
                    printf '\001x' >&3
                    wait "$vmm_pid" || true
                    fail "the directory is not the model after round $round"
                fi
                echo >&3
                round=$((round + 1))
            done
            finish"#
        ),
    );
    assert_eq!(fs::read(shared.join("untouched, and Größe.txt")).unwrap(), [1; 70_000]);
    assert_eq!(fs::read(shared.join("Deep/er/A.BIN")).unwrap(), [2; 3000]);
}
