//! JSON as qemu-img writes it: four spaces a level, an empty list over two lines, nothing outside ASCII.

use super::text;
use serde_json::Value;
use std::fmt::Write;

/// `value` with a line feed at its end.
pub fn to_text(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, 0);
    out.push('\n');
    out
}

/// `value` on one line.
pub fn to_line(value: &Value) -> String {
    let quoted = |text: &str| {
        let mut out = String::new();
        write_string(&mut out, text);
        out
    };
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", items.iter().map(to_line).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let member = |(key, value): (&String, &Value)| format!("{}: {}", quoted(key), to_line(value));
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(", "))
        }
        plain => plain.to_string(),
    }
}

fn write_value(out: &mut String, value: &Value, level: usize) {
    match value {
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            write_items(out, ['[', ']'], items, level, |out, item| write_value(out, item, level + 1));
        }
        Value::Object(members) => {
            write_items(out, ['{', '}'], members, level, |out, (key, member)| {
                write_string(out, key);
                out.push_str(": ");
                write_value(out, member, level + 1);
            });
        }
        plain => out.push_str(&plain.to_string()),
    }
}

fn write_items<T>(
    out: &mut String,
    brackets: [char; 2],
    items: impl IntoIterator<Item = T>,
    level: usize,
    mut write_one: impl FnMut(&mut String, T),
) {
    out.push(brackets[0]);
    for (index, item) in items.into_iter().enumerate() {
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        indent(out, level + 1);
        write_one(out, item);
    }
    out.push('\n');
    indent(out, level);
    out.push(brackets[1]);
}

fn indent(out: &mut String, level: usize) {
    out.extend(std::iter::repeat_n("    ", level));
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    // JSON is text: bytes of a name that are none become U+FFFD.
    for unit in String::from_utf8_lossy(&text::to_bytes(text)).encode_utf16() {
        match char::from_u32(u32::from(unit)) {
            Some(short @ ('"' | '\\')) => out.extend(['\\', short]),
            Some('\u{8}') => out.push_str("\\b"),
            Some('\u{c}') => out.push_str("\\f"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(plain @ ' '..='~') => out.push(plain),
            // Writing to a String cannot fail.
            _ => drop(write!(out, "\\u{unit:04X}")),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // Expectations were read off `qemu-img info --output=json` of a file with such a name.
    #[test]
    fn strings_are_escaped_to_ascii() {
        let text = to_text(&json!("n\n\"\\\u{1}\u{7f}ü😀"));
        assert_eq!(text, "\"n\\n\\\"\\\\\\u0001\\u007F\\u00FC\\uD83D\\uDE00\"\n");
    }

    #[test]
    fn nesting_is_indented_and_empty_lists_take_two_lines() {
        let text = to_text(&json!({"a": [], "b": {"c": 1, "d": true}, "e": [1, 2]}));
        let expect = "{\n    \"a\": [\n    ],\n    \"b\": {\n        \"c\": 1,\n        \"d\": true\n    },\n    \
                      \"e\": [\n        1,\n        2\n    ]\n}\n";
        assert_eq!(text, expect);
    }
}
