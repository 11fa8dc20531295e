//! The seeds of random tests, of the crate's own as well.

/// The seed of a random test: that of `COWVM_SEED`, or `usual`. It is printed, so that a failure can be run again.
pub(crate) fn seed_or(usual: u64) -> u64 {
    let seed =
        std::env::var("COWVM_SEED").map_or(usual, |seed| seed.parse().expect("COWVM_SEED is a number"));
    println!("COWVM_SEED={seed}");
    seed
}
