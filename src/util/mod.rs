//! What every layer may use: on-disk integers, sizes with suffixes, key=value options.

pub mod keyval;
pub mod size;
pub mod time;
