//! Liveness, by exhaustive search.
//!
//! Stateright checks invariants well, but its `eventually` accepts a path that ends in a cycle, and this protocol has
//! cycles everywhere. Besides, it is not enough that some path ends well: from *every* state that faults can lead to
//! there must be a path on which each job ends, without a further fault, without outside help, and even if stopped
//! workers stay stopped. So the whole graph is built here, and walked backwards from its good ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use super::model::{Action, Protocol, State};

/// Multiplies and rotates: the keys are small and not chosen by an attacker.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// Result of the search.
pub struct Reach {
    /// Number of states.
    pub states: usize,
    /// A path to a state from which the jobs cannot all end, if there is one.
    pub stuck: Option<Vec<Action>>,
    /// The stuck state.
    pub at: Option<State>,
    /// Number of stuck states.
    pub stuck_states: usize,
}

/// Builds the graph and looks for states from which the jobs cannot all end by themselves.
pub fn search(model: &Protocol) -> Reach {
    let mut numbers: HashMap<State, u32, BuildHasherDefault<Quick>> = HashMap::default();
    let mut states = vec![model.initial()];
    let mut parents = vec![0u32];
    // Edges (from, to) of actions that happen by themselves.
    let mut edges: Vec<(u32, u32)> = Vec::new();
    numbers.insert(model.initial(), 0);
    let mut actions = Vec::new();
    let mut next = 0;
    while next < states.len() {
        let state = states[next].clone();
        actions.clear();
        model.enabled(&state, &mut actions);
        for action in &actions {
            let Some(after) = model.after(&state, *action) else { continue };
            let by_itself = model.goes_by_itself(&state, *action, &after);
            let number = match numbers.entry(after) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let number = u32::try_from(states.len()).expect("fewer states");
                    states.push(new.key().clone());
                    parents.push(next as u32);
                    *new.insert(number)
                }
            };
            if by_itself {
                edges.push((next as u32, number));
            }
        }
        next += 1;
    }

    // Backwards from the good ends.
    edges.sort_unstable_by_key(|(_, to)| *to);
    let mut well: Vec<bool> = states.iter().map(|s| model.is_over(s)).collect();
    let mut front: Vec<u32> = (0..states.len() as u32).filter(|i| well[*i as usize]).collect();
    while let Some(to) = front.pop() {
        let first = edges.partition_point(|e| e.1 < to);
        for (from, _) in edges[first..].iter().take_while(|e| e.1 == to) {
            if !well[*from as usize] {
                well[*from as usize] = true;
                front.push(*from);
            }
        }
    }
    let stuck = well.iter().position(|well| !well);
    Reach {
        states: states.len(),
        stuck_states: well.iter().filter(|well| !**well).count(),
        at: stuck.map(|i| states[i].clone()),
        stuck: stuck.map(|i| way(model, &states, &parents, i)),
    }
}

/// Returns the actions that lead to a state.
fn way(model: &Protocol, states: &[State], parents: &[u32], mut to: usize) -> Vec<Action> {
    let mut way = Vec::new();
    while to != 0 {
        let from = parents[to] as usize;
        let mut actions = Vec::new();
        model.enabled(&states[from], &mut actions);
        way.extend(actions.into_iter().find(|a| model.after(&states[from], *a).as_ref() == Some(&states[to])));
        to = from;
    }
    way.reverse();
    way
}
