//! Merges rows of copies in a function's body.
//!
//! circom fills an array of variables by one copy per element: `copy(k·40 + base, from)`, `copy((k + 1)·40 + base,
//! from)` and so on. The sources are often consecutive, but not always, because equal constants are stored once. Tables
//! of constants take thousands of such calls.

use std::ops::Range;

use wasm_encoder::{Encode, InstructionSink};
use wasmparser::{FunctionBody, Operator};

use super::clock::Edit;
use super::emit::at;
use super::runtime::NUMBER;

/// Fewest copies that are merged into one call.
const MIN_COPIES: usize = 3;
/// Fewest copies of one number that are worth a separate call.
const MIN_SAME: usize = 6;
/// Fewest copies from consecutive places that are worth a separate call.
const MIN_NEIGHBOURS: usize = 24;
/// Most copies in a row, so that its size in bytes fits into 32 bits with a wide margin.
const MAX_COPIES: usize = 1 << 20;

/// Most calls, over all functions, that are replaced by the copy itself: each costs compile time.
const MAX_INLINED: usize = 1 << 15;

/// Consecutive copies to consecutive elements.
struct Row {
    /// The range of each copy in the body.
    sites: Vec<Range<usize>>,
    /// Index of the first element, relative to the address in `local`.
    index: i32,
    local: u32,
    /// Addresses of the sources.
    from: Vec<i32>,
}

/// One copy as circom writes it.
struct Site {
    range: Range<usize>,
    index: i32,
    local: u32,
    from: i32,
}

/// What a part of a row becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Copies of one number.
    Same,
    /// Copies of consecutive numbers.
    Neighbours,
    /// Copies of numbers in arbitrary places.
    Scattered,
    /// Left as it is.
    Left,
}

/// Functions that are called for rows. Parameters: address to write to; address to read from, or of a list of such
/// addresses; number of bytes to write.
pub(super) struct Helpers {
    pub same: u32,
    pub neighbours: u32,
    pub scattered: u32,
}

/// Statistics and data of merged copies.
#[derive(Default)]
pub(super) struct Merged {
    /// Copies that were removed.
    pub copies: u64,
    /// Calls that replaced them.
    pub rows: u64,
    /// Calls that were replaced by the copy itself.
    pub inlined: u64,
    /// Lists of sources: the lowest address, the end of the highest number, then the addresses.
    pub lists: Vec<u8>,
}

impl Merged {
    /// Adds a list and returns its address.
    fn list(&mut self, from: &[i32]) -> Option<u32> {
        let at = u32::try_from(self.lists.len()).ok()?;
        let addresses = || from.iter().map(|a| *a as u32);
        let bounds = [addresses().min()?, addresses().max()?.checked_add(NUMBER)?];
        self.lists.extend(bounds.into_iter().chain(addresses()).flat_map(u32::to_le_bytes));
        Some(at)
    }
}

/// Adds the edits that merge the rows of a body, whose function has `params` parameters, and that replace the remaining
/// calls by the copy itself. Returns `None` if the body does not parse.
pub(super) fn merge(
    body: &FunctionBody<'_>,
    params: u32,
    copy: u32,
    helpers: &Helpers,
    merged: &mut Merged,
    edits: &mut Vec<Edit>,
) -> Option<()> {
    let (rows, mut calls) = rows(body, copy)?;
    let mut gone = Vec::new();
    for row in rows {
        for (part, kind) in parts(&row.from) {
            let from = &row.from[part.clone()];
            let (helper, source) = match kind {
                Kind::Left => continue,
                Kind::Same => (helpers.same, from[0]),
                Kind::Neighbours => (helpers.neighbours, from[0]),
                Kind::Scattered => match merged.list(from) {
                    Some(list) => (helpers.scattered, list as i32),
                    None => continue,
                },
            };
            let index = row.index.wrapping_add(part.start as i32);
            let mut bytes = Vec::new();
            let mut op = InstructionSink::new(&mut bytes);
            op.i32_const(index.wrapping_mul(NUMBER as i32)).local_get(row.local).i32_add();
            op.i32_const(source).i32_const((part.len() * NUMBER as usize) as i32).call(helper);
            let range = row.sites[part.start].start..row.sites[part.end - 1].end;
            gone.push(range.clone());
            edits.push((range, bytes));
            merged.rows += 1;
            merged.copies += part.len() as u64;
        }
    }
    calls.retain(|call| {
        let before = gone.partition_point(|range: &Range<usize>| range.end <= call.start);
        gone.get(before).is_none_or(|range| range.start >= call.end)
    });
    calls.truncate(MAX_INLINED.saturating_sub(merged.inlined as usize));
    if calls.is_empty() {
        return Some(());
    }
    merged.inlined += calls.len() as u64;
    let [to, from] = two_locals(body, params, edits)?;
    let mut bytes = Vec::new();
    let mut op = InstructionSink::new(&mut bytes);
    op.local_set(from).local_set(to);
    for offset in (0..u64::from(NUMBER)).step_by(8) {
        op.local_get(to).local_get(from).i64_load(at(offset)).i64_store(at(offset));
    }
    edits.extend(calls.into_iter().map(|call| (call, bytes.clone())));
    Some(())
}

