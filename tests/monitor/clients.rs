//! Clients of the two monitors, which know nothing of cowvm but what QEMU's documentation says.

use crate::running::PATIENCE;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(crate) fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A client of the human monitor.
pub(crate) struct Hmp {
    pub(crate) stream: UnixStream,
    pub(crate) greeting: String,
}

impl Hmp {
    pub(crate) fn connect(path: &Path) -> Hmp {
        let mut hmp = Hmp { stream: connect(path), greeting: String::new() };
        hmp.greeting = hmp.until_prompt();
        hmp
    }

    /// What comes up to the next prompt.
    fn until_prompt(&mut self) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"(qemu) ") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    /// The answer to a command: without the echo, the prompt, and the carriage returns.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let text = self.until_prompt();
        let answer = text.strip_prefix(&format!("{line}\r\n")).unwrap_or_else(|| panic!("{text:?}"));
        answer.strip_suffix("(qemu) ").unwrap().replace("\r\n", "\n")
    }
}

/// A client of QMP that has negotiated.
pub(crate) struct Qmp {
    pub(crate) stream: BufReader<UnixStream>,
    pub(crate) greeting: Value,
    events: VecDeque<Value>,
}

impl Qmp {
    /// A client that has not negotiated.
    pub(crate) fn raw(path: &Path) -> Qmp {
        let mut qmp =
            Qmp { stream: BufReader::new(connect(path)), greeting: Value::Null, events: VecDeque::new() };
        qmp.greeting = qmp.receive();
        qmp
    }

    pub(crate) fn connect(path: &Path) -> Qmp {
        let mut qmp = Qmp::raw(path);
        assert_eq!(qmp.send(r#"{"execute": "qmp_capabilities"}"#), json!({"return": {}}));
        qmp
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    /// Sends text and returns the answer; events are kept.
    pub(crate) fn send(&mut self, text: &str) -> Value {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
        loop {
            let value = self.receive();
            if value.get("event").is_none() {
                return value;
            }
            self.events.push_back(value);
        }
    }

    /// The answer to a command that must succeed.
    pub(crate) fn execute(&mut self, name: &str, arguments: Value) -> Value {
        let mut answer = self.send(&json!({"execute": name, "arguments": arguments}).to_string());
        assert!(answer.get("return").is_some(), "{name}: {answer}");
        answer["return"].take()
    }

    /// The error of a command that must fail: class and description.
    pub(crate) fn refused(&mut self, name: &str, arguments: Value) -> (String, String) {
        let answer = self.send(&json!({"execute": name, "arguments": arguments}).to_string());
        let error =
            |member: &str| answer["error"][member].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        (error("class"), error("desc"))
    }

    /// The next event, which must have this name; its data.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let event = self.events.pop_front().unwrap_or_else(|| self.receive());
        assert_eq!(event["event"], name, "{event}");
        assert!(event["timestamp"]["seconds"].is_u64() && event["timestamp"]["microseconds"].is_u64());
        event["data"].clone()
    }
}
