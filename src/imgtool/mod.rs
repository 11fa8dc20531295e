//! `cowvm imgtool`: works on disk images offline, word for word like qemu-img.
//!
//! ```text
//!   main ─▶ getopt (standard options) ─▶ COMMANDS[name].run ─▶ getopt (its options) ─▶ block::ops
//!                                               └─▶ output: results, failures, exit status
//! ```
//!
//! A command is one file and one row of `COMMANDS`: its options stand in a table that the parser and the help
//! read. What images are and how work is done on them is the business of `block`; here are only words.
//!
//! Called as `cowvm imgtool`, not `qemu-img`, its messages begin with that name and a second line says what to do.
//! Where it differs otherwise, docs/imgtool.md says so.

mod amend;
mod bench;
mod bitmap;
mod check;
mod checksum;
mod commit;
mod compare;
mod convert;
mod create;
mod create_options;
mod dd;
mod help;
mod info;
mod interrupt;
mod map;
mod measure;
mod numbers;
mod open;
mod output;
mod progress;
mod rebase;
mod resize;
mod snapshot;
mod snapshot_param;

pub(crate) use info::to_json as image_to_json;

use crate::block::aio::{Backend, Engine};
use crate::block::trace::{self, Trace};
use crate::util::{getopt, json, text};
use getopt::{Flag, Parser};
use output::{Failure, Form};
use std::cell::Cell;
use std::ffi::OsString;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::OnceLock;

/// The name that scripts call; messages to them are exactly QEMU's.
const DROP_IN: &str = "qemu-img";

/// A command of the tool.
struct Command {
    name: &'static str,
    summary: &'static str,
    /// Its operands and most common options, for help.
    usage: &'static str,
    flags: &'static [Flag],
    /// What its operands mean, for help.
    operands: &'static [(&'static str, &'static str)],
    run: fn(Parser) -> Result<u8, Failure>,
}

/// All commands, in the order of the alphabet.
static COMMANDS: &[Command] = &[
    amend::COMMAND,
    bench::COMMAND,
    bitmap::COMMAND,
    check::COMMAND,
    checksum::COMMAND,
    commit::COMMAND,
    compare::COMMAND,
    convert::COMMAND,
    create::COMMAND,
    dd::COMMAND,
    info::COMMAND,
    map::COMMAND,
    measure::COMMAND,
    rebase::COMMAND,
    resize::COMMAND,
    snapshot::COMMAND,
];

/// The option that every command has.
const HELP: Flag = Flag::switch("help", "print this help").short('h');

/// The options before the command word.
static STANDARD: &[Flag] = &[
    HELP,
    Flag::switch("version", "print the version").short('V'),
    Flag::value("trace", "[[enable=]PATTERN][,events=FILE][,file=FILE]", "trace what happens inside")
        .short('T'),
    Flag::value("errors", "human|json", "form of failures").in_full(),
];

/// The name that warnings begin with.
static NAME: OnceLock<String> = OnceLock::new();

/// Warns of something that is no reason to stop.
fn warn(message: &str) {
    text::say(&format!("{}: warning: {message}", NAME.get().map_or(DROP_IN, String::as_str)));
}

/// What the tool was called as.
struct Program {
    name: String,
    /// The form of failures.
    errors: Cell<Form>,
}

impl Program {
    fn new(name: &str) -> Program {
        // There is only one.
        NAME.get_or_init(|| name.to_owned());
        Program { name: name.to_owned(), errors: Cell::new(Form::Human) }
    }

    fn errors(&self) -> Form {
        self.errors.get()
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// A drop-in says what QEMU says and nothing more.
    fn gives_remedies(&self) -> bool {
        self.name != DROP_IN
    }
}

/// Runs the tool. `program` is what its messages begin with (`qemu-img` when called by that name), `args` all
/// that follows on the command line.
pub fn main(program: &str, args: Vec<OsString>) -> ExitCode {
    ExitCode::from(run(&Program::new(program), args))
}

fn run(program: &Program, args: Vec<OsString>) -> u8 {
    let args = args.iter().map(|arg| text::from_os(arg));
    let mut parser = Parser::up_to_operand(STANDARD, args);
    match standard_options(program, &mut parser) {
        Ok(Some(code)) => code,
        Ok(None) => run_command(program, parser.operands()),
        Err(failure) => failure.report(program, None),
    }
}

/// Does what the options before the command word say; the exit status, where that is all.
fn standard_options(program: &Program, parser: &mut Parser) -> Result<Option<u8>, Failure> {
    let mut trace = Trace::default();
    while let Some((name, value)) = parser.next()? {
        match name {
            "help" => return Ok(Some(help::show(program, None))),
            "version" => return Ok(Some(help::show_version())),
            "errors" => program.errors.set(Form::parse(&value)?),
            _ if value == "help" => {
                return output::write(&trace::list()).map(|()| Some(0)).map_err(Failure::from);
            }
            _ => trace.add(program.name(), &value).map_err(|error| Failure::message(error.message()))?,
        }
    }
    trace.start().map_err(|error| Failure::message(error.message()))?;
    Ok(None)
}

/// Finds and runs the command that `words` begin with.
fn run_command(program: &Program, words: Vec<String>) -> u8 {
    let mut words = words.into_iter();
    let Some(name) = words.next() else {
        return Failure::Usage("Not enough arguments".to_owned()).report(program, None);
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Failure::Usage(format!("Command not found: {name}")).report(program, None);
    };
    let words: Vec<String> = words.collect();
    if output::wants_json(command, &words) {
        program.errors.set(Form::Json);
    }
    match (command.run)(Parser::new(command.flags, words)) {
        Ok(code) => code,
        Err(failure) => failure.report(program, Some(command)),
    }
}

/// The engine that a command's block work runs on.
fn engine() -> Result<Rc<Engine>, Failure> {
    Ok(Engine::new(Backend::from_environment())?)
}

/// The one operand of a command that takes just one image.
fn only_image(parser: Parser) -> Result<String, Failure> {
    match <[String; 1]>::try_from(parser.operands()) {
        Ok([filename]) => Ok(filename),
        Err(_) => Err(Failure::Usage("Expecting one image file name".to_owned())),
    }
}

/// Reads a size or position up to 2^63 - 1; `what` names it in the message.
fn size_argument(what: &str, text: &str) -> Result<u64, Failure> {
    numbers::size(what, text, 0, i64::MAX as u64)
}
