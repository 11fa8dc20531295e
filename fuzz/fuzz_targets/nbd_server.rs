//! Any bytes as what an NBD client says.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cowvm_fuzz::nbd::ask_server(bytes));
