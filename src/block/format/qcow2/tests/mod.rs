//! Tests of the driver as a whole, over a file in memory that can log, fail and delay.

mod amend;
mod bitmaps;
mod caches;
mod commit;
mod compressed;
mod crash;
mod damaged;
mod data_file;
mod encrypted;
mod errors;
mod interop;
mod memory;
mod model;
mod operations;
mod repair;
mod resize;
mod rows;
mod snapshots;
mod window;
