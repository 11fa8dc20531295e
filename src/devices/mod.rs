//! The devices of the machine.
