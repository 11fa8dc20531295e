//! `check`: the consistency of an image, and repairs.

use super::getopt::{Flag, Parser};
use super::open::{self, Sources};
use super::output::{self, Failure, Form};
use super::progress::{PROGRESS_IN_FULL, Progress, Wanted};
use super::{Command, HELP, engine, json, only_image};
use crate::block::Error;
use crate::block::error::errno_text;
use crate::block::graph::Node;
use crate::block::graph::driver::{Check, CheckReport, Repair};
use crate::util::text::say;
use serde_json::Value;
use std::io;

pub(super) const COMMAND: Command = Command {
    name: "check",
    summary: "Check the consistency of an image",
    usage: "[-f FMT] [--output=human|json] [-r leaks|all] [-T CACHE] [-U] [-q] FILENAME",
    flags: &[
        HELP,
        Flag::value("format", "FMT", "format of the image (default: guessed)").short('f'),
        Flag::value("cache", "CACHE", "cache mode: writeback (default), none, …").short('T'),
        Flag::value("repair", "leaks|all", "repair what is wrong").short('r'),
        Flag::value("output", "human|json", "form of the result"),
        Flag::value("object", "OBJECT", "define an object, such as a secret"),
        Flag::switch("image-opts", "FILENAME is an option string"),
        Flag::switch("force-share", "look at the image although another process may write it").short('U'),
        Flag::switch("quiet", "say nothing but errors").short('q'),
        PROGRESS_IN_FULL,
    ],
    operands: &[("FILENAME", "the image")],
    run,
};

/// Exit status: the image is damaged.
const CORRUPT: u8 = 2;
/// Exit status: clusters are lost, but nothing is damaged.
const LEAKS: u8 = 3;
/// Exit status: there is no check for this format.
const NO_CHECK: u8 = 63;

fn run(mut parser: Parser) -> Result<u8, Failure> {
    let (mut source, mut form, mut quiet, mut repair) = (Sources::new(), Form::Human, false, None);
    let (mut cache, mut progress) = (None, Wanted::default());
    while let Some((name, value)) = parser.next()? {
        match name {
            _ if source.take(name, &value)? => {}
            "help" => return Err(Failure::Help),
            "cache" => cache = Some(value),
            "repair" => repair = Some(what_to_repair(&value)?),
            "output" => form = Form::parse(&value)?,
            "progress" => progress.take(&value)?,
            _ => quiet = true,
        }
    }
    let filename = only_image(parser)?;
    if let Some(word) = cache {
        source.options.cache = open::source_cache(&word)?;
    }
    if repair.is_some() && source.options.force_share {
        let message = "force-share=on can only be used with read-only images";
        return Err(Failure::message(format!("Could not open '{filename}': {message}")));
    }
    source.options.check = true;
    source.options.read_only = repair.is_none();
    let tell = |report: &CheckReport| match form {
        Form::Human if !quiet => output::write(&fixed_to_text(report)),
        _ => Ok(()),
    };
    let progress = Progress::later(progress.unless(quiet || form == Form::Json));
    let (format, report) = check(&filename, &source, repair, &progress, tell)?;
    progress.finish();
    progress.complete();
    drop(progress);
    match form {
        _ if quiet => {}
        Form::Json => output::write(&json::to_text(&to_json(&filename, format, &report)))?,
        Form::Human => output::write(&to_text(&report))?,
    }
    match report.check_errors {
        0 => Ok(exit_status(&report)),
        _ => Err(Failure::message("Check failed")),
    }
}

fn what_to_repair(what: &str) -> Result<Repair, Failure> {
    match what {
        "leaks" => Ok(Repair::Leaks),
        "all" => Ok(Repair::All),
        _ => {
            let message = format!("--repair (-r) expects 'leaks' or 'all' not '{what}'");
            Err(Failure::Usage(message))
        }
    }
}