/// Adds two 32-bit locals to a body, by edits that come before any other at the same position.
fn two_locals(body: &FunctionBody<'_>, params: u32, edits: &mut Vec<Edit>) -> Option<[u32; 2]> {
    let base = body.range().start;
    let mut locals = body.get_locals_reader().ok()?;
    let (groups, start) = (locals.get_count(), locals.original_position() - base);
    let mut count = params;
    for _ in 0..groups {
        count = count.checked_add(locals.read().ok()?.0)?;
    }
    let end = locals.original_position() - base;
    let mut bytes = Vec::new();
    groups.checked_add(1)?.encode(&mut bytes);
    edits.insert(0, (0..start, bytes));
    // Two of type i32.
    edits.insert(1, (end..end, vec![2, 0x7f]));
    Some([count, count.checked_add(1)?])
}

/// Splits the sources of a row into parts.
fn parts(from: &[i32]) -> Vec<(Range<usize>, Kind)> {
    let mut parts = Vec::new();
    let (mut scattered, mut i) = (0, 0);
    let flush = |parts: &mut Vec<_>, range: Range<usize>| match range.len() {
        0 => {}
        1..MIN_COPIES => parts.push((range, Kind::Left)),
        _ => parts.push((range, Kind::Scattered)),
    };
    while i < from.len() {
        let length = |step: i32| 1 + from[i..].windows(2).take_while(|w| w[1] == w[0].wrapping_add(step)).count();
        let (same, neighbours) = (length(0), length(NUMBER as i32));
        let (length, kind) = match () {
            () if same >= MIN_SAME => (same, Kind::Same),
            () if neighbours >= MIN_NEIGHBOURS => (neighbours, Kind::Neighbours),
            // A run that is too short for either kind stays too short when started later.
            () => {
                i += same.max(neighbours - 1).max(1);
                continue;
            }
        };
        flush(&mut parts, scattered..i);
        parts.push((i..i + length, kind));
        i += length;
        scattered = i;
    }
    flush(&mut parts, scattered..from.len());
    parts
}

/// Returns the rows of a body, single copies included, and all calls that copy a number.
fn rows(body: &FunctionBody<'_>, copy: u32) -> Option<(Vec<Row>, Vec<Range<usize>>)> {
    let mut instructions = body.get_operators_reader().ok()?;
    let base = body.range().start;
    let mut rows: Vec<Row> = Vec::new();
    let mut calls = Vec::new();
    let mut window = Window::default();
    while !instructions.eof() {
        let start = instructions.original_position() - base;
        let operator = instructions.read().ok()?;
        let end = instructions.original_position() - base;
        if matches!(operator, Operator::Call { function_index } if function_index == copy) {
            calls.push(start..end);
        }
        let Some(Site { range, index, local, from }) = window.push(start..end, &operator, copy) else { continue };
        match rows.last_mut() {
            Some(row)
                if row.sites.last().is_some_and(|last| last.end == range.start)
                    && row.local == local
                    && row.index.wrapping_add(row.from.len() as i32) == index
                    && row.from.len() < MAX_COPIES =>
            {
                row.sites.push(range);
                row.from.push(from);
            }
            _ => rows.push(Row { sites: vec![range], index, local, from: vec![from] }),
        }
    }
    Some((rows, calls))
}

/// Recognises the instructions of a copy: state of a partial match.
#[derive(Default)]
struct Window {
    seen: usize,
    start: usize,
    index: i32,
    local: u32,
    from: i32,
}

impl Window {
    /// Takes the next instruction; returns a copy when this completes one.
    fn push(&mut self, range: Range<usize>, operator: &Operator<'_>, copy: u32) -> Option<Site> {
        let fits = match (self.seen, operator) {
            (0, Operator::I32Const { value }) => {
                (self.start, self.index) = (range.start, *value);
                true
            }
            (1, Operator::I32Const { value }) => *value == NUMBER as i32,
            (2, Operator::I32Mul) | (4, Operator::I32Add) => true,
            (3, Operator::LocalGet { local_index }) => {
                self.local = *local_index;
                true
            }
            (5, Operator::I32Const { value }) => {
                self.from = *value;
                true
            }
            (6, Operator::Call { function_index }) => *function_index == copy,
            _ => false,
        };
        if !fits {
            // The instruction may start another match.
            let again = self.seen > 0;
            self.seen = 0;
            return if again { self.push(range, operator, copy) } else { None };
        }
        self.seen += 1;
        if self.seen < 7 {
            return None;
        }
        self.seen = 0;
        Some(Site { range: self.start..range.end, index: self.index, local: self.local, from: self.from })
    }
}
