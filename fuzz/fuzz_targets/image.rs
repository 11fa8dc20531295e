//! Any bytes as an image. The folder `seeds` has small real ones to begin with.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cowvm_fuzz::exercise(bytes));
