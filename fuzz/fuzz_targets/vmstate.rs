//! Any bytes as the head, the sections and the RAM table of a VM state.
//!
//! ```text
//!   0 length of the head (2) | head … | what the head says of bodies | the rest: table of RAM
//! ```

#![no_main]

use cowvm::vmstate::{Head, Sections, Table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (head, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    let Ok(head) = Head::decode(head) else { return };
    let (bodies, table) = rest.split_at(head.bodies_len().min(rest.len()));
    if let Ok(sections) = head.sections(bodies) {
        let _ = Sections::new(sections).map(Sections::finish);
    }
    let _ = Table::decode(table, head.ram, head.table);
});
