//! What two files that should be the same image have in common, by the real qemu-img.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// What is different between two files, `name` in both folders. `by_content`: what is allocated for it may differ.
pub(super) fn files(name: &str, ours: &Path, real: &Path, by_content: bool) -> String {
    let (Ok(our_bytes), Ok(real_bytes)) = (std::fs::read(ours), std::fs::read(real)) else {
        return match (real.exists(), ours.exists()) {
            (true, false) => format!("  {name}: only the real one made it\n"),
            (false, true) => format!("  {name}: only ours made it\n"),
            _ => String::new(),
        };
    };
    let mut told = String::new();
    if our_bytes == real_bytes {
        return told;
    }
    if real_bytes.starts_with(b"QFI\xfb") && our_bytes.starts_with(b"QFI\xfb") {
        told += &facts(name, "info --output=json", ours, real);
        if !by_content {
            told += &facts(name, "map --output=json", ours, real);
            told += &facts(name, "check --output=json", ours, real);
        } else {
            let [ours, real] = [ours, real].map(|path| ask(&["check -q -U -f qcow2"], &[path]).status.code());
            if ours != real {
                told += &format!("  {name}: check: real {real:?}, ours {ours:?}\n");
            }
        }
        told += &compare(name, ours, real);
    } else if !(real_bytes.starts_with(b"LUKS") && our_bytes.starts_with(b"LUKS")) {
        let (a, b) = (our_bytes.len(), real_bytes.len());
        let at = our_bytes.iter().zip(&real_bytes).position(|(a, b)| a != b);
        told += &format!("  {name}: raw files differ at {at:?}; lengths: real {b}, ours {a}\n");
    }
    told
}

fn facts(name: &str, subject: &str, ours: &Path, real: &Path) -> String {
    let [ours, real] = [ours, real].map(|path| {
        let output = ask(&[subject, "-U -f qcow2"], &[path]);
        let facts = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), merged(stripped(facts)))
    });
    if ours == real {
        String::new()
    } else {
        format!("  {name}: {subject}:\n    real {real:?}\n    ours {ours:?}\n")
    }
}

/// Without what may differ between images that are alike: places, dates, what is random.
fn stripped(value: Value) -> Value {
    const VARYING: &[&str] = &[
        "actual-size",
        "children",
        "date-nsec",
        "date-sec",
        "filename",
        "fragmented-clusters",
        "full-backing-filename",
        "image-end-offset",
        "iters",
        "master-key-iters",
        "offset",
        "uuid",
    ];
    match value {
        Value::Array(items) => items.into_iter().map(stripped).collect(),
        Value::Object(members) => members
            .into_iter()
            .filter(|(name, _)| !VARYING.contains(&name.as_str()))
            .map(|(name, value)| (name, stripped(value)))
            .collect(),
        plain => plain,
    }
}

/// A map whose neighbours differ. Holes that the host has inside of a cluster are no matter of the image.
fn merged(value: Value) -> Value {
    let Value::Array(extents) = value else { return value };
    let mut out: Vec<Value> = Vec::new();
    for mut extent in extents {
        if extent["data"] == true {
            extent["zero"] = false.into();
        }
        let kind = |extent: &Value| {
            ["depth", "present", "zero", "data", "compressed"].map(|key| extent[key].clone())
        };
        match out.last_mut() {
            Some(last) if kind(last) == kind(&extent) => {
                last["length"] =
                    (last["length"].as_u64().unwrap() + extent["length"].as_u64().unwrap()).into();
            }
            _ => out.push(extent),
        }
    }
    Value::Array(out)
}

fn compare(name: &str, ours: &Path, real: &Path) -> String {
    let output = ask(&["compare -U -f qcow2 -F qcow2"], &[ours, real]);
    match output.status.code() {
        // What cannot be read (without a key, or with damage that is alike) is not compared.
        Some(0 | 2 | 3 | 4) => String::new(),
        _ => format!("  {name}: {}", String::from_utf8_lossy(&output.stdout)),
    }
}

fn ask(words: &[&str], paths: &[&Path]) -> Output {
    let words = words.iter().flat_map(|words| words.split(' '));
    Command::new("qemu-img").args(words).args(paths).output().unwrap()
}

/// Only the first and the last step of progress.
pub(super) fn without_steps(text: &str) -> String {
    const END: &str = "/100%)\r";
    let Some(first) = text.find(END) else { return text.to_owned() };
    let last = text.rfind(END).unwrap_or(first);
    let start = text[..last].rfind(' ').unwrap_or(0);
    format!("{}{}", &text[..first + END.len()], text[start..].trim_start())
}

/// Without how long something took, and what options mean (`-o help`), which everyone says in his own words.
pub(super) fn without_noise(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.split_once(" - ") {
            _ if line.starts_with("Run completed in ") => "Run completed\n",
            Some((option, _)) if option.starts_with("  ") && option.contains("=<") => option,
            _ => line,
        })
        .collect()
}
