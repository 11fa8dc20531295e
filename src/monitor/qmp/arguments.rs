//! The arguments of a command, checked against what it takes.

use crate::monitor::{Error, Result};
use serde_json::{Map, Value};

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::monitor) enum Kind {
    Text,
    Number,
    Switch,
    /// Of strings.
    List,
    /// With members of its own.
    Object,
}

impl Kind {
    /// QMP's word for it.
    fn name(self) -> &'static str {
        match self {
            Kind::Text => "string",
            Kind::Number => "integer",
            Kind::Switch => "boolean",
            Kind::List => "array",
            Kind::Object => "object",
        }
    }

    fn takes(self, value: &Value) -> bool {
        match self {
            Kind::Text => value.is_string(),
            // Of 64 bits with a sign, as in QEMU.
            Kind::Number => value.is_i64(),
            Kind::Switch => value.is_boolean(),
            Kind::Object => value.is_object(),
            Kind::List => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
        }
    }
}

/// An argument that a command takes.
#[derive(Clone, Copy, Debug)]
pub(in crate::monitor) struct Argument {
    name: &'static str,
    kind: Kind,
    required: bool,
}

impl Argument {
    pub(in crate::monitor) const fn required(name: &'static str, kind: Kind) -> Argument {
        Argument { name, kind, required: true }
    }

    pub(in crate::monitor) const fn optional(name: &'static str, kind: Kind) -> Argument {
        Argument { name, kind, required: false }
    }
}

/// The drive that a command is about, where it can be named in another way too.
pub(in crate::monitor) const DEVICE: Argument = Argument::optional("device", Kind::Text);

/// Arguments that a command can take: none unknown, none of a wrong kind, none missing.
pub(in crate::monitor) struct Arguments<'a>(&'a Map<String, Value>);

impl<'a> Arguments<'a> {
    /// Checks what was sent.
    ///
    /// # Errors
    /// In QEMU's words.
    pub(super) fn check(given: &'a Map<String, Value>, known: &[Argument]) -> Result<Arguments<'a>> {
        for argument in known {
            match given.get(argument.name) {
                Some(value) if !argument.kind.takes(value) => {
                    return Err(Error::new(format!(
                        "Invalid parameter type for '{}', expected: {}",
                        argument.name,
                        argument.kind.name()
                    )));
                }
                None if argument.required => {
                    return Err(Error::new(format!("Parameter '{}' is missing", argument.name)));
                }
                _ => {}
            }
        }
        match given.keys().find(|name| known.iter().all(|argument| argument.name != **name)) {
            Some(unknown) => Err(Error::new(format!("Parameter '{unknown}' is unexpected"))),
            None => Ok(Arguments(given)),
        }
    }

    pub(in crate::monitor) fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// The members of an object; nobody has checked them.
    pub(in crate::monitor) fn object(&self, name: &str) -> Option<Arguments<'a>> {
        self.0.get(name).and_then(Value::as_object).map(Arguments)
    }

    pub(in crate::monitor) fn number(&self, name: &str) -> Option<i64> {
        self.0.get(name).and_then(Value::as_i64)
    }

    pub(in crate::monitor) fn switch(&self, name: &str) -> Option<bool> {
        self.0.get(name).and_then(Value::as_bool)
    }

    pub(in crate::monitor) fn list(&self, name: &str) -> Vec<&'a str> {
        let items = self.0.get(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As QEMU 10.0 answers them.
    #[test]
    fn wrong_arguments_are_refused_in_qemus_words() {
        let known = [Argument::optional("device", Kind::Text), Argument::required("size", Kind::Number)];
        let said = |given: Value| {
            let checked = Arguments::check(given.as_object().unwrap(), &known);
            checked.map(drop).unwrap_err().description
        };
        assert_eq!(said(json!({"device": "hda"})), "Parameter 'size' is missing");
        assert_eq!(said(json!({"size": "1"})), "Invalid parameter type for 'size', expected: integer");
        assert_eq!(said(json!({"size": 1u64 << 63})), "Invalid parameter type for 'size', expected: integer");
        assert_eq!(said(json!({"size": 1, "x": 1})), "Parameter 'x' is unexpected");
    }
}
