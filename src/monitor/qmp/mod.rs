//! QMP: commands, answers and events as JSON, for programs.
//!
//! ```text
//!   bytes ─▶ frame::Framer ─▶ a command ─▶ table ─▶ a topic's function ─▶ {"return": …} or {"error": …}
//! ```
//! Commands are answered in their order; while one's work goes on, the next ones wait. Whatever a program sends costs
//! bounded memory and stack: the framer limits length and nesting before anything is parsed.

mod arguments;
mod frame;
mod table;

pub(super) use arguments::{Argument, Arguments, DEVICE, Kind};
pub(super) use table::Command;

use super::hmp::Answer;
use super::{Control, Dialogue, Error, Pending, Result, info};
use crate::util::json;
use frame::{Frame, Framer};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;

/// What a command answers.
pub(super) enum Reply {
    /// This.
    Value(Value),
    /// Nothing, once the work is done.
    Pending(Pending),
    /// A line's text, once its work is done.
    Text(Answer),
}

impl Reply {
    /// There is nothing to say but that it was done.
    pub(super) fn nothing() -> Reply {
        Reply::Value(json!({}))
    }

    /// The answer, once there is one.
    fn poll(&mut self) -> Option<Result<Value>> {
        match self {
            Reply::Value(value) => Some(Ok(value.take())),
            Reply::Pending(pending) => Some(pending.poll()?.map(|()| json!({}))),
            Reply::Text(answer) => Some(Ok(json!(answer.poll()?.replace('\n', "\r\n")))),
        }
    }
}

/// A command whose answer is awaited.
struct Asked {
    reply: Reply,
    id: Option<Value>,
}

/// A program that speaks QMP.
#[derive(Default)]
pub struct Qmp {
    framer: Framer,
    negotiated: bool,
    asked: Option<Asked>,
    /// What was sent while a command was under way.
    waiting: VecDeque<u8>,
}

impl Qmp {
    fn serve(&mut self, frame: Frame, control: &mut Control, out: &mut Vec<u8>) {
        let request = match frame {
            Frame::Object(text) => Request::read(&text),
            Frame::Bad(why) => Err(Error::new(format!("JSON parse error, {why}")).into()),
        };
        let (reply, id) = match request {
            Ok(request) => (self.run(&request, control), request.id),
            Err(Refusal { error, id }) => (Err(error), id),
        };
        match reply {
            Ok(reply) => {
                self.asked = Some(Asked { reply, id });
                self.finish_answer(out);
            }
            Err(error) => answer(Err(error), id, out),
        }
    }

    fn run(&mut self, request: &Request, control: &mut Control) -> Result<Reply> {
        match (self.negotiated, request.name == "qmp_capabilities") {
            (false, true) => {
                check_capabilities(&request.arguments)?;
                self.negotiated = true;
                Ok(Reply::nothing())
            }
            (true, false) => table::call(control, &request.name, &request.arguments),
            (false, false) => Err(not_found("Expecting capabilities negotiation with 'qmp_capabilities'")),
            (true, true) => Err(not_found("Capabilities negotiation is already complete, command ignored")),
        }
    }

    fn finish_answer(&mut self, out: &mut Vec<u8>) {
        let Some(asked) = &mut self.asked else { return };
        if let Some(result) = asked.reply.poll() {
            let id = asked.id.take();
            self.asked = None;
            answer(result, id, out);
        }
    }
}

impl Dialogue for Qmp {
    fn greeting(&self) -> Vec<u8> {
        let mut out = Vec::new();
        say(&json!({"QMP": {"version": info::version(), "capabilities": []}}), &mut out);
        out
    }

    fn feed(&mut self, bytes: &[u8], control: &mut Control, out: &mut Vec<u8>) {
        self.waiting.extend(bytes);
        while self.asked.is_none() && control.wants_quit().is_none() {
            let Some(byte) = self.waiting.pop_front() else { return };
            if let Some(frame) = self.framer.feed(byte) {
                self.serve(frame, control, out);
            }
        }
    }

    fn poll(&mut self, control: &mut Control, out: &mut Vec<u8>) {
        self.finish_answer(out);
        self.feed(&[], control, out);
    }

