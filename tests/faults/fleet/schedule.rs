//! What happens to the fleet, and when: determined by a seed and by how many jobs have ended, never by a clock.

/// Workers in the fleet.
pub const WORKERS: usize = 4;
/// The worker whose folder of proofs is on a tiny disk.
pub const TINY: usize = WORKERS - 1;
/// Jobs in a round.
pub const ROUND: u64 = 1000;
/// Fault points at which a worker can be killed, in the order of a job's life.
pub const POINTS: [&str; 5] = ["after_claim", "after_witness", "after_prove", "before_commit", "after_commit"];

/// Numbers from a seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from `low` to `high`, both included.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.within(0, i as u64) as usize);
        }
    }
}

/// A server that can be cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Door {
    Postgres,
    Redis,
}

/// What happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A worker is restarted so that its next job kills it at this point.
    DieAt { worker: usize, point: &'static str },
    /// A worker is restarted so that it freezes before its next commit, past the lease.
    FreezeBeforeCommit { worker: usize },
    /// SIGSTOP in the middle of whatever it does, past the lease, then SIGCONT.
    Stop { worker: usize },
    /// SIGKILL in the middle of whatever it does.
    Kill { worker: usize },
    /// SIGTERM; it is restarted when it has ended.
    Drain { worker: usize },
    /// FLUSHALL.
    Flush,
    /// Redis is killed, and restarted, empty, when this many more jobs have ended.
    RedisGone { jobs: u64 },
    /// PostgreSQL stops immediately and is restarted after this time.
    PostgresCrash { ms: u64 },
    /// All connections are cut after this many more bytes.
    Cut { door: Door, bytes: u64 },
    /// Nothing passes for this time.
    Hold { door: Door, ms: u64 },
    /// All connections are cut and refused for this time.
    Refuse { door: Door, ms: u64 },
    /// The tiny disk is full.
    DiskFull,
    /// The tiny disk has space again.
    DiskFree,
}

/// Returns the events of a round, each with the number of the round's jobs that end before it.
pub fn round(seed: u64, number: u64) -> Vec<(u64, Event)> {
    let mut dice = Dice::new(seed.wrapping_add(number.wrapping_mul(0x5851_f42d_4c95_7f2d)));
    let mut worker = 0;
    // Every worker has its turn, in random order.
    let mut order: Vec<usize> = (0..WORKERS).collect();
    let mut next = |dice: &mut Dice| {
        if worker % WORKERS == 0 {
            dice.shuffle(&mut order);
        }
        worker += 1;
        order[(worker - 1) % WORKERS]
    };
    let mut events = Vec::new();
    for point in POINTS {
        events.push(Event::DieAt { worker: next(&mut dice), point });
    }
    for _ in 0..2 {
        events.push(Event::FreezeBeforeCommit { worker: next(&mut dice) });
        events.push(Event::Stop { worker: next(&mut dice) });
        events.push(Event::Flush);
        events.push(Event::PostgresCrash { ms: dice.within(0, 1500) });
    }
    events.push(Event::Kill { worker: next(&mut dice) });
    events.push(Event::Drain { worker: next(&mut dice) });
    events.push(Event::RedisGone { jobs: dice.within(1, 40) });
    for door in [Door::Postgres, Door::Redis] {
        for _ in 0..2 {
            events.push(Event::Cut { door, bytes: dice.within(1, 20_000) });
        }
        events.push(Event::Hold { door, ms: dice.within(100, 3000) });
        events.push(Event::Refuse { door, ms: dice.within(100, 2000) });
    }
    dice.shuffle(&mut events);
    let (first, last) = (20, ROUND - 80);
    let mut at: Vec<u64> = events.iter().map(|_| dice.within(first, last)).collect();
    at.sort_unstable();
    let mut events: Vec<(u64, Event)> = at.into_iter().zip(events).collect();
    // Full for long enough that some proofs are made meanwhile.
    events.push((dice.within(first, ROUND / 3), Event::DiskFull));
    events.push((dice.within(ROUND * 2 / 3, last), Event::DiskFree));
    events.sort_by_key(|(at, _)| *at);
    events
}

#[test]
fn the_seed_decides() {
    for seed in 0..50 {
        for number in 0..3 {
            let plan = round(seed, number);
            assert_eq!(plan, round(seed, number));
            assert_ne!(plan, round(seed + 1, number));
            assert_ne!(plan, round(seed, number + 1));
            assert!(plan.is_sorted_by_key(|(at, _)| *at) && plan.last().unwrap().0 < ROUND);
            for point in POINTS {
                let dies = |e: &Event| matches!(e, Event::DieAt { point: p, .. } if *p == point);
                assert_eq!(plan.iter().filter(|(_, e)| dies(e)).count(), 1, "{point}");
            }
            let place = |wanted: &Event| plan.iter().position(|(_, e)| e == wanted).unwrap();
            assert!(place(&Event::DiskFull) < place(&Event::DiskFree));
        }
    }
}
