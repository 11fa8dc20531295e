//! A host that fails: the error sweep. Filled below.
