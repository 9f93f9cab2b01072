//! Jitter.

/// Returns a random number from 0 to 1, which spreads waits that would otherwise end together; a half if the operating
/// system has no randomness.
pub(crate) fn jitter() -> f64 {
    let mut random = [0; 4];
    match getrandom::fill(&mut random) {
        Ok(()) => f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_from_zero_to_one_and_varies() {
        let drawn: Vec<f64> = (0..8).map(|_| jitter()).collect();
        assert!(drawn.iter().all(|j| (0.0..=1.0).contains(j)), "{drawn:?}");
        assert!(drawn.iter().any(|j| *j != drawn[0]), "{drawn:?}");
    }
}