/// Checks the image, and if anything was repaired tells that and checks it once more.
fn check(
    filename: &str,
    source: &Sources,
    repair: Option<Repair>,
    progress: &Progress,
    tell: impl FnOnce(&CheckReport) -> io::Result<()>,
) -> Result<(&'static str, CheckReport), Failure> {
    let engine = engine()?;
    progress.listen(&engine);
    engine.block_on(async {
        let node = source.open(&engine, filename).await?;
        let checker = checker(&node)?;
        let mut report = check_once(checker, repair).await?;
        if report.corruptions_fixed + report.leaks_fixed > 0 {
            tell(&report)?;
            let CheckReport { corruptions_fixed, leaks_fixed, .. } = report;
            report = CheckReport { corruptions_fixed, leaks_fixed, ..check_once(checker, None).await? };
        }
        node.close().await.map_err(|error| Failure::message(check_failed(&error)))?;
        Ok((node.driver().format_name(), report))
    })?
}

fn checker(node: &Node) -> Result<&dyn Check, Failure> {
    node.driver().checker().ok_or_else(|| Failure::Other {
        message: "This image format does not support checks".to_owned(),
        remedy: None,
        code: NO_CHECK,
    })
}

async fn check_once(checker: &dyn Check, repair: Option<Repair>) -> Result<CheckReport, Failure> {
    let report = match repair {
        None => checker.check().await,
        Some(what) => checker.repair(what).await,
    };
    let report = report
        .map_err(|error| Failure::Twice { first: error.message().to_owned(), then: check_failed(&error) })?;
    report.messages.iter().for_each(|message| say(message));
    match &report.gave_up {
        None => Ok(report),
        Some(error) => Err(Failure::message(check_failed(error))),
    }
}

/// What is said last of a check that ended early.
fn check_failed(error: &Error) -> String {
    format!("Check failed: {}", errno_text(&io::Error::from_raw_os_error(error.errno())))
}

fn exit_status(report: &CheckReport) -> u8 {
    match report {
        CheckReport { corruptions: 1.., .. } => CORRUPT,
        CheckReport { leaks: 1.., .. } => LEAKS,
        _ => 0,
    }
}

fn fixed_to_text(report: &CheckReport) -> String {
    format!(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
         Double checking the fixed image now...\n",
        report.leaks_fixed, report.corruptions_fixed
    )
}

fn to_text(report: &CheckReport) -> String {
    let mut text = String::new();
    if report.corruptions + report.leaks + report.check_errors == 0 {
        text += "No errors were found on the image.\n";
    }
    if report.corruptions > 0 {
        text += &format!(
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        );
    }
    if report.leaks > 0 {
        text += &format!(
            "\n{} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.\n",
            report.leaks
        );
    }
    if report.check_errors > 0 {
        text += &format!("\n{} internal errors have occurred during the check.\n", report.check_errors);
    }
    text + &statistics(report)
}

fn statistics(report: &CheckReport) -> String {
    let mut text = String::new();
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        text += &format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters),
        );
    }
    if report.image_end_offset > 0 {
        text += &format!("Image end offset: {}\n", report.image_end_offset);
    }
    text
}

/// The members that qemu-img writes, in its order; counts of nothing are left out.
fn to_json(filename: &str, format: &str, report: &CheckReport) -> Value {
    let count = |number: u64| (number > 0).then(|| Value::from(number));
    let members = [
        ("image-end-offset", count(report.image_end_offset)),
        ("compressed-clusters", count(report.compressed_clusters)),
        ("total-clusters", count(report.total_clusters)),
        ("corruptions", count(report.corruptions)),
        ("corruptions-fixed", count(report.corruptions_fixed)),
        ("check-errors", Some(report.check_errors.into())),
        ("leaks", count(report.leaks)),
        ("leaks-fixed", count(report.leaks_fixed)),
        ("allocated-clusters", count(report.allocated_clusters)),
        ("filename", Some(filename.into())),
        ("format", Some(format.into())),
        ("fragmented-clusters", count(report.fragmented_clusters)),
    ];
    let written = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(written.collect())
}
