//! The monitor console.
