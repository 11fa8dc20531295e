//! Templates of command lines: angle brackets hold alternatives, and every combination is a line.
//!
//! ```text
//!   convert<| -c> -O <raw|qcow2> a out   →   convert -O raw a out, convert -O qcow2 a out,
//!                                            convert -c -O raw a out, convert -c -O qcow2 a out
//! ```

/// All lines of a template; brackets do not nest.
pub(super) fn expand(template: &str) -> Vec<String> {
    let Some((before, rest)) = template.split_once('<') else { return vec![template.to_owned()] };
    let (choices, after) = rest.split_once('>').expect("a closing bracket");
    let after = expand(after);
    choices
        .split('|')
        .flat_map(|choice| after.iter().map(move |after| format!("{before}{choice}{after}")))
        .collect()
}

#[test]
fn every_combination_of_alternatives_is_a_line() {
    assert_eq!(expand("a"), ["a"]);
    assert_eq!(expand("a<| b><1|2>"), ["a1", "a2", "a b1", "a b2"]);
}
