//! `bench`: the plan is announced and kept; what makes no sense is refused in qemu-img's words.

use crate::harness::Lab;
use std::process::Output;

/// Exit status and both outputs, without the seconds that it took.
fn told(output: &Output) -> (Option<i32>, String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    let seconds = "Run completed in ";
    let out = match out.split_once(seconds) {
        Some((before, rest)) => {
            let (number, after) = rest.split_once(' ').unwrap();
            assert!(number.len() >= 5 && number.parse::<f64>().is_ok(), "{number}");
            format!("{before}{seconds}{after}")
        }
        None => out,
    };
    (output.status.code(), out, err)
}

fn same(lab: &Lab, lines: &[&str]) {
    for line in lines {
        assert_eq!(told(&lab.ours(line)), told(&lab.real(line)), "{line}");
    }
}

fn images() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 8M").qemu_img("create -q -f qcow2 image 8M");
    lab
}

#[test]
fn plans_are_announced_and_carried_out() {
    let lab = images();
    same(
        &lab,
        &[
            "bench -c 10 raw",
            "bench -c 3000 -f raw raw",
            "bench -q -c 10 -f raw raw",
            "bench -c 10 -f qcow2 -d 1 image",
            "bench -c 20 -s 1M -S 3M image",
            "bench -c 3 -o 1k -S 0 raw",
            "bench -c 3 -s 1000 -o 1M raw",
            "bench -c 10 --image-opts driver=qcow2,file.filename=image",
            "bench -c 10 -t none -n raw",
            "bench -c 10 -i threads -U raw",
            "bench -c 10 -i io_uring raw",
            "bench -c 10 -t directsync -i native raw",
            "bench -w -c 10 -f raw raw",
            "bench -w -c 10 raw",
            "bench -w -c 10 -d 4 --pattern=65 --flush-interval=5 --no-drain -f raw raw",
            "bench -w -c 10 -d 4 --flush-interval=5 -t writethrough image",
            "bench -w -c 3 --flush-interval=0 image",
            "bench -c 1 --no-drain --pattern=1 raw",
            "bench -c 4 -s 8M raw",
            // Behind the end of the disk nothing is to be read.
            "bench -c 3 -o 9M raw",
            "bench -c 2 -s 16M raw",
            "bench -c 1 -s 512 -o 8M raw",
            "bench -w -c 5 -s 3000 -o 8386560 -f raw raw",
        ],
    );
}

#[test]
fn writes_go_where_the_plan_says() {
    let lab = images();
    let line = "bench -w -c 5 -d 2 -s 3000 -S 3M -o 1000 --pattern=0x41 --flush-interval=2 -f raw raw";
    assert!(lab.ours(line).status.success());
    let mut disk = vec![0; 8 << 20];
    let mut at = 1000;
    for _ in 0..5 {
        disk[at..at + 3000].fill(0x41);
        at = (at + (3 << 20)) % disk.len();
    }
    assert!(std::fs::read(lab.path("raw")).unwrap() == disk);
    assert!(lab.ours("bench -w -c 128 -s 64k --pattern=7 image").status.success());
    lab.write("sevens", &[7; 8 << 20]).qemu_img("compare sevens image").qemu_img("check image");
}

#[test]
fn what_makes_no_sense_is_refused_in_the_same_words() {
    let lab = images();
    same(
        &lab,
        &[
            "bench",
            "bench raw image",
            "bench nofile",
            "bench -w -c 10 --flush-interval=5 --no-drain -f raw raw",
            "bench -c 10 -d 4 --flush-interval=5 -f raw raw",
            "bench --flush-interval=5",
            "bench --pattern=256 -w raw",
            "bench --pattern=-1 -w raw",
            "bench --pattern=x -w raw",
            "bench -c x raw",
            "bench -c 0 raw",
            "bench -c -1 raw",
            "bench -c 1k raw",
            "bench -c 3000000000 raw",
            "bench -c 99999999999999999999 raw",
            "bench -d 0 raw",
            "bench -d x raw",
            "bench -o -1 raw",
            "bench -o 1x raw",
            "bench -s 0 raw",
            "bench -s 3G raw",
            "bench -s x raw",
            "bench -S -1 raw",
            "bench -S x raw",
            "bench -t bogus raw",
            "bench -n -c 10 raw",
            "bench -i native -c 10 raw",
            "bench -i bogus -c 10 raw",
            "bench -U -w -c 10 -f raw raw",
            "bench --image-opts -f raw raw",
            "bench --flush-interval=x raw",
            "bench --flush-interval=-1 raw",
            "bench -f bogus raw",
            "bench -f qcow2 raw",
            "bench --c 1 raw",
            "bench --f raw raw",
            "bench --n raw",
            "bench --s 1",
            "bench --o",
            "bench --object secret,id=s,data=abc raw",
        ],
    );
}

#[test]
fn requests_that_need_more_memory_than_there_is_are_refused() {
    let lab = Lab::new();
    lab.qemu_img("create -q raw 1M");
    for line in ["bench -c 2000000000 -d 2000000000 -s 1", "bench -c 2000000 -d 2000000 -s 1"] {
        let done = lab.ours(&format!("{line} -f raw raw"));
        assert_eq!(done.status.code(), Some(1), "{line}");
        assert!(String::from_utf8(done.stderr).unwrap().contains("need too much memory"), "{line}");
    }
}
