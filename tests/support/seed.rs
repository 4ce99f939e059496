//! The seed of a test with random input.

/// Returns the seed in `BACKUP_MANAGER_SEED`, or a new one; print it, so that a failure can be replayed.
pub fn seed() -> u64 {
    let given = std::env::var("BACKUP_MANAGER_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| getrandom::u64().unwrap() >> 1)
}