    fn is_busy(&self) -> bool {
        self.asked.is_some()
    }

    fn tell(&mut self, event: &Value, out: &mut Vec<u8>) {
        if self.negotiated {
            say(event, out);
        }
    }
}

/// A command as it was sent.
#[derive(Debug)]
struct Request {
    name: String,
    arguments: Map<String, Value>,
    id: Option<Value>,
}

/// Why a command was not even tried, and how it was named.
#[derive(Debug)]
struct Refusal {
    error: Error,
    id: Option<Value>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { error, id: None }
    }
}

impl Request {
    fn read(text: &[u8]) -> std::result::Result<Request, Refusal> {
        let value: Value =
            serde_json::from_slice(text).map_err(|_| Error::new("JSON parse error, expecting value"))?;
        let Value::Object(mut members) = value else {
            return Err(Error::new("QMP input must be a JSON object").into());
        };
        let id = members.shift_remove("id");
        Request::of_members(members, id.clone()).map_err(|error| Refusal { error, id })
    }

    fn of_members(mut members: Map<String, Value>, id: Option<Value>) -> Result<Request> {
        let (name, arguments) = (members.shift_remove("execute"), members.shift_remove("arguments"));
        if let Some((member, _)) = members.iter().next() {
            return Err(Error::new(format!("QMP input member '{member}' is unexpected")));
        }
        let name = match name {
            Some(Value::String(name)) => name,
            Some(_) => return Err(Error::new("QMP input member 'execute' must be a string")),
            None => return Err(Error::new("QMP input lacks member 'execute'")),
        };
        let arguments = match arguments {
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(Error::new("QMP input member 'arguments' must be an object")),
            None => Map::new(),
        };
        Ok(Request { name, arguments, id })
    }
}

/// There are no capabilities, so none can be enabled.
fn check_capabilities(arguments: &Map<String, Value>) -> Result<()> {
    let arguments = Arguments::check(arguments, &[Argument::optional("enable", Kind::List)])?;
    match arguments.list("enable").first() {
        Some(capability) => Err(Error::new(format!("Capability {capability} not available"))),
        None => Ok(()),
    }
}

fn not_found(description: impl Into<String>) -> Error {
    Error::of_class("CommandNotFound", description)
}

fn answer(result: Result<Value>, id: Option<Value>, out: &mut Vec<u8>) {
    let mut answer = match result {
        Ok(value) => json!({"return": value}),
        Err(error) => json!({"error": {"class": error.class, "desc": error.description}}),
    };
    if let Some(id) = id {
        answer["id"] = id;
    }
    say(&answer, out);
}

/// One line.
fn say(value: &Value, out: &mut Vec<u8>) {
    out.extend(json::to_line(value).as_bytes());
    out.extend(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> (String, Option<Value>) {
        let Refusal { error, id } = Request::read(text.as_bytes()).unwrap_err();
        (error.description, id)
    }

    /// As QEMU 10.0 answers them.
    #[test]
    fn what_is_no_command_is_refused_in_qemus_words() {
        assert_eq!(refusal("[1]").0, "QMP input must be a JSON object");
        assert_eq!(refusal(r#"{"x": 1}"#).0, "QMP input member 'x' is unexpected");
        assert_eq!(refusal("{}").0, "QMP input lacks member 'execute'");
        let (said, id) = refusal(r#"{"execute": 1, "id": {"a": [1]}}"#);
        assert_eq!(said, "QMP input member 'execute' must be a string");
        assert_eq!(id, Some(json!({"a": [1]})));
        let said = refusal(r#"{"execute": "stop", "arguments": 7}"#).0;
        assert_eq!(said, "QMP input member 'arguments' must be an object");
    }

    #[test]
    fn answers_carry_the_id_and_errors_their_class() {
        let mut out = Vec::new();
        answer(Ok(json!({})), Some(json!(7)), &mut out);
        answer(Err(not_found("x")), None, &mut out);
        let expected = "{\"return\": {}, \"id\": 7}\r\n\
                        {\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"x\"}}\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
