//! Metrics of what is paused: a pause that was left on leaves no trace in the other metrics.

use metrics::gauge;

use crate::store::Scope;
use crate::telemetry;

/// Publishes whether the queue is paused, and how many circuits are.
pub(super) fn show(paused: &[(Scope, i64)]) {
    let (queue, circuits) = held(paused);
    gauge!(telemetry::QUEUE_PAUSED).set(f64::from(queue));
    gauge!(telemetry::CIRCUITS_PAUSED).set(circuits as f64);
}

fn held(paused: &[(Scope, i64)]) -> (bool, usize) {
    let circuits = paused.iter().filter(|(scope, _)| *scope != Scope::Queue).count();
    (circuits < paused.len(), circuits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_told_from_circuits() {
        let circuit = |name: &str| (Scope::Circuit(name.parse().unwrap()), 7);
        assert_eq!(held(&[]), (false, 0));
        assert_eq!(held(&[(Scope::Queue, 7)]), (true, 0));
        assert_eq!(held(&[circuit("a"), circuit("b")]), (false, 2));
        assert_eq!(held(&[(Scope::Queue, 7), circuit("a")]), (true, 1));
    }
}
