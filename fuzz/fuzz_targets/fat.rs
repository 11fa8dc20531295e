//! A guest that writes anything to a FAT disk: its host must stay whole.
//!
//! ```text
//!   patches of 5 bytes: 0 what | 1 place (2) | 3 value (2); the last flushes
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cowvm_fuzz::write_fat(data));
