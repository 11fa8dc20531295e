//! Any bytes as what an NBD server says.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cowvm_fuzz::nbd::answer_client(bytes));
